"""Scopes in both forms: what ends a block, what the block's end makes of it, and what goes through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from durable_celery.codec import rebuild
from durable_celery.errors import DurableError, InvalidRequestError, WaitTimeoutError, WorkflowCancelled
from durable_celery.events import CommandCancelled, RunCancelled, RunCompleted, RunFailed, TimerStarted
from durable_celery.workflow import AsyncWorkflowContext, WorkflowContext
from tests.workflow.log import CODEC, EPOCH_MS, Run, charge, notify, refund

Code = Callable[..., Any]
Begin = Callable[..., Run]


def forms(*codes: Code) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("code", codes, ids=["def", "async def"])


def limited_sync(ctx: WorkflowContext, limit: float = 60) -> str:
    seen: list[str] = []
    scope = ctx.timeout(limit)
    try:
        with scope:
            try:
                ctx.gather(ctx.start(charge), ctx.timer(900))
            except asyncio.CancelledError as error:
                seen.append(type(error).__name__)
                raise
            return f"in time, {scope.cancelled}"
    except WaitTimeoutError as error:
        return f"{seen} {error} {scope.cancelled} {ctx.step(notify)}"


async def limited_async(ctx: AsyncWorkflowContext, limit: float = 60) -> str:
    seen: list[str] = []
    scope = ctx.timeout(limit)
    try:
        async with scope:
            try:
                await ctx.gather(ctx.start(charge), ctx.timer(900))
            except asyncio.CancelledError as error:
                seen.append(type(error).__name__)
                raise
            return f"in time, {scope.cancelled}"
    except WaitTimeoutError as error:
        return f"{seen} {error} {scope.cancelled} {await ctx.step(notify)}"


@forms(limited_sync, limited_async)
def test_a_block_that_takes_too_long_is_cancelled_with_all_that_it_waits_for(code: Code, begin: Begin) -> None:
    run = begin(code)
    assert [e.due_at for e in run.outputs if isinstance(e, TimerStarted)] == [EPOCH_MS + 60_000, EPOCH_MS + 900_000]
    run.fire(1)
    assert run.cancelled() == [2, 3]
    run.complete(6, "told")

    assert run.result == "['CancelledError'] the block did not end within 60 s True told"
    assert run.replayed().closed


@forms(limited_sync, limited_async)
def test_a_block_that_ends_in_time_cancels_its_timer(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.complete(2)
    run.fire(3)

    assert run.cancelled() == [1]
    assert run.result == "in time, False"


@forms(limited_sync, limited_async)
def test_no_time_at_all_is_up_when_the_block_first_waits(code: Code, begin: Begin) -> None:
    run = begin(code, 0)

    assert run.kinds() == ["StepScheduled", "TimerStarted", "CommandCancelled", "CommandCancelled", "StepScheduled"]
    run.complete(5)
    assert "did not end within 0 s" in run.result


@forms(limited_sync, limited_async)
@pytest.mark.parametrize("limit", [-1, float("inf"), "60", True])
def test_a_limit_that_cannot_be_meant_is_refused(code: Code, limit: Any) -> None:
    def sync(ctx: WorkflowContext) -> None:
        with ctx.timeout(limit):
            ctx.step(charge)

    async def plain(ctx: AsyncWorkflowContext) -> None:
        async with ctx.timeout(limit):
            await ctx.step(charge)

    run = Run(sync if code is limited_sync else plain).start()

    assert isinstance(rebuild(run.last.payload, CODEC), InvalidRequestError)
    assert run.kinds() == ["RunFailed"]


@forms(limited_sync, limited_async)
def test_a_cancel_of_the_run_goes_through_a_scope(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.cancel("enough")

    assert run.cancelled() == [2, 3, 1]
    assert isinstance(run.last, RunCancelled)
    assert CODEC.decode(run.last.payload)["message"] == "enough"


def ended_sync(ctx: WorkflowContext) -> list[Any]:
    with ctx.cancel_scope() as scope:
        ctx.spawn(ending_sync, scope)
        ctx.sleep(900)
        raise AssertionError
    # Nothing of the cancellation is left.
    ctx.sleep(1)
    return [scope.cancelled, scope.cancel(), ctx.step(charge)]


def ending_sync(ctx: WorkflowContext, scope: Any) -> None:
    ctx.wait_signal("end")
    assert (scope.cancelled, scope.cancel(), scope.cancel(), scope.cancelled) == (False, True, False, True)


async def ended_async(ctx: AsyncWorkflowContext) -> list[Any]:
    async with ctx.cancel_scope() as scope:
        ctx.spawn(ending_async, scope)
        await ctx.sleep(900)
        raise AssertionError
    await ctx.sleep(1)
    return [scope.cancelled, scope.cancel(), await ctx.step(charge)]


async def ending_async(ctx: AsyncWorkflowContext, scope: Any) -> None:
    await ctx.wait_signal("end")
    assert (scope.cancelled, scope.cancel(), scope.cancel(), scope.cancelled) == (False, True, False, True)


@forms(ended_sync, ended_async)
def test_another_branch_ends_a_block_and_the_code_goes_on_behind_it(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.signal("end")
    assert run.cancelled() == [1]
    run.fire(3)
    run.complete(4, "charged")

    assert run.result == [True, False, "charged"]


def own_sync(ctx: WorkflowContext, when: str) -> list[Any]:
    scope = ctx.cancel_scope()
    if when == "before":
        scope.cancel()
    done: list[Any] = []
    with scope:
        if when == "within":
            scope.cancel()
        done.append(ctx.run(len, "ab"))
        ctx.step(charge)
        done.append("not reached")
    with ctx.cancel_scope() as unused:
        unused.cancel()
    return [*done, ctx.step(notify)]


async def own_async(ctx: AsyncWorkflowContext, when: str) -> list[Any]:
    scope = ctx.cancel_scope()
    if when == "before":
        scope.cancel()
    done: list[Any] = []
    async with scope:
        if when == "within":
            scope.cancel()
        done.append(await ctx.run(len, "ab"))
        await ctx.step(charge)
        done.append("not reached")
    async with ctx.cancel_scope() as unused:
        unused.cancel()
    return [*done, await ctx.step(notify)]


@forms(own_sync, own_async)
@pytest.mark.parametrize("when", ["before", "within"])
def test_a_block_that_was_told_to_end_ends_where_it_next_waits(code: Code, begin: Begin, when: str) -> None:
    run = begin(code, when)
    assert run.cancelled() == [2]
    run.complete(4, "told")

    assert run.result == [2, "told"]


def nested_sync(ctx: WorkflowContext, outer: float, inner: float) -> list[str]:
    ended: list[str] = []
    try:
        with ctx.timeout(outer):
            try:
                with ctx.timeout(inner):
                    ctx.step(charge)
            except WaitTimeoutError:
                ended.append("inner")
            ctx.step(refund)
    except WaitTimeoutError:
        ended.append("outer")
    return ended


async def nested_async(ctx: AsyncWorkflowContext, outer: float, inner: float) -> list[str]:
    ended: list[str] = []
    try:
        async with ctx.timeout(outer):
            try:
                async with ctx.timeout(inner):
                    await ctx.step(charge)
            except WaitTimeoutError:
                ended.append("inner")
            await ctx.step(refund)
    except WaitTimeoutError:
        ended.append("outer")
    return ended


@forms(nested_sync, nested_async)
def test_the_outer_of_two_scopes_ends_both(code: Code, begin: Begin) -> None:
    run = begin(code, 5, 10)
    run.fire(1)

    assert run.result == ["outer"]
    assert run.cancelled() == [3, 2]


@forms(nested_sync, nested_async)
def test_the_inner_of_two_scopes_ends_itself_only(code: Code, begin: Begin) -> None:
    run = begin(code, 10, 5)
    run.fire(2)
    assert run.tasks() == ["shop.charge", "shop.refund"]
    run.fire(1)

    assert run.result == ["inner", "outer"]


@forms(nested_sync, nested_async)
def test_two_scopes_whose_time_is_up_at_once_end_both(code: Code, begin: Begin) -> None:
    run = begin(code, 0, 0)

    assert run.result == ["outer"]


def cleaning_sync(ctx: WorkflowContext) -> str:
    with ctx.timeout(60):
        try:
            ctx.step(charge)
        finally:
            ctx.step(refund)
    return "not reached"


async def cleaning_async(ctx: AsyncWorkflowContext) -> str:
    async with ctx.timeout(60):
        try:
            await ctx.step(charge)
        finally:
            await ctx.step(refund)
    return "not reached"


@forms(cleaning_sync, cleaning_async)
def test_a_block_may_clean_up_before_it_ends(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.fire(1)
    assert run.tasks() == ["shop.charge", "shop.refund"]
    run.complete(4)

    assert isinstance(run.last, RunFailed)
    assert isinstance(rebuild(run.last.payload, CODEC), WaitTimeoutError)


@forms(cleaning_sync, cleaning_async)
def test_a_cancel_of_the_run_that_comes_while_a_block_cleans_up_counts(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.fire(1)
    run.cancel("enough")

    assert isinstance(run.last, RunCancelled)
    assert run.cancelled() == [2, 4]


@forms(cleaning_sync, cleaning_async)
def test_a_block_whose_time_is_up_while_it_cleans_up_for_a_cancel_of_the_run_is_cancelled(
    code: Code, begin: Begin
) -> None:
    run = begin(code)
    run.cancel("enough")
    run.fire(1)

    assert isinstance(run.last, RunCancelled)
    assert CODEC.decode(run.last.payload)["message"] == "enough"
    assert run.cancelled() == [2, 4]


def going_on_sync(ctx: WorkflowContext) -> None:
    with ctx.timeout(60):
        with suppress(WorkflowCancelled):
            ctx.step(charge)
        ctx.step(refund)


async def going_on_async(ctx: AsyncWorkflowContext) -> None:
    async with ctx.timeout(60):
        with suppress(WorkflowCancelled):
            await ctx.step(charge)
        await ctx.step(refund)


@forms(going_on_sync, going_on_async)
def test_a_cancel_of_the_run_that_a_block_has_swallowed_does_not_change_how_it_ends(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.cancel("enough")
    run.fire(1)

    assert isinstance(rebuild(run.last.payload, CODEC), WaitTimeoutError)


def shielded_sync(ctx: WorkflowContext) -> str:
    with ctx.timeout(60):
        ctx.shield(ctx.start(charge))
    return "not reached"


async def shielded_async(ctx: AsyncWorkflowContext) -> str:
    async with ctx.timeout(60):
        await ctx.shield(ctx.start(charge))
    return "not reached"


@forms(shielded_sync, shielded_async)
def test_a_shield_holds_off_the_end_of_a_block(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.fire(1)
    assert run.cancelled() == []
    run.complete(2)

    assert isinstance(rebuild(run.last.payload, CODEC), WaitTimeoutError)


@forms(shielded_sync, shielded_async)
@pytest.mark.parametrize("first", ["the run", "the scope"])
def test_a_cancel_of_the_run_and_the_end_of_a_scope_that_reach_the_code_together_are_a_cancel(
    code: Code, begin: Begin, first: str
) -> None:
    run = begin(code)
    if first == "the run":
        run.cancel("enough")
    run.fire(1)
    if first == "the scope":
        run.cancel("enough")
    assert not run.execution.closed
    run.complete(2)

    assert isinstance(run.last, RunCancelled)


def joining_sync(ctx: WorkflowContext) -> str:
    with ctx.timeout(60):
        return ctx.spawn(stubborn_sync).result()


def stubborn_sync(ctx: WorkflowContext) -> str:
    try:
        ctx.step(charge)
    except asyncio.CancelledError:
        return f"late, {ctx.step(refund)}"
    return ""


async def joining_async(ctx: AsyncWorkflowContext) -> str:
    async with ctx.timeout(60):
        return await ctx.spawn(stubborn_async)


async def stubborn_async(ctx: AsyncWorkflowContext) -> str:
    try:
        await ctx.step(charge)
    except asyncio.CancelledError:
        return f"late, {await ctx.step(refund)}"
    return ""


@forms(joining_sync, joining_async)
def test_a_branch_that_swallows_the_end_of_a_block_lets_the_block_return(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.fire(1)
    run.complete(4, "undone")

    assert isinstance(run.last, RunCompleted)
    assert run.result == "late, undone"


@forms(joining_sync, joining_async)
@pytest.mark.parametrize("first", ["the run", "the scope"])
def test_a_cancel_of_the_run_meets_the_end_of_a_scope_in_a_branch(code: Code, begin: Begin, first: str) -> None:
    run = begin(code)
    if first == "the run":
        run.cancel()
    run.fire(1)
    if first == "the scope":
        run.cancel()

    # The second of the two cancels the branch's clean-up.
    assert run.cancelled() == [2, 4] if first == "the scope" else [2, 3]
    assert isinstance(run.last, RunCancelled)


def in_branch_sync(ctx: WorkflowContext) -> list[Any]:
    def branch(inner: WorkflowContext) -> str:
        try:
            with inner.timeout(5):
                inner.wait_signal("never")
        except TimeoutError:
            return "gave up"
        return ""

    return ctx.gather(ctx.spawn(branch), ctx.start(charge))


async def in_branch_async(ctx: AsyncWorkflowContext) -> list[Any]:
    async def branch(inner: AsyncWorkflowContext) -> str:
        try:
            async with inner.timeout(5):
                await inner.wait_signal("never")
        except TimeoutError:
            return "gave up"
        return ""

    return await ctx.gather(ctx.spawn(branch), ctx.start(charge))


@forms(in_branch_sync, in_branch_async)
def test_a_scope_in_a_branch_ends_that_branch_only(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.fire(2)
    assert run.cancelled() == []
    run.complete(1, "charged")

    assert run.result == ["gave up", "charged"]


def branch_cancelled_sync(ctx: WorkflowContext) -> str:
    handle = ctx.spawn(cleaning_sync)
    ctx.wait_signal("cancel")
    handle.cancel()
    try:
        handle.result()
    except asyncio.CancelledError:
        return "cancelled"
    except WaitTimeoutError:
        return "timed out"
    return ""


async def branch_cancelled_async(ctx: AsyncWorkflowContext) -> str:
    handle = ctx.spawn(cleaning_async)
    await ctx.wait_signal("cancel")
    handle.cancel()
    try:
        await handle
    except asyncio.CancelledError:
        return "cancelled"
    except WaitTimeoutError:
        return "timed out"
    return ""


@forms(branch_cancelled_sync, branch_cancelled_async)
def test_a_branch_that_is_cancelled_while_its_scope_ends_is_cancelled(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.fire(1)
    run.signal("cancel")

    assert run.result == "cancelled"


def saga_sync(ctx: WorkflowContext) -> str:
    try:
        with ctx.timeout(60), ctx.saga() as saga:
            saga.compensate(refund, ctx.step(charge))
            ctx.wait_signal("never")
    except WaitTimeoutError:
        return "undone"
    return ""


async def saga_async(ctx: AsyncWorkflowContext) -> str:
    try:
        async with ctx.timeout(60), ctx.saga() as saga:
            saga.compensate(refund, await ctx.step(charge))
            await ctx.wait_signal("never")
    except WaitTimeoutError:
        return "undone"
    return ""


@forms(saga_sync, saga_async)
def test_a_saga_in_a_scope_is_undone_before_the_block_ends(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.complete(2, "c-1")
    run.fire(1)
    assert run.tasks() == ["shop.charge", "shop.refund"]
    run.complete(3)

    assert run.result == "undone"


def failing_sync(ctx: WorkflowContext) -> None:
    with ctx.timeout(60):
        try:
            ctx.step(charge)
        except asyncio.CancelledError:
            raise ValueError("in clean-up") from None


async def failing_async(ctx: AsyncWorkflowContext) -> None:
    async with ctx.timeout(60):
        try:
            await ctx.step(charge)
        except asyncio.CancelledError:
            raise ValueError("in clean-up") from None


@forms(failing_sync, failing_async)
def test_what_a_block_raises_itself_goes_through(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.fire(1)

    assert isinstance(rebuild(run.last.payload, CODEC), ValueError)


def twice_sync(ctx: WorkflowContext) -> None:
    scope = ctx.cancel_scope()
    for _ in range(2):
        with scope:
            ctx.sleep(0)


async def twice_async(ctx: AsyncWorkflowContext) -> None:
    scope = ctx.cancel_scope()
    for _ in range(2):
        async with scope:
            await ctx.sleep(0)


@forms(twice_sync, twice_async)
def test_a_scope_is_for_one_block(code: Code) -> None:
    run = Run(code).start()

    assert "for one `with` block" in str(rebuild(run.last.payload, CODEC))


def test_a_scope_is_not_cancelled_from_outside_the_code() -> None:
    scopes: list[Any] = []

    def code(ctx: WorkflowContext) -> None:
        with ctx.cancel_scope() as scope:
            scopes.append(scope)
            ctx.sleep(5)

    run = Run(code).start()

    with pytest.raises(DurableError, match="outside"):
        scopes[0].cancel()
    assert run.kinds() == ["TimerStarted"]


@forms(limited_sync, limited_async)
def test_an_eviction_passes_a_scope_without_a_command(code: Code) -> None:
    run = Run(code).start()
    before = run.kinds()
    run.execution.evict()

    assert run.execution.take_outputs() == ()
    assert run.kinds() == before


async def mixed(ctx: AsyncWorkflowContext, outer: float, inner: float) -> str:
    try:
        async with asyncio.timeout(outer):
            try:
                async with ctx.timeout(inner):
                    await ctx.step(charge)
            except WaitTimeoutError:
                return "ours"
    except TimeoutError:
        return "asyncio's"
    return ""


@pytest.mark.parametrize(("outer", "inner", "expected"), [(5, 10, "asyncio's"), (10, 5, "ours"), (0, 0, "asyncio's")])
def test_scopes_and_asyncios_own_timeouts_nest(begin: Begin, outer: float, inner: float, expected: str) -> None:
    run = begin(mixed, outer, inner)
    if inner:
        run.fire(1 if outer < inner else 2)

    assert run.result == expected


async def grouped(ctx: AsyncWorkflowContext) -> str:
    async with ctx.cancel_scope() as scope, asyncio.TaskGroup() as tasks:
        tasks.create_task(ctx.step(charge))
        tasks.create_task(ending_async(ctx, scope))
    return f"over {scope.cancelled}"


def test_a_task_group_in_a_scope_is_cancelled_with_it(begin: Begin) -> None:
    run = begin(grouped)
    run.signal("end")

    assert run.result == "over True"
    assert [event.target for event in run.outputs if isinstance(event, CommandCancelled)] == [1]


def test_code_in_a_def_scope_tells_its_end_from_a_cancel_of_the_run(begin: Begin) -> None:
    def code(ctx: WorkflowContext) -> list[str]:
        seen: list[str] = []
        with ctx.cancel_scope() as scope:
            scope.cancel()
            try:
                ctx.step(charge)
            except WorkflowCancelled:
                seen.append("the run")
            except asyncio.CancelledError:
                seen.append("the scope")
                raise
        return seen

    assert begin(code).result == ["the scope"]
