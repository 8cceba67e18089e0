"""Plain asyncio in an ``async def`` workflow: it works, it is durable, and its order does not depend on addresses."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest

from durable_celery.codec import rebuild
from durable_celery.errors import SideEffectError, WorkflowCancelled
from durable_celery.events import RunCancelled, RunCompleted, RunFailed, StepScheduled
from durable_celery.workflow import AsyncWorkflowContext
from tests.workflow.log import CODEC, Run, charge, notify, refund


async def gather(ctx: AsyncWorkflowContext) -> list[Any]:
    return [*await asyncio.gather(ctx.step(charge), ctx.start(notify), ctx.spawn(branch))]


async def branch(ctx: AsyncWorkflowContext) -> str:
    return str(await ctx.step(refund))


def test_gather() -> None:
    run = Run(gather).start()
    assert sorted(run.tasks()) == ["shop.charge", "shop.notify", "shop.refund"]
    by_task = {event.task: event.number for event in run.outputs if isinstance(event, StepScheduled)}
    for task in ("shop.refund", "shop.charge", "shop.notify"):
        run.complete(by_task[task], task)
    assert run.result == ["shop.charge", "shop.notify", "shop.refund"]


async def sleeping(ctx: AsyncWorkflowContext) -> float:
    loop = asyncio.get_running_loop()
    begin = loop.time()
    await asyncio.sleep(86400)
    await asyncio.sleep(0)
    return loop.time() - begin


def test_sleep_is_a_durable_timer() -> None:
    run = Run(sleeping).start()
    assert run.execution.waiting == "timer (1) until 2026-11-23 16:00:00"
    run.go_cold()
    run.fire(1)
    assert run.result == 86400


async def timing_out(ctx: AsyncWorkflowContext, how: str) -> str:
    try:
        if how == "timeout":
            async with asyncio.timeout(5):
                return str(await ctx.step(charge))
        return str(await asyncio.wait_for(ctx.step(charge), 5))
    except TimeoutError:
        return "too late"


@pytest.mark.parametrize("how", ["timeout", "wait_for"])
def test_a_timeout_cancels_the_step_it_waited_for(how: str) -> None:
    run = Run(timing_out).start(how)
    timer = next(event.number for event in run.outputs if type(event).__name__ == "TimerStarted")
    run.fire(timer)
    assert run.result == "too late"
    assert run.cancelled() == [3 - timer]


@pytest.mark.parametrize("how", ["timeout", "wait_for"])
def test_a_timeout_that_was_not_needed_cancels_its_timer(how: str) -> None:
    run = Run(timing_out).start(how)
    timer = next(event.number for event in run.outputs if type(event).__name__ == "TimerStarted")
    run.complete(3 - timer, "paid")
    assert run.result == "paid"
    assert run.cancelled() == [timer]


async def timing_out_while_cleaning_up(ctx: AsyncWorkflowContext, how: str) -> str:
    async def work() -> None:
        try:
            await ctx.step(charge)
        finally:
            await ctx.step(refund)

    try:
        if how == "timeout":
            async with asyncio.timeout(60):
                await work()
        else:
            await asyncio.wait_for(work(), 60)
    except TimeoutError:
        return "timed out"
    return "not reached"


@pytest.mark.parametrize("how", ["timeout", "wait_for"])
def test_a_timeout_that_fires_while_code_cleans_up_for_a_cancel_of_the_run_does_not_swallow_the_cancel(
    how: str,
) -> None:
    run = Run(timing_out_while_cleaning_up).start(how)
    run.cancel("enough")
    assert run.tasks() == ["shop.charge", "shop.refund"]
    run.fire(1)
    if how == "wait_for" and sys.version_info < (3, 12):
        # It lets the clean-up end.
        run.complete(next(e.number for e in run.outputs if isinstance(e, StepScheduled) and e.task == "shop.refund"))

    assert isinstance(run.last, RunCancelled)
    assert CODEC.decode(run.last.payload)["message"] == "enough"


@pytest.mark.parametrize("how", ["timeout", "wait_for"])
def test_a_timeout_whose_block_cleans_up_in_time_for_a_cancel_of_the_run_is_no_timeout(how: str) -> None:
    run = Run(timing_out_while_cleaning_up).start(how)
    run.cancel("enough")
    run.complete(next(e.number for e in run.outputs if isinstance(e, StepScheduled) and e.task == "shop.refund"))

    assert isinstance(run.last, RunCancelled)


async def cancelled_before(ctx: AsyncWorkflowContext) -> str:
    with suppress(WorkflowCancelled):
        await ctx.step(charge)
    try:
        async with asyncio.timeout(60):
            await ctx.step(refund)
    except TimeoutError:
        return "timed out"
    return "not reached"


def test_a_timeout_after_a_cancel_that_the_code_has_answered_is_a_timeout() -> None:
    run = Run(cancelled_before).start()
    run.cancel()
    run.fire(3)
    assert run.result == "timed out"


async def group(ctx: AsyncWorkflowContext) -> list[Any]:
    async with asyncio.TaskGroup() as tasks:
        made = [tasks.create_task(ctx.step(charge, index)) for index in range(3)]
    return [task.result() for task in made]


def test_a_task_group_collects_its_tasks() -> None:
    run = Run(group).start()
    for number in (2, 3, 1):
        run.complete(number, number)
    assert run.result == [1, 2, 3]


def test_a_failing_task_of_a_group_cancels_the_others_in_the_order_of_their_creation() -> None:
    run = Run(group).start()
    run.fail(2, ValueError("two"))
    assert run.cancelled() == [1, 3]
    assert isinstance(run.last, RunFailed)
    assert "ExceptionGroup" in run.result["type"]


async def many_in_a_group(ctx: AsyncWorkflowContext) -> None:
    async with asyncio.TaskGroup() as tasks:
        for index in range(50):
            tasks.create_task(ctx.step(charge, index))


def test_the_order_of_fifty_cancelled_tasks_is_the_same_in_every_replay() -> None:
    orders = set()
    for _ in range(3):
        run = Run(many_in_a_group).start()
        padding = [bytearray(index) for index in range(100)]
        run.fail(25, ValueError())
        orders.add(tuple(run.cancelled()))
        assert run.replayed().closed
        del padding
    assert len(orders) == 1


async def waiting(ctx: AsyncWorkflowContext) -> list[Any]:
    handles = {ctx.start(charge, index) for index in range(10)}
    done, pending = await asyncio.wait(handles, return_when=asyncio.FIRST_COMPLETED)
    for handle in pending:
        handle.cancel()
    return [await handle for handle in done]


def test_wait_takes_a_set_of_handles_in_a_fixed_order() -> None:
    run = Run(waiting).start()
    run.complete(4, "four")
    assert run.result == ["four"]
    assert sorted(run.cancelled()) == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert run.replayed().closed


async def completing(ctx: AsyncWorkflowContext, how: str) -> list[Any]:
    make: dict[str, Callable[[int], Any]] = {
        "handles": lambda index: ctx.start(charge, index),
        "coroutines": lambda index: ctx.step(charge, index),
        "branches": lambda index: numbered(ctx, index),
    }
    awaitables = [make[how](index) for index in range(8)]
    return [await future for future in asyncio.as_completed(awaitables)]


async def numbered(ctx: AsyncWorkflowContext, index: int) -> Any:
    return await ctx.step(charge, index)


@pytest.mark.parametrize("how", ["handles", "coroutines", "branches"])
def test_as_completed_starts_in_the_order_of_its_list_and_gives_results_as_they_come(how: str) -> None:
    run = Run(completing).start(how)
    arguments = [CODEC.decode(event.payload)[0] for event in run.outputs]
    assert arguments == [[index] for index in range(8)]
    order = [5, 2, 8, 1, 3, 4, 7, 6]
    for number in order:
        run.complete(number, number)
    assert run.result == order


async def completing_a_set(ctx: AsyncWorkflowContext) -> None:
    for future in asyncio.as_completed({ctx.step(charge, index) for index in range(3)}):
        await future


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_as_completed_of_a_set_of_coroutines_is_refused_because_its_order_is_lost() -> None:
    with pytest.raises(SideEffectError, match="give it a list"):
        Run(completing_a_set).start()


async def queueing(ctx: AsyncWorkflowContext) -> list[Any]:
    queue: asyncio.Queue[Any] = asyncio.Queue(maxsize=1)
    seen: list[Any] = []

    async def consume() -> None:
        while (item := await queue.get()) is not None:
            seen.append([item, await ctx.step(charge, item)])

    consumer = asyncio.create_task(consume())
    for item in (1, 2, 3, None):
        await queue.put(item)
    await consumer
    return seen


def test_queue() -> None:
    run = Run(queueing).start()
    for number in (1, 2, 3):
        assert run.tasks() == ["shop.charge"] * number
        run.go_cold()
        run.complete(number, number * 10)
    assert run.result == [[1, 10], [2, 20], [3, 30]]


async def synchronising(ctx: AsyncWorkflowContext) -> list[str]:
    event, lock, slots = asyncio.Event(), asyncio.Lock(), asyncio.Semaphore(2)
    condition = asyncio.Condition()
    seen: list[str] = []

    async def work(name: str) -> None:
        await event.wait()
        async with slots:
            async with lock:
                seen.append(f"{name} begins")
            await ctx.step(charge, name)
            seen.append(f"{name} ends")
        async with condition:
            condition.notify_all()

    tasks = [asyncio.create_task(work(name)) for name in "abc"]
    await asyncio.sleep(1)
    event.set()
    async with condition:
        await condition.wait_for(lambda: len(seen) == 6)
    await asyncio.gather(*tasks)
    return seen


def test_event_lock_semaphore_and_condition() -> None:
    run = Run(synchronising).start()
    run.fire(1)
    assert len(run.tasks()) == 2
    run.complete(2)
    run.complete(4)
    run.complete(3)
    assert run.result == ["a begins", "b begins", "a ends", "c begins", "c ends", "b ends"]


async def shielding(ctx: AsyncWorkflowContext) -> Any:
    handle = ctx.start(charge)
    try:
        async with asyncio.timeout(5):
            await asyncio.shield(handle)
    except TimeoutError:
        return await handle
    return "in time"


def test_shield_keeps_the_step_when_the_wait_is_cancelled() -> None:
    run = Run(shielding).start()
    run.fire(2)
    assert run.cancelled() == []
    run.complete(1, "later")
    assert run.result == "later"


async def calling_later(ctx: AsyncWorkflowContext) -> list[Any]:
    loop = asyncio.get_running_loop()
    seen: list[Any] = []
    future = loop.create_future()
    loop.call_later(10, seen.append, "ten")
    loop.call_later(20, future.set_result, "twenty")
    unwanted = loop.call_later(15, seen.append, "never")
    loop.call_soon(seen.append, "soon")
    loop.call_later(0, seen.append, "at once")
    loop.call_at(loop.time() - 5, seen.append, "past")
    await asyncio.sleep(0)
    unwanted.cancel()
    unwanted.cancel()
    return [*seen, await future, *seen[3:]]


def test_call_later_is_a_durable_timer_and_its_handle_cancels_it() -> None:
    run = Run(calling_later).start()
    assert run.cancelled() == [3]
    run.fire(1)
    run.fire(2)
    assert run.result == ["soon", "at once", "past", "twenty", "ten"]


async def names(ctx: AsyncWorkflowContext) -> list[str]:
    own = asyncio.current_task()
    assert own is not None
    other = asyncio.create_task(asyncio.sleep(0), name="mine")
    nameless = asyncio.create_task(asyncio.sleep(0))
    await asyncio.gather(other, nameless)
    return [own.get_name(), other.get_name(), nameless.get_name()]


def test_names_of_tasks_do_not_depend_on_the_process() -> None:
    results = [Run(names).start().result for _ in range(2)]
    assert results[0] == results[1]
    assert results[0][1] == "mine"


async def generating(ctx: AsyncWorkflowContext) -> list[Any]:
    closed: list[str] = []

    async def pages() -> AsyncIterator[Any]:
        try:
            for index in range(10):
                yield await ctx.step(charge, index)
        finally:
            closed.append("closed")
            await ctx.step(refund)

    async for page in pages():
        if page == "last":
            break
    return closed


def test_an_abandoned_async_generator_is_closed_without_issuing_commands() -> None:
    run = Run(generating).start()
    run.complete(1, "first")
    run.complete(2, "last")
    assert run.result == ["closed"]
    assert run.tasks() == ["shop.charge", "shop.charge"]


async def forgetting(ctx: AsyncWorkflowContext) -> str:
    asyncio.create_task(ctx.step(charge))  # noqa: RUF006 - the point
    await asyncio.sleep(10)
    return "done"


def test_a_task_that_nobody_waits_for_runs_and_ends_with_the_run() -> None:
    run = Run(forgetting).start()
    assert run.kinds() == ["TimerStarted", "StepScheduled"]
    run.fire(1)
    assert isinstance(run.last, RunCompleted)
    assert run.cancelled() == []


REFUSED: dict[str, Callable[[asyncio.AbstractEventLoop], Any]] = {
    "run_in_executor": lambda loop: loop.run_in_executor(None, print),
    "call_soon_threadsafe": lambda loop: loop.call_soon_threadsafe(print),
    "create_connection": lambda loop: loop.create_connection(asyncio.Protocol, "localhost", 1),
    "subprocess_exec": lambda loop: loop.subprocess_exec(asyncio.SubprocessProtocol, "ls"),
    "add_signal_handler": lambda loop: loop.add_signal_handler(1, print),
    "getaddrinfo": lambda loop: loop.getaddrinfo("localhost", 1),
    "run_until_complete": lambda loop: loop.run_until_complete(loop.create_future()),
}


@pytest.mark.parametrize("verb", REFUSED)
def test_what_leaves_the_workflow_is_refused_by_name(verb: str) -> None:
    async def code(ctx: AsyncWorkflowContext) -> None:
        REFUSED[verb](asyncio.get_running_loop())

    with pytest.raises(SideEffectError, match=verb):
        Run(code).start()


async def threading(ctx: AsyncWorkflowContext) -> None:
    await asyncio.to_thread(print, "hello")


def test_to_thread_is_refused_with_the_verb_to_use() -> None:
    with pytest.raises(SideEffectError, match=r"ctx\.run"):
        Run(threading).start()


async def unheard(ctx: AsyncWorkflowContext) -> None:
    async def fails() -> None:
        raise ValueError("nobody hears of it")

    asyncio.create_task(fails())  # noqa: RUF006 - the mistake
    await asyncio.sleep(1)


def test_the_failure_of_a_forgotten_task_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(unheard).start()
    run.go_cold()
    run.fire(1)
    (record,) = caplog.records
    assert "Task exception was never retrieved" in record.getMessage()
    assert record.exc_info is not None
    assert "nobody hears of it" in str(record.exc_info[1])


def test_exception_groups_come_back_as_failures() -> None:
    run = Run(group).start()
    run.fail(1, ValueError("one"))
    assert isinstance(rebuild(run.last.payload, CODEC), Exception)
