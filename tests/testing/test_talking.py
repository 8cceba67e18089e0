"""Queries, updates, progress and starts with a word, in the environment: the real client, engine and tasks."""

# Celery carries no types: to pyright a task is the function that it was made of.
# pyright: reportArgumentType=false, reportFunctionMemberAccess=false, reportCallIssue=false

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import TimeoutError as CeleryTimeoutError

from durable_celery import (
    NonDeterminismError,
    UpdateError,
    WorkflowClosedError,
    WorkflowConflictError,
    WorkflowNotFoundError,
    durable_task,
)
from durable_celery.client import Client
from durable_celery.errors import DurableError, InboxFullError, InvalidRequestError, PayloadError, WorkflowCodeError
from durable_celery.events import LocalStepCompleted, SignalReceived, StepScheduled
from durable_celery.offsets import Offset
from durable_celery.store.protocol import NewRun
from durable_celery.testing import Environment, NothingLeftError
from tests.testing import talking


@pytest.fixture
def env() -> Iterator[Environment]:
    with Environment(talking.app) as environment:
        yield environment


def lengths(env: Environment) -> dict[str, int]:
    return {run.workflow_id: run.length for run in env.system.open_runs()}


# --------------------------------------------------------------------------- queries


def test_a_query_answers_from_the_state_by_itself_or_by_name(env: Environment) -> None:
    handle = env.start(talking.basket, "ann")
    handle.update(talking.put, "apple", 2)
    before = lengths(env)

    assert handle.query(talking.lines) == [talking.Line("apple", 2)]
    assert handle.query("lines") == [talking.Line("apple", 2)]
    assert handle.query(talking.lines_of, "apple", least=2) == handle.query("of", "apple") == 2
    assert lengths(env) == before


def test_a_query_sees_what_no_turn_has_taken_in_yet(env: Environment) -> None:
    handle = talking.counter.delay()
    assert handle.query(talking.count) == 0
    env.settle()
    handle.signal("end")

    assert handle.query(talking.count) == 100
    assert handle.state == "STARTED"


def test_a_query_of_a_run_that_has_ended_finds_the_state_as_it_ended(env: Environment) -> None:
    handle = env.start(talking.basket, "ann", 1)
    handle.update(talking.put, "apple")
    assert handle.get() == 2
    assert handle.query(talking.lines) == [talking.Line("apple", 1), talking.Line("the bag", 1)]


def test_a_query_says_nothing_in_the_log(env: Environment, caplog: pytest.LogCaptureFixture) -> None:
    handle = talking.basket.delay("ann")
    assert handle.query(talking.lines) == []
    assert "basket of ann" not in caplog.text
    env.settle()
    assert caplog.text.count("basket of ann") == 1


def test_what_ends_the_replay_does_not_change_the_answer(env: Environment) -> None:
    """The code's ``finally`` runs when the execution is thrown away."""
    handle = env.start(talking.basket, "ann")
    assert handle.query(talking.lines) == []


def test_a_branch_that_was_left_behind_is_not_ended_before_the_answer(env: Environment) -> None:
    handle = env.start(talking.leaving)
    assert handle.get() is None
    assert handle.query("seen") == ["begun"]


def test_a_query_that_changes_the_state_changes_nothing(env: Environment) -> None:
    handle = env.start(talking.basket, "ann")
    handle.update(talking.put, "apple")
    assert handle.query(talking.clearing) == 0
    assert handle.query(talking.lines) == [talking.Line("apple", 1)]


def test_what_a_query_raises_is_raised_at_the_caller(env: Environment) -> None:
    handle = env.start(talking.basket, "ann")
    with pytest.raises(LookupError, match="ann"):
        handle.query(talking.raising)


def test_a_query_cannot_call_a_verb(env: Environment) -> None:
    handle = env.start(talking.basket, "ann")
    before = lengths(env)
    with pytest.raises(DurableError, match="called from outside its workflow code"):
        handle.query(talking.stepping)
    assert lengths(env) == before


def test_a_query_gives_data_away_and_no_live_objects(env: Environment) -> None:
    handle = env.start(talking.basket, "ann")
    with pytest.raises(InvalidRequestError, match="query 'everything' returned what is no plain data"):
        handle.query(talking.everything)


def test_a_query_that_is_unknown_or_called_wrongly_is_refused(env: Environment) -> None:
    handle = env.start(talking.basket, "ann")
    with pytest.raises(InvalidRequestError, match="has no query 'line'; did you mean 'lines'"):
        handle.query("line")
    with pytest.raises(InvalidRequestError, match="it has clearing, everything, lines, of, raising, stepping"):
        handle.query("zzz")
    with pytest.raises(InvalidRequestError, match=r"counter has no query 'lines'; .* 'count'|it has count"):
        env.start(talking.counter).query(talking.lines)
    with pytest.raises(InvalidRequestError, match="quick has no query 'lines'; it has none"):
        env.start(talking.quick).query(talking.lines)
    with pytest.raises(InvalidRequestError, match="query 'of' does not take these arguments"):
        handle.query("of")
    with pytest.raises(WorkflowNotFoundError):
        talking.basket.AsyncResult("nobody").query("lines")


def test_a_query_stops_at_a_local_step_that_is_not_recorded(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def stamp(number: int) -> int:
        ran.append(number)
        return number

    monkeypatch.setattr(talking, "stamp", stamp)
    handle = talking.local.delay()
    assert handle.query(talking.phase) == "before"
    assert ran == []
    env.settle()
    assert handle.query(talking.phase) == "after"
    assert ran == [1]


def test_a_query_of_a_run_that_has_not_begun_finds_an_empty_state(env: Environment) -> None:
    handle = talking.basket.apply_async(("ann",), countdown=60)
    env.settle()
    with pytest.raises(AttributeError, match="has not set 'lines' in its state"):
        handle.query(talking.lines)


def test_a_query_of_a_workflow_that_is_not_registered_here_says_so(env: Environment) -> None:
    new = NewRun(workflow_id="far", name="far.away", payload="[[],{}]", digest="d")
    env.system.store.start(new)
    with pytest.raises(WorkflowCodeError, match=r"'far\.away' is not registered in this one; import its module"):
        env.system.binding.handle("far").query("status")


def test_code_that_does_not_fit_is_told_to_the_caller_and_the_run_is_left_alone(env: Environment) -> None:
    handle = talking.chancy.delay()
    store = env.system.store
    turn: Any = store.take(handle.id, "worker#1", known=0)
    call = StepScheduled(number=1, cause=1, task="tests.testing.talking.price", digest="another", payload='[["y"],{}]')
    store.commit(turn.lease, [call], read=1, waiting="", hold=False)
    before = store.get(handle.id)

    with pytest.raises(NonDeterminismError, match=r"tests\.testing\.talking\.price"):
        handle.query(talking.nothing)
    assert store.get(handle.id) == before


def test_queries_are_asked_in_threads_side_by_side_and_leave_them_as_they_were(env: Environment) -> None:
    handle = env.start(talking.basket, "ann")
    handle.update(talking.put, "apple")
    answers: list[Any] = []

    def ask() -> None:
        for _ in range(5):
            answers.append(handle.query(talking.lines))
            # The guard is for workflow code only.
            time.sleep(0.001)
            subprocess.run([sys.executable, "-c", ""], check=True)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [[talking.Line("apple", 1)]] * 20


def test_a_query_is_asked_from_within_an_event_loop(env: Environment) -> None:
    handle, slow = env.start(talking.basket, "ann"), env.start(talking.counter)

    async def ask() -> list[Any]:
        answers = [handle.query(talking.lines), slow.query(talking.count)]
        await asyncio.sleep(0)
        assert asyncio.get_running_loop() is loop
        return answers

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        assert runner.run(ask()) == [[], 0]


def test_a_step_asks_a_query_of_another_run(env: Environment) -> None:
    handle = env.start(talking.basket, "ann")
    env.override({talking.price: lambda _: len(handle.query(talking.lines))})
    assert handle.update(talking.put, "apple") == 1
    assert handle.update(talking.put, "pear") == 2
    assert [one.result for one in env.executed(talking.price)] == [0, 1]


# --------------------------------------------------------------------------- updates


def test_an_update_gives_its_result_and_is_one_for_each_key(env: Environment) -> None:
    handle = env.start(talking.basket, "ann", 2)
    assert handle.update(talking.put, "apple", key="k") == 1
    assert handle.update("put", "apple", key="k") == 1
    assert handle.update(talking.put, item="pear") == 2
    handle.get()

    assert handle.update(talking.put, "apple", key="k") == 1
    assert len(env.calls(talking.price)) == 2
    with pytest.raises(WorkflowClosedError):
        handle.update(talking.put, "plum", key="other")


def test_a_key_names_one_request(env: Environment) -> None:
    handle = env.start(talking.basket, "ann")
    handle.update(talking.put, "apple", key="k")
    for update, args in (("put", ["pear"]), ("never", [])):
        with pytest.raises(InvalidRequestError, match="a key names one request"):
            handle.update(update, *args, key="k")


def test_a_refused_update_leaves_the_request_and_its_refusal(env: Environment) -> None:
    handle = env.start(talking.basket, "ann")
    before = len(handle.history())
    for _ in range(2):
        with pytest.raises(ValueError, match="ann asked for 0 of apple"):
            handle.update(talking.put, "apple", count=0, key="k")

    assert [type(item.event).__name__ for item in handle.history()[before:]] == ["SignalReceived", "LocalStepFailed"]
    assert "update     k refused: ValueError: ann asked for 0 of apple" in env.history(handle)


def test_what_the_workflow_does_not_take_is_refused_before_anything_is_written(env: Environment) -> None:
    handle = env.start(talking.basket, "ann")
    before = lengths(env)
    with pytest.raises(InvalidRequestError, match="has no update 'putt'; did you mean 'put'"):
        handle.update("putt", "apple")
    with pytest.raises(InvalidRequestError, match="has no update 'more'"):
        handle.update(talking.more, 1)
    with pytest.raises(InvalidRequestError, match="update 'put' does not take these arguments"):
        handle.update(talking.put)
    with pytest.raises(InvalidRequestError, match="the key of an update"):
        handle.update(talking.put, "apple", key="")
    with pytest.raises(PayloadError, match="the arguments of update 'put' cannot be recorded"):
        handle.update(talking.put, object())
    with pytest.raises(WorkflowNotFoundError):
        talking.basket.AsyncResult("nobody").update(talking.put, "apple")
    assert lengths(env) == before


def test_a_process_that_does_not_have_the_workflow_learns_from_the_run(env: Environment) -> None:
    handle = env.start(talking.basket, "ann")
    client = env.system.binding.client
    engine_knows, client.engine.workflows = client.engine.workflows, _unknown
    try:
        update = handle.start_update("putt", "apple", key="k")
    finally:
        client.engine.workflows = engine_knows
    with pytest.raises(InvalidRequestError, match="has no update 'putt'"):
        update.result()


def _unknown(name: str, _version: int) -> Any:
    raise WorkflowCodeError(name)


def test_a_started_update_is_looked_at_later(env: Environment) -> None:
    handle = env.start(talking.counter)
    first, second = handle.start_update(talking.more, 1), handle.start_update(talking.more, 10)
    assert handle.query(talking.count) == 0
    assert second.result(timeout=61) == 11
    assert (first.result(), first.result(), first.workflow_id) == (1, 1, handle.id)


def test_waiting_for_an_update_has_a_limit_and_the_update_goes_on(env: Environment) -> None:
    handle = env.start(talking.counter)
    with pytest.raises(CeleryTimeoutError, match=r"update 'k' of .* has no outcome within 5 s; it waits for .*timer"):
        handle.update(talking.more, 1, key="k", timeout=5)
    assert handle.update(talking.more, 1, key="k") == 1


@pytest.mark.parametrize(("how", "words"), [("cancel", "was cancelled"), ("end", "completed before update 'k'")])
def test_a_run_that_ends_before_an_update_is_done_does_not_leave_the_caller_waiting(
    env: Environment, how: str, words: str
) -> None:
    handle = env.start(talking.counter)
    update = handle.start_update(talking.more, 1, key="k")
    env.settle()
    if how == "cancel":
        handle.cancel()
    else:
        handle.signal("end")
    for _ in range(2):
        with pytest.raises(UpdateError, match=words):
            update.result()
        with pytest.raises(UpdateError, match=words):
            handle.update(talking.more, 1, key="k")


def test_an_update_of_a_run_that_waits_for_ever_is_told_by_the_environment(env: Environment) -> None:
    handle = env.start(talking.basket, "ann")
    with pytest.raises(NothingLeftError):
        handle.update(talking.never)


def test_an_update_of_a_run_that_never_begins_has_an_end(env: Environment) -> None:
    handle = talking.basket.apply_async(("ann",), countdown=60)
    update = handle.start_update(talking.put, "apple", key="k")
    handle.cancel()
    with pytest.raises(UpdateError, match="was cancelled before update 'k' was done"):
        update.result()


def test_an_update_that_comes_before_the_start_is_done_after_it(env: Environment) -> None:
    handle = talking.basket.apply_async(("ann", 1), countdown=60)
    assert handle.update(talking.put, "apple", timeout=61) == 1
    assert handle.get() == 2


def test_updates_that_no_turn_takes_in_are_limited(env: Environment) -> None:
    handle = talking.basket.apply_async(("ann",), countdown=60)
    handle.client = replace(handle.client, inbox_limit=3)
    for _ in range(2):
        handle.start_update(talking.put, "apple")
    with pytest.raises(InboxFullError):
        handle.start_update(talking.put, "apple")
    assert len(handle.history()) == 3


def test_a_signal_cannot_pass_for_an_update(env: Environment) -> None:
    handle = env.start(talking.basket, "ann")
    with pytest.raises(InvalidRequestError, match="names with 'durable:' are reserved"):
        handle.signal("durable:update:put", ["k", ["apple"], {}])


def test_a_step_cannot_wait_for_an_update(env: Environment) -> None:
    handle = env.start(talking.basket, "ann")
    errors: list[str] = []

    def ask(item: str) -> int:
        try:
            handle.update(talking.put, "pear")
        except RuntimeError as error:
            errors.append(str(error))
        return 1

    env.override({talking.price: ask})
    handle.update(talking.put, "apple")
    assert len(errors) == 1
    assert "within a task" in errors[0]


# --------------------------------------------------------------------------- progress


def test_published_values_and_streams_are_read_while_the_run_goes_on_and_after(env: Environment) -> None:
    handle = env.start(talking.basket, "ann", 2)
    assert handle.published() == {"phase": "open"}
    assert (handle.published("phase"), handle.published("other"), handle.published("other", 0)) == ("open", None, 0)
    stream = handle.stream("lines")
    for item in ("apple", "pear"):
        handle.start_update(talking.put, item)

    first = next(stream)
    assert first[1] == {"item": "apple", "cost": 5}
    second = next(handle.stream("lines", after=first[0]))
    assert list(stream) == [second]
    assert handle.get() == 3
    assert list(handle.stream("lines")) == list(handle.stream("lines", follow=False)) == [first, second]
    assert list(handle.stream("lines", after=second[0])) == list(handle.stream("other")) == []
    assert handle.published("phase") == "closed"


def test_following_has_a_limit(env: Environment) -> None:
    handle = env.start(talking.counter)
    with pytest.raises(CeleryTimeoutError, match=r"showed no progress within 5 s; it waits for signal end"):
        list(handle.stream("lines", timeout=5))


def test_a_run_that_ends_between_two_looks_is_read_to_its_end(env: Environment) -> None:
    handle = env.start(talking.quick)
    client = env.system.binding.client
    plain = Client(store=client.store, engine=client.engine, codec=client.codec)
    looks = []

    class Store:
        """One whose first look comes too early."""

        get = staticmethod(client.store.get)

        def history(self, workflow_id: str, *, run: int, after: int) -> Any:
            looks.append(after)
            return client.store.history(workflow_id, run=run, after=after)[: 0 if len(looks) == 1 else None]

    store: Any = Store()
    events = replace(plain, store=store).news(handle.id, Offset(1, 1), 5)
    assert events is not None
    assert [type(item.event).__name__ for item in events] == ["RunCompleted"]
    assert looks == [1, 1]


def test_following_what_does_not_exist_is_an_error(env: Environment) -> None:
    handle = talking.basket.AsyncResult("nobody")
    for call in (
        lambda: list(handle.stream("lines")),
        lambda: list(handle.stream("lines", follow=False)),
        handle.published,
        lambda: handle.published("phase"),
    ):
        with pytest.raises(WorkflowNotFoundError):
            call()


def test_a_long_history_is_read_from_its_end_for_one_key_and_whole_for_all(env: Environment) -> None:
    store = env.system.store
    store.start(NewRun(workflow_id="long", name="long", payload="[[],{}]", digest="d"))
    turn: Any = store.take("long", "worker#1", known=0)
    notes = [
        LocalStepCompleted(number=n, cause=1, name=f"durable:publish:{n % 1100}", digest="d", payload=str(n))
        for n in range(1, 2502)
    ]
    store.commit(turn.lease, notes, read=1, waiting="", hold=False)
    handle = env.system.binding.handle("long")

    assert len(handle.published()) == 1100
    assert handle.published("0") == 2200
    assert handle.published("301") == 2501
    assert handle.published("none") is None


# --------------------------------------------------------------------------- with start


def test_a_signal_with_start_starts_or_joins(env: Environment) -> None:
    handle = talking.letters.signal_with_start("letter", 0, args=("first 0",), task_id="l")
    talking.letters.signal_with_start("letter", 1, args=("first 1",), task_id="l")
    assert handle.get() == ["first 0", 0, 1]
    with pytest.raises(WorkflowClosedError):
        talking.letters.signal_with_start("letter", 2, args=("first 0",), task_id="l")


def test_a_signal_with_start_that_is_repeated_does_nothing_twice(env: Environment) -> None:
    handle, *_ = [
        talking.letters.signal_with_start("letter", 1, args=("first",), task_id="l", key="one") for _ in range(3)
    ]
    assert len([item for item in handle.history() if isinstance(item.event, SignalReceived)]) == 1
    talking.letters.signal_with_start("letter", 2, args=("other",), task_id="l", key="two")
    assert handle.get() == ["first", 1, 2]
    talking.letters.signal_with_start("letter", 1, args=("first",), task_id="l", key="one")
    assert len(handle.history()) == 4


def test_a_caller_that_died_between_start_and_signal_repeats_both(env: Environment) -> None:
    talking.letters.apply_async(("first",), task_id="l")
    env.settle()
    handle = talking.letters.signal_with_start("letter", 1, args=("first",), task_id="l", key="one")
    handle.signal("letter", 2)
    assert handle.get() == ["first", 1, 2]


def test_nothing_is_started_where_the_word_to_it_is_refused(env: Environment) -> None:
    with pytest.raises(PayloadError):
        talking.letters.signal_with_start("letter", object(), args=("first",), task_id="l")
    with pytest.raises(InvalidRequestError):
        talking.letters.signal_with_start("durable:x", 1, args=("first",), task_id="l")
    with pytest.raises(InvalidRequestError):
        talking.basket.update_with_start("putt", task_id="l", args=("ann",))
    with pytest.raises(InvalidRequestError):
        talking.basket.update_with_start(talking.put, task_id="l", args=("ann",))
    with pytest.raises(TypeError):
        talking.letters.signal_with_start("letter", 1, task_id="l")
    assert env.system.store.get("l") is None


def test_an_id_of_another_workflow_is_not_joined(env: Environment) -> None:
    env.system.binding.app.tasks["tests.testing.talking.counter"].apply_async(task_id="c")
    with pytest.raises(WorkflowConflictError):
        talking.letters.signal_with_start("letter", 1, args=("first",), task_id="c")


def test_a_run_that_closes_between_start_and_signal_is_an_error(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = type(env.system.binding.client)
    add = client.add

    def late(self: Any, workflow_id: str, event: Any, key: str) -> bool:
        env.settle()
        return add(self, workflow_id, event, key)

    monkeypatch.setattr(client, "add", late)
    with pytest.raises(WorkflowClosedError, match="'q' is already completed"):
        talking.quick.signal_with_start("letter", 1, task_id="q")


def test_an_update_with_start_starts_or_joins_and_gives_the_update(env: Environment) -> None:
    def put(item: str, key: str) -> Any:
        return talking.basket.update_with_start(
            talking.put, (item,), {"count": 2}, args=("ann", 2), task_id="b", key=key
        )

    assert put("apple", "one").result() == 1
    assert put("apple", "one").result() == 1
    joined = talking.basket.update_with_start("put", ("pear",), args=("bob",), task_id="b", key="two")
    assert (joined.result(), joined.workflow_id) == (2, "b")
    assert talking.basket.AsyncResult("b").get() == 3
    assert put("apple", "one").result() == 1
    with pytest.raises(WorkflowClosedError):
        put("plum", "three")


# --------------------------------------------------------------------------- declaring


def test_declaring_handlers_does_not_make_the_task_before_its_app_is_configured() -> None:
    app = Celery("later", set_as_current=False)

    @durable_task(app=app)
    def flow(ctx: Any) -> None: ...

    @flow.query
    def status(state: Any) -> None: ...

    @flow.update
    def change(ctx: Any) -> None: ...

    assert not app.configured
    assert not app.finalized
    app.conf.update(task_ignore_result=True, broker_url="memory://")
    app.finalize()
    task: Any = app.tasks[flow.name]
    assert task.ignore_result
    assert task.definition.handlers.queries == {"status": status}
    assert task.definition.handlers.updates == {"change": change}


def test_all_apps_that_share_a_task_have_its_handlers() -> None:
    script = (
        "from celery import Celery\n"
        "from durable_celery import durable_task\n"
        "@durable_task(name='flow')\n"
        "def flow(ctx): ...\n"
        "@flow.query\n"
        "def status(state): ...\n"
        "from celery import _state\n"
        "assert _state.default_app is None\n"
        "for name in 'ab':\n"
        "    app = Celery(name, broker='memory://')\n"
        "    app.finalize()\n"
        "    assert app.tasks['flow'].definition.handlers.queries == {'status': status}\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
