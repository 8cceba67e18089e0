"""Named events in the environment: the library's own run and steps, the real client, engine and store."""

# Celery carries no types: to pyright a task is the function that it was made of.
# pyright: reportArgumentType=false, reportFunctionMemberAccess=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from durable_celery import (
    AsyncWorkflowContext,
    EventCancelledError,
    EventConflictError,
    WaitTimeoutError,
    WorkflowContext,
    durable_task,
    named_events,
    publish_event,
)
from durable_celery.client import Client
from durable_celery.codec import AesGcm, Deflate
from durable_celery.errors import InboxFullError, InvalidRequestError, PayloadError, WorkflowConflictError
from durable_celery.named_events import NamedEvent
from durable_celery.testing import Environment, NothingLeftError, crash_everywhere
from durable_celery.workflow.named_events import WAIT

app = Celery("news", broker="redis://nowhere.invalid:1/0", set_as_current=False)
PAID = "durable:event:paid"


@durable_task(app=app)
def patient(ctx: WorkflowContext, timeout: float | None = None) -> Any:
    return ctx.wait_event("paid", timeout)


@durable_task(app=app)
async def patient_async(ctx: AsyncWorkflowContext, timeout: float | None = None) -> Any:  # noqa: ASYNC109 - a durable one
    return await ctx.wait_event("paid", timeout)


@durable_task(app=app)
def publisher(ctx: WorkflowContext, value: Any, pause: float = 0.0) -> str:
    ctx.sleep(pause)
    ctx.publish_event("paid", value)
    return "published"


@durable_task(app=app)
def all_of_it(ctx: WorkflowContext) -> list[Any]:
    waiting = [ctx.start(patient), ctx.start(patient_async)]
    ctx.step(publisher, {"by": "card"}, 5)
    return [*ctx.gather(*waiting), ctx.wait_event("paid")]


@durable_task(app=app)
async def all_of_it_async(ctx: AsyncWorkflowContext) -> list[Any]:
    waiting = [ctx.start(patient), ctx.start(patient_async)]
    await ctx.step(publisher, {"by": "card"}, 5)
    return [*await ctx.gather(*waiting), await ctx.wait_event("paid")]


both = pytest.mark.parametrize("waits", [patient, patient_async], ids=["def", "async def"])


@pytest.fixture
def env() -> Iterator[Environment]:
    with Environment(app) as environment:
        yield environment


def waiters(env: Environment) -> list[Any]:
    """Return what the run of the event has heard of those who wait."""
    codec = env.system.binding.codec
    return [
        codec.decode(item.event.payload)
        for item in env.system.history(PAID)
        if getattr(item.event, "name", "") == "waiter"
    ]


@both
def test_all_who_wait_go_on_at_once_and_who_comes_later_gets_the_value(env: Environment, waits: Any) -> None:
    before, handles = env.now, [env.start(waits) for _ in range(3)]

    assert env.publish_event("paid", {"by": "card"}) is True

    assert [handle.state for handle in handles] == ["SUCCESS"] * 3
    assert [handle.get() for handle in handles] == [{"by": "card"}] * 3
    assert env.run(waits) == {"by": "card"}
    assert env.now == before
    assert len(waiters(env)) == 3


def test_it_is_published_once(env: Environment) -> None:
    assert env.publish_event("paid", 1) is True
    assert env.publish_event("paid", 1) is False
    length = len(env.system.history(PAID))

    with pytest.raises(EventConflictError, match="event 'paid' was published with another value, which stands"):
        env.publish_event("paid", 2)
    with pytest.raises(EventConflictError):
        env.run(publisher, 2)
    assert env.run(publisher, 1) == "published"
    assert (env.run(patient), len(env.system.history(PAID))) == (1, length)


def test_it_is_published_once_also_before_anybody_has_seen_it(env: Environment) -> None:
    # No message was handled between the two: the run of the event has not even begun.
    assert publish_event("paid", 1, app=app) is True
    assert publish_event("paid", 1, app=app) is False
    with pytest.raises(EventConflictError):
        publish_event("paid", 2, app=app)

    assert env.run(patient) == 1


@both
def test_a_cancelled_event_fails_those_who_wait_and_is_not_published(env: Environment, waits: Any) -> None:
    handle = env.start(waits)
    env.cancel(PAID)

    for waiting in (handle, env.start(waits)):
        with pytest.raises(EventCancelledError, match="'paid' was cancelled: it will not be published"):
            waiting.get()
    with pytest.raises(EventConflictError, match="was cancelled, and is not published"):
        env.publish_event("paid", 1)


@both
def test_a_wait_has_a_timeout_and_may_be_begun_again(env: Environment, waits: Any) -> None:
    with pytest.raises(WaitTimeoutError, match="no event 'paid' was published within 5 s"):
        env.run(waits, 5)
    handle = env.start(waits)
    # The first is told too, and has gone.
    env.publish_event("paid", 1)

    assert handle.get() == 1


def test_a_run_that_waits_for_what_nobody_publishes_is_told_so_at_once(env: Environment) -> None:
    with pytest.raises(NothingLeftError, match="An event is published by the test"):
        env.run(patient)


def test_an_event_that_is_published_between_two_looks_is_not_missed(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race of a wait with the publication, forced: the run of the event never hears of this waiter."""
    real = NamedEvent._subscribe

    def late(event: NamedEvent, key: str) -> None:
        publish_event("paid", 1, app=app)
        # As another worker would: the whole life of the event is over before the waiter can leave its key.
        env.system.engine.cache.clear()
        ending = env.system.engine.take_turn(PAID)
        assert ending is not None
        real(event, key)

    monkeypatch.setattr(NamedEvent, "_subscribe", late)

    assert env.run(patient) == 1
    assert waiters(env) == []
    assert [one.attempt for one in env.executed(WAIT)] == [1]


def test_a_waiter_whose_key_was_lost_hears_when_it_looks_again(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NamedEvent, "_subscribe", lambda *_: None)
    handle = env.start(patient)
    env.publish_event("paid", 1)
    assert handle.state == "STARTED"

    env.skip(15)

    assert handle.get() == 1


def test_a_full_inbox_only_delays_a_wait_and_never_a_publication(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = Client.add, list[str]()

    def add(client: Client, workflow_id: str, event: Any, key: str, *, room: int | None = None) -> bool:
        if not refused and room is None:
            refused.append(key)
            raise InboxFullError(workflow_id, 1)
        return real(client, workflow_id, event, key, room=room)

    monkeypatch.setattr(Client, "add", add)
    handle = env.start(patient)
    assert (len(refused), waiters(env)) == (1, [])
    env.skip(15)
    assert len(waiters(env)) == 1
    env.publish_event("paid", 1)

    assert handle.state == "SUCCESS"


def test_those_who_wait_are_carried_through_the_runs_of_an_event(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "durable_celery.workflow.size.HistorySize.suggests_continuing", property(lambda size: size.events > 4)
    )
    handles = [env.start(patient) for _ in range(7)]
    assert env.system.store.run_table[PAID].record.run > 1

    env.publish_event("paid", 1)

    assert [handle.state for handle in handles] == ["SUCCESS"] * 7
    assert publish_event("paid", 1, app=app) is False


@pytest.mark.parametrize("name", ["", "a b", "x" * 242, None])
def test_what_cannot_be_a_name_is_refused_before_anything_is_written(env: Environment, name: Any) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be the name of an event"):
        env.publish_event(name)
    assert not env.system.store.run_table


@pytest.mark.parametrize("value", [object(), "x" * 1_100_000])
def test_a_value_that_cannot_be_recorded_is_refused_before_anything_is_written(env: Environment, value: Any) -> None:
    with pytest.raises(PayloadError):
        env.publish_event("paid", value)
    assert not env.system.store.run_table


def test_a_workflow_that_has_the_id_of_an_event_is_not_taken_for_one(env: Environment) -> None:
    patient.apply_async(task_id=PAID)

    with pytest.raises(WorkflowConflictError):
        env.publish_event("paid", 1)


def test_what_is_no_waiter_is_told_nothing(env: Environment) -> None:
    """Whoever reaches the store can send signals; they do no harm but to themselves."""
    env.start(patient)
    for junk in (7, None, "nonsense", "gone/1.1"):
        env.signal(PAID, "waiter", junk)

    assert env.publish_event("paid", 1) is True
    assert env.run(patient) == 1
    assert named_events.publish_event("paid", 1, app=app) is False


def test_a_value_is_hidden_wherever_it_goes_and_comes_out_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(app.conf, "durable_codec", [Deflate(), AesGcm({"k1": b"k" * 32})])
    secret = "the-canary-" * 3
    with Environment(app) as env:
        early, gone = env.start(patient), env.start(patient, 1)
        env.skip(2)
        env.publish_event("paid", {"secret": secret})
        assert env.publish_event("paid", {"secret": secret}) is False

        assert [early.get(), env.run(patient_async)] == [{"secret": secret}] * 2
        assert gone.state == "FAILURE"
        logs = [run.log for run in env.system.store.run_table.values()]
    assert "canary" not in repr(logs)


@pytest.mark.slow
@pytest.mark.parametrize("workflow", [all_of_it, all_of_it_async], ids=["def", "async def"])
def test_it_stands_every_fault(workflow: Any) -> None:
    report = crash_everywhere(workflow)

    assert report.struck > 200
