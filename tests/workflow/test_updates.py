"""Updates, in both forms, kept and replayed in each turn: one recorded outcome each, whatever else goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from durable_celery.errors import InvalidRequestError, NonDeterminismError, SideEffectError, UpdateError
from durable_celery.events import (
    LocalStepFailed,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunStarted,
    SignalReceived,
    TimerFired,
    TimerStarted,
)
from durable_celery.workflow import (
    UPDATE,
    AsyncWorkflowContext,
    Definition,
    Execution,
    Handlers,
    State,
    WorkflowContext,
)
from tests.workflow.log import CODEC, EPOCH_MS, Run, alive, charge, handlers_of, notify, request

Code = Callable[..., Any]
Begin = Callable[..., Run]


def basket_sync(ctx: WorkflowContext, size: int) -> list[str]:
    ctx.state.items = []
    ctx.wait_until(lambda: len(ctx.state.items) >= size)
    return ctx.state.items  # type: ignore[no-any-return] # a state holds anything


async def basket_async(ctx: AsyncWorkflowContext, size: int) -> list[str]:
    ctx.state.items = []
    await ctx.wait_until(lambda: len(ctx.state.items) >= size)
    return ctx.state.items  # type: ignore[no-any-return] # a state holds anything


@handlers_of(basket_sync).update
def add(ctx: WorkflowContext, item: str, count: int = 1) -> int:
    ctx.step(charge, item)
    ctx.state.items += [item] * count
    return len(ctx.state.items)


@handlers_of(basket_async).update(name="add")
async def add_async(ctx: AsyncWorkflowContext, item: str, count: int = 1) -> int:
    await ctx.step(charge, item)
    ctx.state.items += [item] * count
    return len(ctx.state.items)


def refuse(state: Any, item: str, count: int = 1) -> None:
    if item in state.items or count < 1:
        raise ValueError(f"not {item}")


add.validator(refuse)
add_async.validator(refuse)


@handlers_of(basket_sync).update
def wait(ctx: WorkflowContext) -> str:
    try:
        return str(ctx.wait_signal("go"))
    finally:
        ctx.state.items.append("waited")


@handlers_of(basket_async).update(name="wait")
async def wait_async(ctx: AsyncWorkflowContext) -> str:
    try:
        return str(await ctx.wait_signal("go"))
    finally:
        ctx.state.items.append("waited")


@handlers_of(basket_sync).update
def fail(ctx: WorkflowContext) -> None:
    raise LookupError("nothing there")


@handlers_of(basket_async).update(name="fail")
async def fail_async(ctx: AsyncWorkflowContext) -> None:
    raise LookupError("nothing there")


@handlers_of(basket_sync).update
def strange(ctx: WorkflowContext) -> object:
    return object()


@handlers_of(basket_async).update(name="strange")
async def strange_async(ctx: AsyncWorkflowContext) -> object:
    return object()


basket = pytest.mark.parametrize("code", [basket_sync, basket_async], ids=["def", "async def"])


@basket
def test_an_update_runs_as_a_branch_and_its_result_is_recorded(code: Code, begin: Begin) -> None:
    run = begin(code, 2)
    run.update("add", "apple", count=2)
    assert run.tasks() == ["shop.charge"]
    assert run.outcome() is None

    run.complete(1)

    assert run.outcome() == 2
    assert run.result == ["apple", "apple"]
    assert run.replayed().take_outputs() == ()


@basket
def test_a_validator_refuses_before_anything_is_done(code: Code, begin: Begin) -> None:
    run = begin(code, 2)
    outputs = run.update("add", "apple", count=0)

    assert [type(event) for event in outputs] == [LocalStepFailed]
    assert str(run.outcome()) == "not apple"
    assert isinstance(run.outcome(), ValueError)
    assert run.execution.open_steps == 0


@basket
@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("ad", [], "no update 'ad'; did you mean 'add'"),
        ("other", [], "it has add, fail, push, strange, wait"),
        ("add", [], "missing a required argument: 'item'"),
        ("add", ["apple", 1, 2], "too many positional arguments"),
    ],
)
def test_what_the_workflow_cannot_do_is_refused_by_the_run(
    code: Code, begin: Begin, name: str, args: list[Any], words: str
) -> None:
    run = begin(code, 1)
    run.update(name, *args)

    assert isinstance(run.outcome(), InvalidRequestError)
    assert words in str(run.outcome())
    run.update("add", "apple", key="second")
    run.complete(run.events[-1].event.number)  # type: ignore[attr-defined] # the step that was scheduled last
    assert run.result == ["apple"]


@basket
def test_what_a_handler_raises_is_its_outcome_and_the_run_goes_on(code: Code, begin: Begin) -> None:
    run = begin(code, 1)
    run.update("fail")

    assert isinstance(run.outcome(), LookupError)
    assert "durable_celery/workflow" not in str(run.outcome().__cause__)
    assert not run.execution.closed


@basket
def test_a_result_that_cannot_be_recorded_is_a_failure(code: Code, begin: Begin) -> None:
    run = begin(code, 1)
    run.update("strange")

    assert "the result of update 'strange' cannot be recorded" in str(run.outcome())


@basket
def test_a_key_that_comes_again_is_no_other_request(code: Code, begin: Begin) -> None:
    run = begin(code, 5)
    run.update("add", "apple")
    assert run.update("add", "pear") == []
    run.complete(1)
    assert run.update("add", "pear") == []
    assert run.outcome() == 1


@basket
def test_what_is_no_request_is_ignored(code: Code, begin: Begin, caplog: pytest.LogCaptureFixture) -> None:
    run = begin(code, 5)
    for payload in ("null", "[1, [], {}]", '["k"]', '{"a": 1}'):
        assert run.turn(SignalReceived(name=f"{UPDATE}add", payload=payload)) == []
    assert "is no request of an update" in caplog.text
    run.update("fail")
    assert isinstance(run.outcome(), LookupError)


@basket
def test_updates_go_on_side_by_side_and_end_in_any_order(code: Code, begin: Begin) -> None:
    run = begin(code, 5)
    run.update("wait", key="slow")
    run.update("add", "apple", key="quick")
    run.complete(1)
    assert (run.outcome("slow"), run.outcome("quick")) == (None, 1)
    run.signal("go", "now")
    assert run.outcome("slow") == "now"


@basket
def test_an_update_in_the_batch_of_the_start_finds_the_state_of_code_at_rest(code: Code) -> None:
    run = Run(code)
    start = CODEC.encode([[1], {}], "arguments")
    run.turn(RunStarted(name="test", payload=start), request("add", "apple"))
    assert run.tasks() == ["shop.charge"]
    run.complete(1)
    assert run.result == ["apple"]


@basket
def test_updates_before_a_gated_start_wait_for_it(code: Code) -> None:
    run = Run(code).start(2, start_at=EPOCH_MS + 60_000)
    run.update("add", "apple", key="one")
    run.update("add", "", count=0, key="two")
    assert run.outputs == []

    run.turn(TimerFired(number=0))

    assert run.tasks() == ["shop.charge"]
    assert isinstance(run.outcome("two"), ValueError)
    assert run.replayed().take_outputs() == ()
    run.complete(1)
    assert run.outcome("one") == 1


@handlers_of(basket_sync).update
def push(ctx: WorkflowContext, item: str) -> int:
    ctx.state.items.append(item)
    return len(ctx.state.items)


@handlers_of(basket_async).update(name="push")
async def push_async(ctx: AsyncWorkflowContext, item: str) -> int:
    ctx.state.items.append(item)
    return len(ctx.state.items)


@basket
def test_what_an_update_has_made_true_goes_before_the_next_update(code: Code) -> None:
    run = Run(code).start(1, start_at=EPOCH_MS + 60_000)
    run.update("push", "apple", key="one")
    run.update("push", "pear", key="two")
    run.turn(TimerFired(number=0))

    assert (run.result, run.outcome("one"), run.outcome("two")) == (["apple"], 1, None)


def test_a_handler_that_will_not_end_with_its_run_records_nothing_after_the_end() -> None:
    def code(ctx: WorkflowContext) -> None:
        ctx.wait_signal("end")

    @handlers_of(code).update
    def stubborn(ctx: WorkflowContext) -> str:
        try:
            ctx.wait_signal("never")
        except BaseException:  # noqa: BLE001 - what it does is wrong, and must do no harm
            return "still here"
        return "not reached"

    run = Run(code).start()
    run.update("stubborn")
    run.signal("end")
    assert isinstance(run.last, RunCompleted)
    assert run.execution.take_outputs() == ()


@basket
def test_a_gated_run_that_is_cancelled_has_no_outcome(code: Code) -> None:
    run = Run(code).start(2, start_at=EPOCH_MS + 60_000)
    run.update("add", "apple")
    run.cancel()
    assert isinstance(run.last, RunCancelled)
    assert run.outcome() is None


@basket
def test_a_cancel_of_the_run_cancels_its_updates(code: Code, begin: Begin) -> None:
    run = begin(code, 5)
    run.update("wait")
    run.cancel("enough")

    assert isinstance(run.last, RunCancelled)
    assert isinstance(run.outcome(), UpdateError)
    assert "was cancelled" in str(run.outcome())


def cleaning_sync(ctx: WorkflowContext) -> None:
    try:
        ctx.wait_signal("never")
    finally:
        ctx.step(notify)


async def cleaning_async(ctx: AsyncWorkflowContext) -> None:
    try:
        await ctx.wait_signal("never")
    finally:
        await ctx.step(notify)


@handlers_of(cleaning_sync).update
def late(ctx: WorkflowContext) -> None: ...


@handlers_of(cleaning_async).update(name="late")
async def late_async(ctx: AsyncWorkflowContext) -> None: ...


@pytest.mark.parametrize("code", [cleaning_sync, cleaning_async], ids=["def", "async def"])
def test_an_update_that_comes_after_a_cancel_is_refused(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.cancel()
    run.update("late")
    assert "has been asked to stop" in str(run.outcome())
    run.complete(1)
    assert isinstance(run.last, RunCancelled)


def short_sync(ctx: WorkflowContext, waits: bool) -> int:
    ctx.wait_signal("end")
    if waits:
        ctx.wait_until(lambda: not ctx.open_updates)
    return ctx.open_updates


async def short_async(ctx: AsyncWorkflowContext, waits: bool) -> int:
    await ctx.wait_signal("end")
    if waits:
        await ctx.wait_until(lambda: not ctx.open_updates)
    return ctx.open_updates


@handlers_of(short_sync).update
def work(ctx: WorkflowContext) -> Any:
    return ctx.step(charge)


@handlers_of(short_async).update(name="work")
async def work_async(ctx: AsyncWorkflowContext) -> Any:
    return await ctx.step(charge)


short = pytest.mark.parametrize("code", [short_sync, short_async], ids=["def", "async def"])


@short
def test_the_end_of_the_code_ends_updates_without_an_outcome_and_says_so(
    code: Code, begin: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    run = begin(code, False)
    run.update("work")
    run.signal("end")

    assert isinstance(run.last, RunCompleted)
    assert (run.result, run.outcome()) == (1, None)
    assert "ended before 1 of its updates" in caplog.text


@short
def test_code_can_wait_for_its_updates(code: Code, begin: Begin) -> None:
    run = begin(code, True)
    run.update("work")
    run.signal("end")
    run.turn(request("work", key="another"))
    run.complete(1, "done")
    assert not run.execution.closed

    run.complete(2, "done too")

    assert (run.outcome(), run.outcome("another"), run.result) == ("done", "done too", 0)


@short
def test_an_update_and_the_end_in_one_batch_give_no_outcome_and_do_not_hang(code: Code, begin: Begin) -> None:
    run = begin(code, False)
    run.turn(SignalReceived(name="end", payload="null"), request("work"))
    assert (run.result, run.outcome()) == (0, None)


# --------------------------------------------------------------------------- what a deploy changes


def replay_with(run: Run, code: Code, change: Callable[[Handlers], object]) -> Execution:
    """Replay a history with other handlers."""
    handlers = Handlers(is_async=handlers_of(code)._is_async)
    handlers.updates.update(handlers_of(code).updates)
    change(handlers)
    definition = Definition(name="test", function=code, handlers=handlers)
    execution = Execution(definition, run.workflow_id, codec=CODEC)
    alive.append(execution)
    execution.feed(run.events, fresh_after=len(run.events))
    return execution


@basket
def test_a_refusal_stays_one_when_the_validator_changes(code: Code) -> None:
    run = Run(code).start(9)
    run.update("add", "apple", count=0)

    def allow(handlers: Handlers) -> None:
        update = handlers.updates["add"]
        changed = type(update)(update.name, update.function)
        handlers.updates["add"] = changed

    assert replay_with(run, code, allow).take_outputs() == ()


@basket
def test_a_refusal_of_an_unknown_update_stays_one_when_a_deploy_brings_it(code: Code) -> None:
    run = Run(code).start(9)
    run.update("new")

    def bring(handlers: Handlers) -> None:
        known = handlers.updates["fail"]
        handlers.updates["new"] = type(known)("new", known.function)

    assert replay_with(run, code, bring).take_outputs() == ()


@basket
def test_an_accepted_update_stays_accepted_when_the_validator_refuses_it_now(code: Code) -> None:
    run = Run(code).start(9)
    run.update("add", "apple")
    run.complete(1)

    def forbid(handlers: Handlers) -> None:
        update = handlers.updates["add"]
        changed = type(update)(update.name, update.function)

        @changed.validator
        def no(state: Any, *args: Any, **kwargs: Any) -> None:
            raise ValueError("no more")

        handlers.updates["add"] = changed

    execution = replay_with(run, code, forbid)
    assert execution.take_outputs() == ()
    assert execution.state.items == ["apple"]
    assert execution.old_sides == [(2, 1)]


@basket
def test_a_handler_that_ends_otherwise_than_recorded_is_caught(code: Code) -> None:
    run = Run(code).start(9)
    run.update("push", "apple")

    def break_it(handlers: Handlers) -> None:
        known = handlers.updates["fail"]
        handlers.updates["push"] = type(known)("push", known.function)

    with pytest.raises(NonDeterminismError, match="note update:k"):
        replay_with(run, code, break_it)


@basket
def test_a_request_that_was_changed_is_caught(code: Code) -> None:
    run = Run(code).start(9)
    run.update("push", "apple")
    run.events[1] = replace(run.events[1], event=request("push", "pear"))
    with pytest.raises(NonDeterminismError, match="digest of the arguments"):
        run.replayed()


# --------------------------------------------------------------------------- validators are workflow code


def watched_sync(ctx: WorkflowContext) -> None:
    ctx.wait_signal("never")


async def watched_async(ctx: AsyncWorkflowContext) -> None:
    await ctx.wait_signal("never")


@handlers_of(watched_sync).update
def touch(ctx: WorkflowContext) -> None: ...


@handlers_of(watched_async).update(name="touch")
async def touch_async(ctx: AsyncWorkflowContext) -> None: ...


def look(state: Any) -> None:
    Path("/etc/hostname").read_text()


touch.validator(look)
touch_async.validator(look)


@pytest.mark.parametrize("code", [watched_sync, watched_async], ids=["def", "async def"])
def test_a_validator_that_reaches_outside_blocks_the_run(code: Code) -> None:
    run = Run(code).start()
    with pytest.raises(SideEffectError, match=r"test_updates\.py"):
        run.update("touch")


def exiting_sync(ctx: WorkflowContext) -> None:
    ctx.wait_signal("never")


@handlers_of(exiting_sync).update
def leave(ctx: WorkflowContext) -> None:
    raise SystemExit(3)


def test_an_exit_is_the_updates_outcome_and_not_the_workers(begin: Begin) -> None:
    run = begin(exiting_sync)
    run.update("leave")
    assert "SystemExit" in str(run.outcome())


def test_the_failure_of_the_code_ends_its_updates(begin: Begin) -> None:
    def code(ctx: WorkflowContext) -> None:
        ctx.step(charge)

    handlers_of(code).updates["work"] = work
    run = begin(code)
    run.update("work")
    run.fail(1, ValueError("no"))
    assert isinstance(run.last, RunFailed)
    assert run.outcome() is None


def test_updates_have_timers_and_races_of_their_own(begin: Begin) -> None:
    def code(ctx: WorkflowContext) -> None:
        ctx.wait_signal("never")

    @handlers_of(code).update
    def limited(ctx: WorkflowContext) -> str:
        winner = ctx.race(step=ctx.start(charge), timer=ctx.timer(60))
        return str(winner.name)

    run = begin(code)
    run.update("limited")
    (timer,) = [event.number for event in run.outputs if isinstance(event, TimerStarted)]
    run.fire(timer)
    assert run.outcome() == "timer"
    assert run.cancelled() == [1]


# --------------------------------------------------------------------------- what cannot be a handler


def test_handlers_that_cannot_be_are_refused_at_import() -> None:
    handlers = Handlers()
    handlers.update(lambda _: None, name="one")
    with pytest.raises(InvalidRequestError, match="has an update 'one' already"):
        handlers.update(lambda _: None, name="one")
    with pytest.raises(InvalidRequestError, match="must take the state, or the context"):
        handlers.query(lambda: None, name="two")
    with pytest.raises(InvalidRequestError, match="is not a `def` function, as its workflow is"):
        handlers.update(add_async.function)
    with pytest.raises(InvalidRequestError, match="only looks at the state"):
        handlers.query(add_async.function)
    with pytest.raises(InvalidRequestError, match="is not an `async def` function"):
        Handlers(is_async=True).update(add.function)
    with pytest.raises(InvalidRequestError, match="reserved"):
        handlers.query(lambda _: None, name="durable:x")
    with pytest.raises(InvalidRequestError, match="has a validator already"):
        add.validator(refuse)
    with pytest.raises(InvalidRequestError, match="cannot wait"):
        fail.validator(fail_async.function)


def test_a_handler_is_still_a_function() -> None:
    query = Handlers().query(lambda state: state.items, name="items")
    assert query(State(items=["apple"])) == ["apple"]
    with pytest.raises(AttributeError, match="has not set 'items' in its state"):
        query(State())
