"""Waiting for a condition and polling, in both forms, kept and replayed in each turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from durable_celery.codec import rebuild
from durable_celery.errors import InvalidRequestError, WaitTimeoutError
from durable_celery.events import RunCancelled, RunFailed
from durable_celery.workflow import AsyncWorkflowContext, WorkflowContext
from tests.workflow.log import CODEC, Run, charge

Code = Callable[..., Any]
Begin = Callable[..., Run]


def forms(*codes: Code) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("code", codes, ids=["def", "async def"])


def failure(run: Run) -> Exception:
    assert isinstance(run.last, RunFailed)
    return rebuild(run.last.payload, CODEC)


# --------------------------------------------------------------------------- wait_until


def votes_sync(ctx: WorkflowContext, limit: float | None) -> Any:
    votes: list[str] = []

    def collect(inner: WorkflowContext) -> None:
        while True:
            votes.append(inner.wait_signal("vote"))

    collector = ctx.spawn(collect)
    ctx.wait_until(lambda: len(votes) >= 2, limit)
    collector.cancel()
    return votes


async def votes_async(ctx: AsyncWorkflowContext, limit: float | None) -> Any:
    votes: list[str] = []

    async def collect(inner: AsyncWorkflowContext) -> None:
        while True:
            votes.append(await inner.wait_signal("vote"))

    collector = ctx.spawn(collect)
    await ctx.wait_until(lambda: len(votes) >= 2, limit)
    collector.cancel()
    return votes


@forms(votes_sync, votes_async)
def test_a_condition_is_met_when_a_branch_has_made_it_true(code: Code, begin: Begin) -> None:
    run = begin(code, None)
    assert "condition" in run.execution.waiting
    assert "votes_" in run.execution.waiting
    run.signal("vote", "a")
    assert not run.execution.closed
    run.signal("vote", "b")

    assert run.result == ["a", "b"]
    assert run.kinds() == ["RunCompleted"]


@forms(votes_sync, votes_async)
def test_a_condition_that_is_not_met_in_time_raises(code: Code, begin: Begin) -> None:
    run = begin(code, 60)
    run.signal("vote", "a")
    run.fire(1)

    assert isinstance(failure(run), WaitTimeoutError)
    assert "did not become true within 60 s" in str(failure(run))


@forms(votes_sync, votes_async)
def test_a_condition_that_is_met_in_time_cancels_its_timer(code: Code, begin: Begin) -> None:
    run = begin(code, 60)
    run.signal("vote", "a")
    run.signal("vote", "b")

    assert run.cancelled() == [1]
    assert run.result == ["a", "b"]


@forms(votes_sync, votes_async)
def test_a_cancel_ends_the_wait_for_a_condition(code: Code, begin: Begin) -> None:
    run = begin(code, 60)
    run.cancel()

    assert run.cancelled() == [1]
    assert isinstance(run.last, RunCancelled)


def chain_sync(ctx: WorkflowContext) -> Any:
    order: list[str] = []

    def after(inner: WorkflowContext, name: str, count: int) -> None:
        inner.wait_until(lambda: len(order) >= count)
        order.append(name)

    # The third waits for the second, the second for the first: one input sets all of them going.
    branches = [ctx.spawn(after, name, count) for name, count in (("c", 3), ("b", 2), ("a", 1))]
    ctx.wait_signal("go")
    order.append("go")
    ctx.gather(*branches)
    return order


async def chain_async(ctx: AsyncWorkflowContext) -> Any:
    order: list[str] = []

    async def after(inner: AsyncWorkflowContext, name: str, count: int) -> None:
        await inner.wait_until(lambda: len(order) >= count)
        order.append(name)

    branches = [ctx.spawn(after, name, count) for name, count in (("c", 3), ("b", 2), ("a", 1))]
    await ctx.wait_signal("go")
    order.append("go")
    await ctx.gather(*branches)
    return order


@forms(chain_sync, chain_async)
def test_what_one_condition_sets_going_may_meet_the_next(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.signal("go")

    assert run.result == ["go", "a", "b", "c"]


def true_already_sync(ctx: WorkflowContext) -> str:
    ctx.wait_until(lambda: True, timeout=60)
    return "at once"


async def true_already_async(ctx: AsyncWorkflowContext) -> str:
    await ctx.wait_until(lambda: True, timeout=60)
    return "at once"


@forms(true_already_sync, true_already_async)
def test_a_condition_that_is_true_already_needs_no_timer(code: Code, begin: Begin) -> None:
    run = begin(code)

    assert run.result == "at once"
    assert run.kinds() == ["RunCompleted"]


def broken_sync(ctx: WorkflowContext) -> Any:
    state: dict[str, int] = {"left": 1}
    ctx.spawn(lambda inner: inner.wait_signal("go") or state.pop("left"))
    try:
        ctx.wait_until(lambda: not state["left"])
    except KeyError as error:
        return f"no {error}"


async def broken_async(ctx: AsyncWorkflowContext) -> Any:
    state: dict[str, int] = {"left": 1}

    async def branch(inner: AsyncWorkflowContext) -> None:
        await inner.wait_signal("go")
        del state["left"]

    ctx.spawn(branch)
    try:
        await ctx.wait_until(lambda: not state["left"])
    except KeyError as error:
        return f"no {error}"


@forms(broken_sync, broken_async)
def test_what_a_predicate_raises_is_raised_where_it_is_waited_for(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.signal("go")

    assert run.result == "no 'left'"


# --------------------------------------------------------------------------- poll


def poll_sync(ctx: WorkflowContext, limit: float | None) -> Any:
    return ctx.poll(charge, "job-1", every=10, until=lambda answer: answer == "done", timeout=limit)


async def poll_async(ctx: AsyncWorkflowContext, limit: float | None) -> Any:
    return await ctx.poll(charge, "job-1", every=10, until=lambda answer: answer == "done", timeout=limit)


@forms(poll_sync, poll_async)
def test_a_poll_asks_until_an_answer_satisfies_with_durable_waits_between(code: Code, begin: Begin) -> None:
    run = begin(code, None)
    run.complete(1, "running")
    assert run.kinds() == ["StepScheduled", "TimerStarted"]
    run.fire(2)
    run.complete(3, "done")

    assert run.result == "done"
    assert run.kinds() == ["StepScheduled", "TimerStarted", "StepScheduled", "RunCompleted"]


@forms(poll_sync, poll_async)
def test_a_poll_gives_up_between_two_checks(code: Code, begin: Begin) -> None:
    run = begin(code, 60)
    run.complete(2, "running")
    run.fire(1)

    assert isinstance(failure(run), WaitTimeoutError)
    assert "shop.charge gave no answer that satisfies within 60 s" in str(failure(run))
    assert run.cancelled() == [3]


@forms(poll_sync, poll_async)
def test_a_poll_gives_up_while_a_check_is_going_on(code: Code, begin: Begin) -> None:
    run = begin(code, 60)
    run.fire(1)

    assert isinstance(failure(run), WaitTimeoutError)
    assert run.cancelled() == [2]


@forms(poll_sync, poll_async)
def test_a_poll_that_is_satisfied_cancels_its_deadline(code: Code, begin: Begin) -> None:
    run = begin(code, 60)
    run.complete(2, "done")

    assert run.result == "done"
    assert run.cancelled() == [1]


@forms(poll_sync, poll_async)
def test_a_check_that_fails_ends_the_poll(code: Code, begin: Begin) -> None:
    run = begin(code, 60)
    run.fail(2, ValueError("no such job"))

    assert str(failure(run)) == "no such job"
    assert run.cancelled() == [1]


@forms(poll_sync, poll_async)
def test_a_cancel_ends_a_poll(code: Code, begin: Begin) -> None:
    run = begin(code, 60)
    run.complete(2, "running")
    run.cancel()

    assert sorted(run.cancelled()) == [1, 3]
    assert isinstance(run.last, RunCancelled)


answers: list[str] = []


def ask(job: str) -> str:
    answers.append(job)
    return "done" if len(answers) > 1 else "running"


def local_sync(ctx: WorkflowContext) -> Any:
    return ctx.poll(ask, "job-1", every=10, until=lambda answer: answer == "done")


async def local_async(ctx: AsyncWorkflowContext) -> Any:
    return await ctx.poll(ask, "job-1", every=10, until=lambda answer: answer == "done")


@forms(local_sync, local_async)
def test_a_function_is_polled_as_a_local_step(code: Code, begin: Begin) -> None:
    answers.clear()
    run = begin(code)
    assert run.kinds() == ["LocalStepCompleted", "TimerStarted"]
    run.fire(2)

    assert run.result == "done"
    assert answers == ["job-1", "job-1"]


def test_a_poll_without_a_wait_is_refused() -> None:
    def code(ctx: WorkflowContext) -> None:
        ctx.poll(charge, every=0)

    run = Run(code).start()

    assert isinstance(failure(run), InvalidRequestError)
    assert run.kinds() == ["RunFailed"]


# --------------------------------------------------------------------------- shield


def shield_sync(ctx: WorkflowContext) -> Any:
    def must_end(inner: WorkflowContext) -> str:
        return f"{inner.step(charge)} and {inner.step('ship')}"

    done = ctx.shield(ctx.spawn(must_end))
    ctx.sleep(60)
    return done


async def shield_async(ctx: AsyncWorkflowContext) -> Any:
    async def must_end(inner: AsyncWorkflowContext) -> str:
        return f"{await inner.step(charge)} and {await inner.step('ship')}"

    done = await ctx.shield(ctx.spawn(must_end))
    await ctx.sleep(60)
    return done


@forms(shield_sync, shield_async)
def test_what_is_shielded_goes_on_to_its_end_before_a_cancel_is_raised(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.complete(1, "charged")
    run.cancel("enough")
    assert run.cancelled() == []
    assert not run.execution.closed
    run.complete(2, "shipped")

    assert isinstance(run.last, RunCancelled)
    assert run.kinds() == ["StepScheduled", "StepScheduled", "RunCancelled"]


@forms(shield_sync, shield_async)
def test_a_shield_gives_the_result_and_shields_nothing_afterwards(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.complete(1, "charged")
    run.complete(2, "shipped")
    run.cancel()

    assert run.cancelled() == [3]
    assert isinstance(run.last, RunCancelled)


def shield_step_sync(ctx: WorkflowContext) -> Any:
    return ctx.shield(ctx.start(charge))


async def shield_step_async(ctx: AsyncWorkflowContext) -> Any:
    return await ctx.shield(ctx.start(charge))


@forms(shield_step_sync, shield_step_async)
def test_the_failure_of_what_is_shielded_is_raised(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.fail(1, ValueError("declined"))

    assert str(failure(run)) == "declined"


@forms(shield_step_sync, shield_step_async)
def test_a_failure_comes_before_a_cancel_that_had_to_wait(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.cancel()
    run.fail(1, ValueError("declined"))

    assert str(failure(run)) == "declined"
