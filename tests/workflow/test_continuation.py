"""continue_as_new: how the code leaves, what goes along, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from durable_celery.errors import InvalidRequestError, PayloadError, WorkflowCancelled
from durable_celery.events import (
    CancelRequested,
    RunContinued,
    RunStarted,
    SignalReceived,
    StepCompleted,
    StepScheduled,
)
from durable_celery.workflow import AsyncWorkflowContext, WorkflowContext
from durable_celery.workflow.size import SUGGESTED_BYTES, SUGGESTED_EVENTS
from tests.workflow.log import CODEC, Run, charge, child, notify

Begin = Callable[..., Run]


def continuation(run: Run) -> RunContinued:
    assert isinstance(run.last, RunContinued), run.last
    return run.last


def test_blocking_code_goes_on_with_new_arguments(begin: Begin) -> None:
    def code(ctx: WorkflowContext, month: int, plan: str) -> None:
        ctx.step(charge, month)
        ctx.continue_as_new(month + 1, plan=plan)

    run = begin(code, 1, "basic")
    run.complete(1)

    assert run.kinds() == ["StepScheduled", "RunContinued"]
    assert CODEC.decode(continuation(run).payload) == [[2], {"plan": "basic"}]
    assert run.execution.closed
    assert run.execution.waiting == ""


def test_awaiting_code_goes_on_with_new_arguments(begin: Begin) -> None:
    async def code(ctx: AsyncWorkflowContext, month: int) -> None:
        await ctx.step(charge, month)
        ctx.continue_as_new(month + 1)

    run = begin(code, 1)
    run.complete(1)

    assert CODEC.decode(continuation(run).payload) == [[2], {}]


def test_a_replay_of_the_old_run_agrees(begin: Begin) -> None:
    def code(ctx: WorkflowContext) -> None:
        ctx.wait_signal("go")
        ctx.continue_as_new()

    run = begin(code)
    run.signal("go")

    replayed = run.replayed()

    assert replayed.closed
    assert replayed.take_outputs() == ()


def test_blocks_around_it_are_left_as_by_a_return(begin: Begin) -> None:
    seen: list[str] = []

    def code(ctx: WorkflowContext) -> None:
        try:
            ctx.continue_as_new()
        except Exception:  # noqa: BLE001 - what must not happen
            seen.append("caught")
        finally:
            seen.append(ctx.step(notify))

    run = begin(code)
    assert run.kinds() == ["StepScheduled"]
    run.complete(1, "told")

    assert seen[-1] == "told"
    assert "caught" not in seen
    assert run.kinds() == ["StepScheduled", "RunContinued"]


def test_code_cannot_swallow_it(begin: Begin) -> None:
    def code(ctx: WorkflowContext) -> str:
        try:
            ctx.continue_as_new()
        except BaseException:  # noqa: BLE001 - what the test is about
            return "no"

    assert begin(code).kinds() == ["RunContinued"]


def test_a_failure_on_the_way_out_ends_the_run_as_on_a_return(begin: Begin) -> None:
    def code(ctx: WorkflowContext) -> None:
        try:
            ctx.continue_as_new()
        finally:
            ctx.step(notify)

    run = begin(code)
    run.fail(1, ValueError("no"))

    assert run.kinds() == ["StepScheduled", "RunFailed"]


def test_a_cancel_on_the_way_out_cancels_the_run(begin: Begin) -> None:
    def code(ctx: WorkflowContext) -> None:
        try:
            ctx.continue_as_new()
        finally:
            ctx.step(notify)

    run = begin(code)
    run.cancel("stop")

    assert run.kinds()[-1] == "RunCancelled"


def test_the_last_call_counts(begin: Begin) -> None:
    def code(ctx: WorkflowContext, number: int) -> None:
        try:
            ctx.continue_as_new(number + 1)
        finally:
            ctx.continue_as_new(number + 2)

    assert CODEC.decode(continuation(begin(code, 1)).payload) == [[3], {}]


def test_a_saga_around_it_is_not_undone(begin: Begin) -> None:
    def code(ctx: WorkflowContext) -> None:
        with ctx.saga() as saga:
            saga.compensate(notify)
            ctx.continue_as_new()

    assert begin(code).kinds() == ["RunContinued"]


def test_a_saga_of_async_code_is_not_undone(begin: Begin) -> None:
    async def code(ctx: AsyncWorkflowContext) -> None:
        async with ctx.saga() as saga:
            saga.compensate(notify)
            ctx.continue_as_new()

    assert begin(code).kinds() == ["RunContinued"]


def test_a_task_group_around_it_does_not_hide_it(begin: Begin) -> None:
    async def code(ctx: AsyncWorkflowContext) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(60))
            await ctx.sleep(1)
            ctx.continue_as_new()

    run = begin(code)
    run.fire(1)

    assert run.kinds()[-1] == "RunContinued"


def test_a_task_group_with_a_failure_besides_it_is_a_failure(begin: Begin) -> None:
    async def code(ctx: AsyncWorkflowContext) -> None:
        async def fails() -> None:
            try:
                await ctx.sleep(60)
            finally:
                raise ValueError("no")

        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            await ctx.sleep(1)
            ctx.continue_as_new()

    run = begin(code)
    run.fire(min(run.outputs, key=lambda timer: getattr(timer, "due_at", 0)).number)

    assert run.kinds()[-1] == "RunFailed"


# What goes along. -----------------------------------------------------------------------------------------------------


def test_signals_that_nobody_waited_for_go_along(begin: Begin) -> None:
    def code(ctx: WorkflowContext) -> None:
        ctx.wait_signal("taken")
        ctx.wait_signal("go")
        ctx.continue_as_new()

    run = begin(code)
    for name in ("kept", "taken", "other", "kept"):
        run.signal(name)
    run.signal("go")

    names = [run.events[seq - 1].event for seq in continuation(run).kept]
    assert [event.name for event in names if isinstance(event, SignalReceived)] == ["kept", "other", "kept"]


def test_a_signal_that_the_code_has_not_looked_at_goes_along(begin: Begin) -> None:
    def code(ctx: WorkflowContext) -> None:
        looked, unseen = ctx.signal("a"), ctx.signal("a")
        ctx.step(charge)
        looked.result()
        assert unseen.done()
        ctx.continue_as_new()

    run = begin(code)
    run.signal("a", 1)
    run.signal("a", 2)
    run.complete(1)

    assert continuation(run).kept == (4,)


def test_a_signal_that_async_code_has_not_looked_at_goes_along(begin: Begin) -> None:
    async def code(ctx: AsyncWorkflowContext) -> None:
        looked, unseen, gathered = ctx.signal("a"), ctx.signal("a"), ctx.signal("a")
        await ctx.step(charge)
        await looked
        await asyncio.gather(gathered)
        assert unseen.done()
        ctx.continue_as_new()

    run = begin(code)
    for value in range(3):
        run.signal("a", value)
    run.complete(1)

    assert continuation(run).kept == (4,)


def test_a_signal_that_lost_a_race_goes_along(begin: Begin) -> None:
    def code(ctx: WorkflowContext) -> None:
        ctx.step(charge)
        ctx.race(a=ctx.signal("a"), b=ctx.signal("b"))
        ctx.continue_as_new()

    run = begin(code)
    run.signal("a")
    run.signal("b")
    run.complete(1)

    assert continuation(run).kept == (4,)


def test_what_comes_in_the_turn_that_ends_the_run_goes_along(begin: Begin) -> None:
    def code(ctx: WorkflowContext) -> None:
        ctx.step(charge)
        ctx.continue_as_new()

    run = begin(code)
    result = StepCompleted(number=1, payload="1")
    run.turn(result, SignalReceived(name="late", payload="1"), CancelRequested(reason="late"))

    assert continuation(run).kept == (4, 5)


def test_open_timers_and_steps_of_branches_are_left(begin: Begin) -> None:
    def code(ctx: WorkflowContext) -> None:
        ctx.spawn(lambda inner: inner.step(charge))
        ctx.timer(60)
        ctx.step(notify)
        ctx.continue_as_new()

    run = begin(code)
    number = next(e.number for e in run.outputs if isinstance(e, StepScheduled) and e.task == notify.name)
    run.complete(number)

    assert run.kinds() == ["TimerStarted", "StepScheduled", "StepScheduled", "RunContinued"]


def test_children_are_treated_as_at_the_end(begin: Begin) -> None:
    def code(ctx: WorkflowContext) -> None:
        ctx.options(parent_close="cancel").start(child)
        ctx.options(parent_close="abandon").start(child)
        ctx.options(parent_close="wait").start(child)
        ctx.continue_as_new()

    run = begin(code)
    assert run.kinds() == ["StepScheduled"] * 3
    run.complete(3)

    assert run.cancelled() == [1]
    assert run.kinds()[-1] == "RunContinued"


# What is refused. -----------------------------------------------------------------------------------------------------


def test_a_branch_may_not_call_it(begin: Begin) -> None:
    def code(ctx: WorkflowContext) -> str:
        with pytest.raises(InvalidRequestError, match="in a branch"):
            ctx.spawn(lambda inner: inner.continue_as_new()).result()
        return "done"

    assert begin(code).kinds() == ["RunCompleted"]


def test_a_task_of_async_code_may_not_call_it(begin: Begin) -> None:
    async def code(ctx: AsyncWorkflowContext) -> str:
        async def task() -> None:
            ctx.continue_as_new()

        with pytest.raises(InvalidRequestError, match="in a branch"):
            await asyncio.gather(task())
        return "done"

    assert begin(code).kinds() == ["RunCompleted"]


@pytest.mark.parametrize("is_caught", [False, True])
def test_a_cancelled_run_does_not_begin_anew(begin: Begin, *, is_caught: bool) -> None:
    def code(ctx: WorkflowContext) -> None:
        try:
            ctx.wait_signal("never")
        except WorkflowCancelled:
            if not is_caught:
                ctx.continue_as_new()
        ctx.step(notify)
        ctx.continue_as_new()

    run = begin(code)
    run.cancel("stop")
    if is_caught:
        run.complete(1)

    assert run.kinds()[-1] == "RunCancelled"
    assert "stop" in str(run.result["message"])


def test_a_cancelled_run_of_async_code_does_not_begin_anew(begin: Begin) -> None:
    async def code(ctx: AsyncWorkflowContext) -> None:
        try:
            await ctx.wait_signal("never")
        finally:
            ctx.continue_as_new()

    run = begin(code)
    run.cancel("stop")

    assert run.kinds() == ["RunCancelled"]


@pytest.mark.parametrize(
    ("args", "error"),
    [((1, 2), TypeError), ((object(),), PayloadError), ((), TypeError)],
)
def test_arguments_that_cannot_be_meant_are_refused_at_the_call(
    begin: Begin, args: tuple[Any, ...], error: type[Exception]
) -> None:
    def code(ctx: WorkflowContext, number: int) -> str:
        if number:
            with pytest.raises(error):
                ctx.continue_as_new(*args)
        return "went on"

    assert begin(code, 1).kinds() == ["RunCompleted"]


def test_a_changed_signature_does_not_spoil_the_replay_of_an_old_run() -> None:
    def before(ctx: WorkflowContext, number: int) -> None:
        ctx.continue_as_new(number + 1)

    def after(ctx: WorkflowContext, number: int, *, plan: str = "", **more: Any) -> None:
        ctx.continue_as_new(number + 1, plan, "one too many")

    run = Run(before).start(1)
    run.definition = Run(after).definition

    assert run.replayed().closed


# The size of a history. -----------------------------------------------------------------------------------------------


def test_code_is_told_the_size_of_its_history_the_same_on_every_replay(begin: Begin) -> None:
    told: list[tuple[int, int]] = []

    def code(ctx: WorkflowContext) -> list[Any]:
        seen = [[ctx.info.history_length, ctx.info.history_bytes]]
        for number in range(3):
            ctx.run(str, number)
            ctx.step(charge, "x" * 100 * number)
            seen.append([ctx.info.history_length, ctx.info.history_bytes])
        told.append((ctx.info.history_length, ctx.info.history_bytes))
        return seen

    run = begin(code)
    for number in (2, 4, 6):
        run.complete(number, "y" * 50)

    lengths = [60 + len(item.event.payload or "") for item in run.events]
    expected = [[seq, sum(lengths[:seq])] for seq in (1, 4, 7, 10)]
    assert run.result == expected
    assert set(told) == {(10, sum(lengths[:10]))}


@pytest.mark.parametrize("batch", [1, 3])
def test_the_size_does_not_depend_on_batches(batch: int) -> None:
    def code(ctx: WorkflowContext) -> None:
        for _ in range(6):
            ctx.wait_signal("go")
            # What differs from the record would be found by its digest.
            ctx.start(charge, ctx.info.history_length, ctx.info.history_bytes)

    run = Run(code).start()
    for at in range(0, 6, batch):
        run.turn(*[SignalReceived(name="go", payload=str(at + number)) for number in range(batch)])

    assert run.replayed().closed
    assert len(run.tasks()) == 6


def test_continuing_is_suggested_when_the_history_is_long() -> None:
    def code(ctx: WorkflowContext) -> list[Any]:
        seen = [ctx.info.continue_as_new_suggested]
        while not seen[-1]:
            ctx.wait_signal("go")
            seen.append(ctx.info.continue_as_new_suggested)
        return [len(seen) == ctx.info.history_length, *seen[-2:]]

    run = Run(code).start()
    run.turn(*[SignalReceived(name="go", payload="1")] * (SUGGESTED_EVENTS - 1))

    assert run.result == [True, False, True]


def test_continuing_is_suggested_when_the_history_is_large() -> None:
    def code(ctx: WorkflowContext) -> list[Any]:
        before = ctx.info.continue_as_new_suggested
        ctx.wait_signal("large")
        return [before, ctx.info.continue_as_new_suggested, ctx.info.history_length]

    run = Run(code).start()
    run.turn(SignalReceived(name="large", payload='"' + "x" * SUGGESTED_BYTES + '"'))

    assert run.result == [False, True, 2]


def test_a_continuation_reads_lists_as_json_has_them() -> None:
    assert RunContinued(number=1, cause=1, kept=[3, 4]) == RunContinued(number=1, cause=1, kept=(3, 4))
    assert RunStarted(name="x").format == RunContinued(number=1, cause=1).format
