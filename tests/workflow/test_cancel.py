"""Cancelling: a run, a branch, a handle; what code sees of it and what it takes along."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from durable_celery.errors import WorkflowCancelled
from durable_celery.events import CommandCancelled, RunCancelled, RunCompleted, RunFailed
from durable_celery.workflow import AsyncWorkflowContext, WorkflowContext
from tests.workflow.log import CODEC, EPOCH_MS, Run, charge, notify, refund

Code = Callable[..., Any]


def forms(*codes: Code) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("code", codes, ids=["def", "async def"])


def clean_sync(ctx: WorkflowContext) -> None:
    try:
        ctx.step(charge)
    except WorkflowCancelled as error:
        ctx.step(refund, str(error))
        raise


async def clean_async(ctx: AsyncWorkflowContext) -> None:
    try:
        await ctx.step(charge)
    except WorkflowCancelled as error:
        await ctx.step(refund, str(error))
        raise


@forms(clean_sync, clean_async)
def test_a_cancel_reaches_the_code_where_it_waits_and_clean_up_may_run_steps(code: Code) -> None:
    run = Run(code).start()
    run.cancel("changed their mind")
    assert run.cancelled() == [1]
    assert run.tasks() == ["shop.charge", "shop.refund"]
    assert CODEC.decode(run.last.payload)[0] == ["changed their mind"]
    run.complete(1, "too late")
    run.cancel("again")
    run.complete(3)
    assert isinstance(run.last, RunCancelled)
    assert run.result["type"] == "durable_celery.errors.WorkflowCancelled"
    assert run.result["message"] == "changed their mind"
    assert run.replayed().closed


def swallow_sync(ctx: WorkflowContext) -> str:
    try:
        ctx.sleep(60)
    except WorkflowCancelled:
        return "fine"
    return ""


async def swallow_async(ctx: AsyncWorkflowContext) -> str:
    try:
        await ctx.sleep(60)
    except WorkflowCancelled:
        return "fine"
    return ""


@forms(swallow_sync, swallow_async)
def test_code_that_swallows_the_cancel_and_returns_completes(code: Code) -> None:
    run = Run(code).start()
    run.cancel()
    assert run.kinds() == ["TimerStarted", "CommandCancelled", "RunCompleted"]
    assert run.result == "fine"


def fails_sync(ctx: WorkflowContext) -> None:
    try:
        ctx.sleep(60)
    finally:
        raise ValueError("in clean-up")


async def fails_async(ctx: AsyncWorkflowContext) -> None:
    try:
        await ctx.sleep(60)
    finally:
        raise ValueError("in clean-up")


@forms(fails_sync, fails_async)
def test_code_that_fails_while_it_is_cancelled_fails(code: Code) -> None:
    run = Run(code).start()
    run.cancel()
    assert isinstance(run.last, RunFailed)


def open_sync(ctx: WorkflowContext) -> None:
    ctx.start(charge)
    ctx.start(notify)
    ctx.wait_signal("never")


async def open_async(ctx: AsyncWorkflowContext) -> None:
    ctx.start(charge)
    ctx.start(notify)
    await ctx.wait_signal("never")


@forms(open_sync, open_async)
def test_a_cancelled_run_takes_its_open_steps_along(code: Code) -> None:
    run = Run(code).start()
    run.cancel()
    assert [type(event) for event in run.outputs[2:]] == [CommandCancelled, CommandCancelled, RunCancelled]
    assert run.cancelled() == [1, 2]


def detached_sync(ctx: WorkflowContext, fail: bool) -> None:
    ctx.start(charge)
    if fail:
        raise ValueError


async def detached_async(ctx: AsyncWorkflowContext, fail: bool) -> None:
    ctx.start(charge)
    if fail:
        raise ValueError


@pytest.mark.parametrize(("fail", "end"), [(False, RunCompleted), (True, RunFailed)])
@forms(detached_sync, detached_async)
def test_a_run_that_completes_or_fails_leaves_its_open_steps_as_they_are(code: Code, fail: bool, end: type) -> None:
    run = Run(code).start(fail)
    assert isinstance(run.last, end)
    assert run.cancelled() == []


def gathering_sync(ctx: WorkflowContext) -> None:
    ctx.gather(ctx.start(charge), ctx.timer(60), ctx.spawn(clean_sync), ctx.signal("x"))


async def gathering_async(ctx: AsyncWorkflowContext) -> None:
    await ctx.gather(ctx.start(charge), ctx.timer(60), ctx.spawn(clean_branch))


async def clean_branch(ctx: AsyncWorkflowContext) -> None:
    try:
        await ctx.step(charge)
    except asyncio.CancelledError:
        await ctx.step(refund, "branch")
        raise


@forms(gathering_sync, gathering_async)
def test_all_that_the_code_waited_for_is_cancelled_and_branches_may_clean_up(code: Code) -> None:
    run = Run(code).start()
    assert run.kinds() == ["StepScheduled", "TimerStarted", "StepScheduled"]
    run.cancel()
    assert run.cancelled() == [1, 2, 3]
    assert run.tasks()[-1] == "shop.refund"
    assert not run.execution.closed, "the branch cleans up"
    run.complete(7)
    assert isinstance(run.last, RunCancelled)


def branch_sync(ctx: WorkflowContext) -> list[Any]:
    def branch(ctx: WorkflowContext) -> None:
        try:
            ctx.step(charge)
        except WorkflowCancelled:
            ctx.step(refund)
            raise

    handle = ctx.spawn(branch)
    ctx.sleep(10)
    assert handle.cancel()
    assert not handle.done()
    try:
        handle.result()
    except asyncio.CancelledError as error:
        return [type(error).__name__, handle.cancelled(), handle.cancel()]
    return []


async def branch_async(ctx: AsyncWorkflowContext) -> list[Any]:
    handle = ctx.spawn(clean_branch_quiet)
    await ctx.sleep(10)
    assert handle.cancel()
    assert not handle.done()
    try:
        await handle
    except asyncio.CancelledError as error:
        return [type(error).__name__, handle.cancelled(), handle.cancel()]
    return []


async def clean_branch_quiet(ctx: AsyncWorkflowContext) -> None:
    try:
        await ctx.step(charge)
    except asyncio.CancelledError:
        await ctx.step(refund)
        raise


@forms(branch_sync, branch_async)
def test_a_cancelled_branch_cleans_up_before_its_handle_is_done(code: Code) -> None:
    run = Run(code).start()
    run.fire(1)
    assert run.cancelled() == [2]
    run.complete(4)
    assert run.result == ["CancelledError", True, False]
    assert isinstance(run.last, RunCompleted)


def handle_sync(ctx: WorkflowContext) -> str:
    handle = ctx.start(charge)
    assert handle.cancel()
    assert not handle.cancel()
    handle.result()
    return ""


async def handle_async(ctx: AsyncWorkflowContext) -> str:
    handle = ctx.start(charge)
    assert handle.cancel()
    assert not handle.cancel()
    await handle
    return ""


@forms(handle_sync, handle_async)
def test_waiting_for_a_cancelled_handle_is_a_failure_if_nobody_cancelled_the_run(code: Code) -> None:
    run = Run(code).start()
    assert run.kinds() == ["StepScheduled", "CommandCancelled", "RunFailed"]
    assert run.result["type"] == "asyncio.exceptions.CancelledError"


@forms(handle_sync, handle_async)
def test_a_cancel_before_the_gate_opens_ends_the_run_without_running_code(code: Code) -> None:
    run = Run(code).start(start_at=EPOCH_MS + 1000)
    run.cancel("no")
    assert run.kinds() == ["RunCancelled"]
    assert run.result["message"] == "no"
    assert not run.execution.gated
    run.fire(0)
    assert run.kinds() == ["RunCancelled"]
    assert run.replayed().closed


async def timeout_in_clean_up(ctx: AsyncWorkflowContext) -> list[str]:
    seen = []
    try:
        await ctx.step(charge)
    except WorkflowCancelled:
        try:
            async with asyncio.timeout(5):
                await ctx.step(refund)
        except TimeoutError:
            seen.append("timeout")
    return seen


def test_asyncio_timeout_works_in_clean_up_code() -> None:
    run = Run(timeout_in_clean_up).start()
    run.cancel()
    assert run.kinds() == ["StepScheduled", "CommandCancelled", "TimerStarted", "StepScheduled"]
    run.fire(3)
    assert run.result == ["timeout"]


async def group_in_body(ctx: AsyncWorkflowContext) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.step(notify))
            await ctx.step(charge)
    except WorkflowCancelled:
        await ctx.step(refund)
        raise


async def group_at_exit(ctx: AsyncWorkflowContext) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.step(notify))
            group.create_task(ctx.step(charge))
    except WorkflowCancelled:
        await ctx.step(refund)
        raise


@pytest.mark.parametrize("code", [group_in_body, group_at_exit])
def test_a_cancel_passes_a_task_group_as_workflow_cancelled(code: Code) -> None:
    run = Run(code).start()
    assert len(run.tasks()) == 2
    run.cancel()
    assert sorted(run.cancelled()) == [1, 2]
    assert run.tasks()[-1] == "shop.refund"
    run.complete(5)
    assert isinstance(run.last, RunCancelled)


async def timeout_around(ctx: AsyncWorkflowContext) -> None:
    async with asyncio.timeout(60):
        await ctx.step(charge)


def test_a_cancel_passes_asyncio_timeout_as_workflow_cancelled() -> None:
    run = Run(timeout_around).start()
    run.cancel()
    assert sorted(run.cancelled()) == [1, 2]
    assert isinstance(run.last, RunCancelled)


async def child_swallows(ctx: AsyncWorkflowContext) -> list[str]:
    async def deaf() -> str:
        try:
            await ctx.sleep(60)
        except asyncio.CancelledError:
            return "swallowed"
        return ""

    seen = [await asyncio.create_task(deaf())]
    try:
        async with asyncio.timeout(5):
            await ctx.step(charge)
    except TimeoutError:
        seen.append("timeout")
    return seen


def test_a_cancel_that_a_branch_swallowed_is_over() -> None:
    run = Run(child_swallows).start()
    run.cancel()
    run.fire(3)
    assert run.result == ["swallowed", "timeout"]


def raises_sync(ctx: WorkflowContext) -> None:
    raise WorkflowCancelled("by itself")


async def raises_async(ctx: AsyncWorkflowContext) -> None:
    raise WorkflowCancelled("by itself")


@forms(raises_sync, raises_async)
def test_code_may_end_its_run_as_cancelled_by_itself(code: Code) -> None:
    assert isinstance(Run(code).start().last, RunCancelled)


def wait_sync(ctx: WorkflowContext) -> Any:
    def waiter(ctx: WorkflowContext) -> Any:
        return ctx.wait_signal("go")

    handle = ctx.spawn(waiter)
    ctx.step(charge)
    handle.cancel()
    return ctx.wait_signal("go")


async def wait_async(ctx: AsyncWorkflowContext) -> Any:
    async def waiter(ctx: AsyncWorkflowContext) -> Any:
        return await ctx.wait_signal("go")

    handle = ctx.spawn(waiter)
    await ctx.step(charge)
    handle.cancel()
    return await ctx.wait_signal("go")


@forms(wait_sync, wait_async)
def test_a_cancelled_wait_does_not_eat_a_signal(code: Code) -> None:
    run = Run(code).start()
    run.complete(1)
    assert run.execution.waiting == "signal go"
    run.signal("go", 3)
    assert run.result == 3
