"""Local steps: run where they are called, once, outside of the workflow code, with their outcome on record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import greenlet
import pytest

from durable_celery.codec import rebuild
from durable_celery.errors import PayloadError, StaleLeaseError
from durable_celery.events import LocalStepCompleted, LocalStepFailed, RunFailed, RunStarted, TimerStarted
from durable_celery.policy import RetryPolicy
from durable_celery.workflow import AsyncWorkflowContext, WorkflowContext
from durable_celery.workflow.guard import WorkflowGreenlet
from tests.workflow.log import CODEC, EPOCH_MS, Run, charge

Code = Callable[..., Any]


def forms(*codes: Code) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("code", codes, ids=["def", "async def"])


CALLS: list[Any] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()


def work(*args: Any) -> Any:
    CALLS.append(args)
    assert type(greenlet.getcurrent()) is not WorkflowGreenlet
    return {"got": args}


def run_sync(ctx: WorkflowContext) -> list[Any]:
    first = ctx.run(work, 1, (2, 3))
    ctx.step(charge)
    return [first, ctx.options(name="again").run(work)]


async def run_async(ctx: AsyncWorkflowContext) -> list[Any]:
    first = await ctx.run(work, 1, (2, 3))
    await ctx.step(charge)
    return [first, await ctx.options(name="again").run(work)]


@forms(run_sync, run_async)
def test_a_local_step_runs_once_and_replay_uses_its_record(code: Code) -> None:
    run = Run(code).start()
    assert [type(event) for event in run.outputs][:1] == [LocalStepCompleted]
    run.go_cold()
    run.complete(2)
    assert run.result == [{"got": [1, [2, 3]]}, {"got": []}]
    assert [event.name for event in run.outputs if isinstance(event, LocalStepCompleted)] == ["work", "again"]
    assert run.replayed().closed
    assert len(CALLS) == 2


def fail() -> None:
    CALLS.append("fail")
    raise ConnectionError("down")


def fail_sync(ctx: WorkflowContext) -> list[Any]:
    try:
        ctx.run(fail)
    except ConnectionError as error:
        ctx.step(charge)
        return [str(error), *error.__notes__, "raise ConnectionError" in str(error.__cause__)]
    return []


async def fail_async(ctx: AsyncWorkflowContext) -> list[Any]:
    try:
        await ctx.run(fail)
    except ConnectionError as error:
        await ctx.step(charge)
        return [str(error), *error.__notes__, "raise ConnectionError" in str(error.__cause__)]
    return []


@forms(fail_sync, fail_async)
def test_a_failure_is_recorded_and_raised_rebuilt_live_and_on_replay(code: Code) -> None:
    run = Run(code).start()
    assert isinstance(run.outputs[0], LocalStepFailed)
    run.go_cold()
    run.complete(2)
    assert run.result == ["down", "in local step fail (w-1/1.1)", True]
    assert CALLS == ["fail"]


def test_a_result_that_cannot_be_recorded_is_a_failure_of_the_step() -> None:
    def code(ctx: WorkflowContext) -> None:
        ctx.run(object)

    run = Run(code).start()
    assert run.kinds() == ["LocalStepFailed", "RunFailed"]
    assert isinstance(rebuild(run.last.payload, CODEC), PayloadError)


async def coroutine_work(value: int) -> int:
    CALLS.append(asyncio.get_running_loop())
    await asyncio.sleep(0.001)
    return value + (await asyncio.to_thread(int, "1"))


async def coroutine_async(ctx: AsyncWorkflowContext) -> list[Any]:
    own = asyncio.get_running_loop()
    value = await ctx.run(coroutine_work, 5)
    assert asyncio.get_running_loop() is own
    await asyncio.sleep(60)
    return [value, await ctx.run(coroutine_work, 7)]


def coroutine_sync(ctx: WorkflowContext) -> list[Any]:
    value: Any = ctx.run(coroutine_work, 5)
    ctx.sleep(60)
    return [value, ctx.run(coroutine_work, 7)]


@forms(coroutine_sync, coroutine_async)
def test_a_coroutine_function_runs_to_its_end_on_a_real_loop_of_its_own(code: Code) -> None:
    run = Run(code).start()
    run.fire(2)
    assert run.result == [6, 8]
    assert all(loop.is_closed() for loop in CALLS)


@forms(coroutine_sync, coroutine_async)
def test_feeding_inside_of_a_running_event_loop_leaves_that_loop_as_it_was(code: Code) -> None:
    async def engine() -> list[Any]:
        loop = asyncio.get_running_loop()
        run = Run(code).start()
        assert asyncio.get_running_loop() is loop
        await asyncio.sleep(0)
        run.fire(2)
        assert asyncio.get_running_loop() is loop
        return cast("list[Any]", run.result)

    assert asyncio.run(engine()) == [6, 8]


def retry_sync(ctx: WorkflowContext) -> None:
    policy = RetryPolicy(initial_interval=10, maximum_attempts=3, jitter=0, non_retryable=(KeyError,))
    ctx.options(retry=policy).run(fail)


async def retry_async(ctx: AsyncWorkflowContext) -> None:
    policy = RetryPolicy(initial_interval=10, maximum_attempts=3, jitter=0, non_retryable=(KeyError,))
    await ctx.options(retry=policy).run(fail)


@forms(retry_sync, retry_async)
def test_retries_of_a_local_step_wait_in_durable_timers(code: Code) -> None:
    run = Run(code).start()
    assert run.kinds() == ["LocalStepFailed", "TimerStarted"]
    assert cast("TimerStarted", run.last).due_at == EPOCH_MS + 10_000
    run.go_cold()
    run.fire(2)
    assert cast("TimerStarted", run.last).due_at == EPOCH_MS + 30_000
    run.fire(4)
    assert isinstance(run.last, RunFailed)
    assert run.kinds().count("LocalStepFailed") == 3
    assert len(CALLS) == 3


def test_a_failure_that_the_policy_excludes_is_not_tried_again() -> None:
    def code(ctx: WorkflowContext) -> None:
        ctx.options(retry=RetryPolicy(non_retryable=(OSError,))).run(fail)

    assert Run(code).start().kinds() == ["LocalStepFailed", "RunFailed"]


@forms(run_sync, run_async)
def test_what_stands_before_a_local_step_is_committed_before_it_runs(code: Code) -> None:
    def early(ctx: WorkflowContext) -> None:
        ctx.start(charge)
        ctx.run(look)

    async def early_async(ctx: AsyncWorkflowContext) -> None:
        ctx.start(charge)
        await ctx.run(look)

    def look() -> None:
        CALLS.append(run.kinds())

    run = Run(early if code is run_sync else early_async)
    run.start()
    assert CALLS == [["StepScheduled"]]
    assert run.kinds() == ["StepScheduled", "LocalStepCompleted", "RunCompleted"]


@forms(run_sync, run_async)
def test_a_commit_that_fails_before_a_local_step_ends_the_execution_untouched(code: Code) -> None:
    def stale() -> None:
        raise error

    error = StaleLeaseError("token 3")
    run = Run(code)
    with pytest.raises(StaleLeaseError) as caught:
        run.execution.feed([run.append(RunStarted(name="test", payload="[[],{}]"))], before_local=stale)
    assert caught.value is error
    assert CALLS == []
    assert run.execution.take_outputs() == ()


@forms(run_sync, run_async)
def test_a_signal_to_the_process_during_a_local_step_comes_through_and_records_nothing(code: Code) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    run = Run(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(run_sync.__globals__, "work", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.start()
    assert run.outputs == []


def test_other_branches_stand_still_during_a_local_step() -> None:
    order: list[str] = []

    def branch(ctx: WorkflowContext) -> None:
        order.append("branch")

    def local() -> None:
        order.append("local")

    def code(ctx: WorkflowContext) -> list[str]:
        handle = ctx.spawn(branch)
        ctx.run(local)
        order.append("after")
        handle.result()
        return order

    assert Run(code).start().result == ["local", "after", "branch"]


def test_names_of_functions_and_partials() -> None:
    def code(ctx: WorkflowContext) -> None:
        ctx.run(partial(work, 1))
        ctx.run(len, "abc")
        ctx.run(charge_in_place)

    class Local:
        name = "shop.local"

        def __call__(self) -> int:
            return 1

    charge_in_place = Local()
    run = Run(code).start()
    names = [event.name for event in run.outputs if isinstance(event, LocalStepCompleted)]
    assert names == ["work", "len", "shop.local"]


def test_the_record_of_a_local_step_has_its_number_and_cause() -> None:
    run = Run(run_sync).start()
    first = run.outputs[0]
    assert (first.number, first.cause) == (1, 1)
