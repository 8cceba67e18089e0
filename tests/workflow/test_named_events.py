"""Named events in both forms, as the code that waits and publishes sees them, and the run that stands for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from durable_celery import named_events
from durable_celery.codec import rebuild
from durable_celery.errors import EventCancelledError, InvalidRequestError, WaitTimeoutError
from durable_celery.events import RunCancelled, RunContinued, RunFailed, StepScheduled
from durable_celery.workflow import AsyncWorkflowContext, WorkflowContext
from durable_celery.workflow.named_events import PUBLISH, TELL, WAIT
from tests.workflow.log import CODEC, Run

Code = Callable[..., Any]
Begin = Callable[..., Run]


def forms(*codes: Code) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("code", codes, ids=["def", "async def"])


def steps(run: Run) -> list[StepScheduled]:
    return [event for event in run.outputs if isinstance(event, StepScheduled)]


def arguments(step: StepScheduled) -> Any:
    return CODEC.decode(step.payload)


def failure(run: Run) -> Exception:
    assert isinstance(run.last, RunFailed)
    return rebuild(run.last.payload, CODEC)


def wait(ctx: WorkflowContext, *given: Any) -> Any:
    return ctx.wait_event("paid", *given)


async def wait_async(ctx: AsyncWorkflowContext, *given: Any) -> Any:
    return await ctx.wait_event("paid", *given)


@forms(wait, wait_async)
def test_to_wait_is_one_step(code: Code, begin: Begin) -> None:
    run = begin(code)
    (step,) = steps(run)
    assert run.execution.waiting == "step event paid (1)"
    run.complete(1, {"by": "card"}, attempt=0)

    assert (step.task, arguments(step)) == (WAIT, [["paid"], {}])
    assert (step.options or {})["label"] == "event paid"
    assert run.result == {"by": "card"}


@forms(wait, wait_async)
def test_a_wait_ends_by_its_timeout(code: Code, begin: Begin) -> None:
    run = begin(code, 60)
    run.fire(2)

    assert run.cancelled() == [1]
    assert isinstance(failure(run), WaitTimeoutError)
    assert str(failure(run)) == "no event 'paid' was published within 60 s"


@forms(wait, wait_async)
def test_a_wait_that_is_answered_in_time_leaves_no_timer(code: Code, begin: Begin) -> None:
    run = begin(code, 60)
    run.complete(1, "cash")

    assert run.cancelled() == [2]
    assert run.result == "cash"


@forms(wait, wait_async)
def test_a_wait_ends_by_a_cancel_of_its_run_and_by_one_of_the_event(code: Code, begin: Begin) -> None:
    run, other = begin(code), begin(code)
    run.cancel()
    other.fail(1, EventCancelledError("paid"))

    assert run.cancelled() == [1]
    assert isinstance(run.last, RunCancelled)
    assert str(failure(other)) == "event 'paid' was cancelled: it will not be published"


def arm(ctx: WorkflowContext) -> Any:
    won = ctx.options(queue="mail").race(first=ctx.options(queue="mail").event("a"), second=ctx.event("b"))
    return [won.name, won.value]


async def arm_async(ctx: AsyncWorkflowContext) -> Any:
    won = await ctx.race(first=ctx.options(queue="mail").event("a"), second=ctx.event("b"))
    return [won.name, won.value]


@forms(arm, arm_async)
def test_an_event_is_an_arm_of_a_race_and_takes_the_options_of_a_call(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.complete(2, 7)

    assert [(step.options or {}).get("queue") for step in steps(run)] == ["mail", None]
    assert run.cancelled() == [1]
    assert run.result == ["second", 7]


def publish(ctx: WorkflowContext) -> None:
    ctx.publish_event("paid", {"by": "card"})
    ctx.publish_event("sent")


async def publish_async(ctx: AsyncWorkflowContext) -> None:
    await ctx.publish_event("paid", {"by": "card"})
    await ctx.publish_event("sent")


@forms(publish, publish_async)
def test_to_publish_is_one_step(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.complete(1)
    run.complete(2)

    assert [(step.task, arguments(step)) for step in steps(run)] == [
        (PUBLISH, [["paid", {"by": "card"}], {}]),
        (PUBLISH, [["sent", None], {}]),
    ]
    assert run.result is None


@pytest.mark.parametrize("name", ["", "a b", "{a}", "é", "x" * 242, None, 7])
def test_what_cannot_be_a_name_is_refused_where_it_is_said(name: Any) -> None:
    verbs: list[Code] = [
        lambda ctx: ctx.event(name),
        lambda ctx: ctx.wait_event(name),
        lambda ctx: ctx.publish_event(name),
    ]
    for verb in verbs:
        run = Run(verb).start()
        assert isinstance(failure(run), InvalidRequestError)
        assert "cannot be the name of an event: it takes 1 to 241 printable ASCII" in str(failure(run))
        assert run.kinds() == ["RunFailed"]


# --------------------------------------------------------------------------- the run that stands for one


def told(run: Run) -> list[Any]:
    assert {step.task for step in steps(run)} <= {TELL}
    return [arguments(step) for step in steps(run)]


def test_the_run_of_an_event_tells_those_who_wait_and_ends_with_the_value(begin: Begin) -> None:
    run = begin(named_events.event)
    run.signal("waiter", "a/1.1")
    run.signal("waiter", "b/1.1")
    run.signal("waiter", "a/1.1")
    run.signal("published", 7)
    assert told(run) == [[[["a/1.1", "b/1.1"]], {"is_cancelled": False}]]
    # One that has looked just before the run ends is told as well.
    run.signal("waiter", "c/1.1")
    run.complete(1)
    assert told(run)[1] == [[["c/1.1"]], {"is_cancelled": False}]
    run.complete(2)

    assert run.result == 7


def test_an_event_for_which_nobody_waits_ends_at_once(begin: Begin) -> None:
    run = begin(named_events.event)
    run.signal("published")

    assert run.kinds() == ["RunCompleted"]


def test_many_are_told_in_portions(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_events, "_BATCH", 2)
    run = begin(named_events.event, ["a/1.1", "b/1.1", "c/1.1"])
    run.signal("published", 7)
    run.complete(1)
    run.complete(2)

    assert [keys for (keys,), _ in told(run)] == [["a/1.1", "b/1.1"], ["c/1.1"]]
    assert run.result == 7


def test_an_event_that_is_cancelled_says_so_to_those_who_wait(begin: Begin) -> None:
    run = begin(named_events.event)
    run.signal("waiter", "a/1.1")
    run.cancel()
    assert told(run) == [[[["a/1.1"]], {"is_cancelled": True}]]
    run.complete(1)

    assert isinstance(run.last, RunCancelled)


def test_a_cancel_that_comes_after_the_publication_is_too_late(begin: Begin) -> None:
    run = begin(named_events.event, ["a/1.1"])
    run.signal("published", 7)
    run.cancel()
    run.complete(1)

    assert run.cancelled() == []
    assert run.result == 7


def test_a_long_history_goes_on_as_a_new_run_with_the_newest_of_those_who_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("durable_celery.workflow.size.HistorySize.suggests_continuing", True)
    monkeypatch.setattr(named_events, "_CARRIED", 10)
    run = Run(named_events.event).start(["a/1.1", "b/1.1"])
    run.signal("waiter", "c/1.1")

    assert isinstance(run.last, RunContinued)
    assert CODEC.decode(run.last.payload) == [[["b/1.1", "c/1.1"]], {}]
