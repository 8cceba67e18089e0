"""Eviction: suspended code is ended, its ``finally`` blocks run, and nothing else happens."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import greenlet
import pytest

from durable_celery.errors import DurableError, Evicted
from durable_celery.workflow import AsyncWorkflowContext, WorkflowContext
from durable_celery.workflow.guard import WorkflowGreenlet
from tests.workflow.log import Run, alive, charge, notify, refund

Code = Callable[..., Any]
SEEN: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    SEEN.clear()


def forms(*codes: Code) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("code", codes, ids=["def", "async def"])


def tidy_sync(ctx: WorkflowContext) -> None:
    handle = ctx.spawn(tidy_branch)
    try:
        ctx.step(charge)
    except Exception:  # noqa: BLE001 - eviction is none
        SEEN.append("caught")
    finally:
        for verb in (lambda: ctx.step(refund), lambda: ctx.sleep(1), ctx.now, lambda: ctx.run(SEEN.append, "ran")):
            try:
                verb()
            except BaseException as error:  # noqa: BLE001 - to see what it is
                SEEN.append(type(error).__name__)
        handle.cancel()
        ctx.logger.error("silent")
        SEEN.append("finally")


def tidy_branch(ctx: WorkflowContext) -> None:
    try:
        ctx.wait_signal("never")
    finally:
        SEEN.append("branch")


async def tidy_async(ctx: AsyncWorkflowContext) -> None:
    handle = ctx.spawn(tidy_branch_async)
    try:
        await ctx.step(charge)
    except Exception:  # noqa: BLE001 - eviction is none
        SEEN.append("caught")
    finally:
        for verb in (lambda: ctx.step(refund), lambda: ctx.sleep(1), lambda: ctx.run(SEEN.append, "ran")):
            try:
                await verb()
            except BaseException as error:  # noqa: BLE001 - to see what it is
                SEEN.append(type(error).__name__)
        try:
            ctx.now()
        except BaseException as error:  # noqa: BLE001 - to see what it is
            SEEN.append(type(error).__name__)
        handle.cancel()
        ctx.logger.error("silent")
        SEEN.append("finally")


async def tidy_branch_async(ctx: AsyncWorkflowContext) -> None:
    try:
        await ctx.wait_signal("never")
    finally:
        SEEN.append("branch")


@forms(tidy_sync, tidy_async)
def test_finally_blocks_run_branches_first_and_no_verb_does_anything(
    code: Code, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(code).start()
    before = run.kinds()
    run.execution.evict()
    assert ["branch", *["Evicted"] * 4, "finally"] == SEEN
    assert run.execution.take_outputs() == ()
    assert run.kinds() == before
    assert caplog.records == []
    run.execution.evict()
    assert len(SEEN) == 6, "eviction may be repeated"


@forms(tidy_sync, tidy_async)
def test_a_replay_goes_on_where_the_evicted_execution_stood(code: Code) -> None:
    run = Run(code).start()
    run.go_cold()
    SEEN.clear()
    run.execution.evict()
    assert SEEN[0] == "branch"


@forms(tidy_sync, tidy_async)
def test_an_evicted_execution_takes_no_events(code: Code) -> None:
    run = Run(code).start()
    run.execution.evict()
    with pytest.raises(DurableError, match="new one"):
        run.complete(1)


@forms(tidy_sync, tidy_async)
def test_an_execution_that_was_never_fed_can_be_evicted(code: Code) -> None:
    Run(code).execution.evict()


async def stubborn(ctx: AsyncWorkflowContext) -> None:
    while True:
        try:
            await asyncio.get_running_loop().create_future()
        except BaseException as error:  # noqa: BLE001 - to see what it is
            SEEN.append(type(error).__name__)


async def greedy_async(ctx: AsyncWorkflowContext) -> None:
    while True:
        try:
            await ctx.step(charge)
        except BaseException as error:  # noqa: BLE001 - to see what it is
            SEEN.append(type(error).__name__)


def greedy(ctx: WorkflowContext) -> None:
    while True:
        try:
            ctx.step(charge)
        except BaseException as error:  # noqa: BLE001 - to see what it is
            SEEN.append(type(error).__name__)


@pytest.mark.parametrize("code", [greedy, greedy_async, stubborn])
def test_code_that_will_not_end_is_left_behind_and_nothing_hangs(code: Code) -> None:
    run = Run(code).start()
    run.execution.evict()
    assert 0 < len(SEEN) < 100
    assert SEEN[0] == "Evicted"


@pytest.mark.parametrize("name", ["greedy", "greedy_async", "stubborn"])
def test_a_process_with_code_that_will_not_end_ends(name: str) -> None:
    script = f"""
from tests.workflow import test_eviction
run = test_eviction.Run(test_eviction.{name}).start()
run.execution.evict()
print("evicted")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert "evicted" in done.stdout


async def awaiting_in_finally(ctx: AsyncWorkflowContext) -> None:
    try:
        await ctx.step(charge)
    finally:
        for index in range(3):
            try:
                await asyncio.sleep(1)
            finally:
                SEEN.append(str(index))


def test_code_that_awaits_in_finally_is_told_again() -> None:
    run = Run(awaiting_in_finally).start()
    run.execution.evict()
    assert SEEN == ["0"]


async def spawning_in_finally(ctx: AsyncWorkflowContext) -> None:
    try:
        await ctx.step(charge)
    finally:
        asyncio.create_task(asyncio.sleep(5))  # noqa: RUF006 - the mistake


def test_tasks_that_clean_up_code_starts_are_ended_too() -> None:
    run = Run(spawning_in_finally).start()
    run.execution.evict()


async def groups(ctx: AsyncWorkflowContext) -> None:
    async with asyncio.TaskGroup() as group:
        for index in range(3):
            group.create_task(ctx.step(charge, index))
        async with asyncio.timeout(5):
            await asyncio.gather(ctx.step(notify), ctx.step(notify))


def test_task_groups_timeouts_and_gathers_are_unwound() -> None:
    run = Run(groups).start()
    before = run.kinds()
    run.execution.evict()
    assert run.execution.take_outputs() == ()
    assert run.kinds() == before


def suspended() -> set[greenlet.greenlet]:
    return {each for each in gc.get_objects() if type(each) is WorkflowGreenlet and not each.dead}


@forms(tidy_sync, tidy_async)
def test_nothing_is_left_to_garbage_collection(code: Code) -> None:
    before = suspended()
    run = Run(code).start()
    assert bool(suspended() - before) is (code is tidy_sync), "async code holds no greenlet between turns"
    run.execution.evict()
    assert not suspended() - before
    gone = weakref.ref(run.execution)
    alive.clear()
    del run
    gc.collect()
    assert gone() is None


def in_thread(work: Callable[[], object]) -> list[BaseException]:
    errors: list[BaseException] = []

    def call() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - to see what it is
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return errors


def test_an_async_execution_may_go_on_in_another_thread() -> None:
    async def code(ctx: AsyncWorkflowContext) -> list[Any]:
        return [await ctx.step(charge), await ctx.run(threading.get_ident)]

    run = Run(code).start()
    assert in_thread(lambda: run.complete(1, 5)) == []
    assert run.result[0] == 5
    assert run.result[1] != threading.get_ident()
    again = Run(tidy_async).start()
    assert in_thread(again.execution.evict) == []
    assert SEEN[0] == "branch"


def test_a_def_execution_is_bound_to_its_thread() -> None:
    run = Run(tidy_sync).start()
    for work in (lambda: run.complete(1), run.execution.evict):
        (error,) = in_thread(work)
        assert isinstance(error, DurableError)
    run.execution.evict()
    assert SEEN[-1] == "finally"


def test_evicted_is_no_exception_that_user_code_catches_by_habit() -> None:
    assert not issubclass(Evicted, Exception)
    assert not issubclass(Evicted, asyncio.CancelledError)


def ends_sync(ctx: WorkflowContext) -> None:
    ctx.spawn(tidy_branch)
    ctx.step(charge)


async def ends_async(ctx: AsyncWorkflowContext) -> None:
    ctx.spawn(tidy_branch_async)
    await ctx.step(charge)


@forms(ends_sync, ends_async)
def test_branches_that_are_left_at_the_end_are_unwound_at_once(code: Code) -> None:
    run = Run(code).start()
    run.complete(1)
    assert run.execution.closed
    assert SEEN == ["branch"]
