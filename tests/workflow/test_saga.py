"""Sagas in both forms: what was done is undone in reverse order, whatever ends the block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from durable_celery.codec import rebuild
from durable_celery.errors import CompensationError
from durable_celery.events import RunCancelled, RunFailed, StepScheduled
from durable_celery.policy import RetryPolicy
from durable_celery.workflow import AsyncWorkflowContext, WorkflowContext
from tests.workflow.log import CODEC, Run, Task, charge, refund

Code = Callable[..., Any]
Begin = Callable[..., Run]
flight, unflight, hotel, unhotel = Task("flight"), Task("unflight"), Task("hotel"), Task("unhotel")


def forms(*codes: Code) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("code", codes, ids=["def", "async def"])


def trip_sync(ctx: WorkflowContext) -> str:
    with ctx.saga() as saga:
        saga.compensate(unflight, ctx.step(flight))
        saga.compensate(unhotel, ctx.step(hotel))
        ctx.step(charge)
    return "booked"


async def trip_async(ctx: AsyncWorkflowContext) -> str:
    async with ctx.saga() as saga:
        saga.compensate(unflight, await ctx.step(flight))
        saga.compensate(unhotel, await ctx.step(hotel))
        await ctx.step(charge)
    return "booked"


def failure(run: Run) -> Exception:
    assert isinstance(run.last, RunFailed)
    return rebuild(run.last.payload, CODEC)


def booked(run: Run) -> Run:
    run.complete(1, "F1")
    run.complete(2, "H2")
    return run


@forms(trip_sync, trip_async)
def test_nothing_is_undone_after_a_good_end(code: Code, begin: Begin) -> None:
    run = booked(begin(code))
    run.complete(3)

    assert run.result == "booked"
    assert run.tasks() == ["flight", "hotel", "shop.charge"]


@forms(trip_sync, trip_async)
def test_a_failure_undoes_what_was_done_in_reverse_order_and_one_by_one(code: Code, begin: Begin) -> None:
    run = booked(begin(code))
    run.fail(3, ValueError("declined"))
    assert run.tasks()[3:] == ["unhotel"]
    run.complete(4)
    assert run.tasks()[3:] == ["unhotel", "unflight"]
    run.complete(5)

    assert str(failure(run)) == "declined"
    undone = [CODEC.decode(event.payload)[0] for event in run.outputs[3:5]]
    assert undone == [["H2"], ["F1"]]


@forms(trip_sync, trip_async)
def test_only_what_was_noted_is_undone(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.complete(1, "F1")
    run.fail(2, ValueError("full"))
    run.complete(3)

    assert run.tasks() == ["flight", "hotel", "unflight"]
    assert str(failure(run)) == "full"


@forms(trip_sync, trip_async)
def test_a_cancel_undoes_as_well(code: Code, begin: Begin) -> None:
    run = booked(begin(code))
    run.cancel("changed my mind")
    assert run.cancelled() == [3]
    assert run.tasks()[3:] == ["unhotel"]
    run.complete(5)
    run.complete(6)

    assert run.tasks()[3:] == ["unhotel", "unflight"]
    assert isinstance(run.last, RunCancelled)


@forms(trip_sync, trip_async)
def test_a_cancel_that_comes_while_something_is_undone_waits_for_it(code: Code, begin: Begin) -> None:
    run = booked(begin(code))
    run.fail(3, ValueError("declined"))
    run.cancel()
    assert run.cancelled() == []
    run.complete(4)
    run.complete(5)

    assert run.tasks()[3:] == ["unhotel", "unflight"]
    assert isinstance(run.last, RunCancelled)


@forms(trip_sync, trip_async)
def test_a_compensation_is_tried_until_it_is_done(code: Code, begin: Begin) -> None:
    run = booked(begin(code))
    run.fail(3, ValueError("declined"))

    scheduled = run.outputs[3]
    assert isinstance(scheduled, StepScheduled)
    assert scheduled.options is not None
    assert RetryPolicy.from_json(scheduled.options["retry"]).maximum_attempts == 0


def limited_sync(ctx: WorkflowContext) -> None:
    with ctx.options(retry=2, queue="undo").saga() as saga:
        for number in range(3):
            saga.compensate(refund, number)
        ctx.step(charge)


async def limited_async(ctx: AsyncWorkflowContext) -> None:
    async with ctx.options(retry=2, queue="undo").saga() as saga:
        for number in range(3):
            saga.compensate(refund, number)
        await ctx.step(charge)


@forms(limited_sync, limited_async)
def test_a_compensation_that_fails_for_good_is_named_and_the_others_are_done(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.fail(1, ValueError("declined"))
    run.complete(2)
    run.fail(3, ValueError("the bank is closed"))
    run.complete(4)

    assert [CODEC.decode(event.payload)[0] for event in run.outputs[1:4]] == [[2], [1], [0]]
    assert all(event.options and event.options["queue"] == "undo" for event in run.outputs[1:4])  # type: ignore[attr-defined]
    error = failure(run)
    assert isinstance(error, CompensationError)
    assert str(error) == "1 compensation failed for good: shop.refund: ValueError('the bank is closed')"


def nested_sync(ctx: WorkflowContext) -> None:
    with ctx.saga() as outer:
        outer.compensate("outer")
        with ctx.saga() as inner:
            inner.compensate("inner")
            ctx.step(charge)


async def nested_async(ctx: AsyncWorkflowContext) -> None:
    async with ctx.saga() as outer:
        outer.compensate("outer")
        async with ctx.saga() as inner:
            inner.compensate("inner")
            await ctx.step(charge)


@forms(nested_sync, nested_async)
def test_an_inner_saga_is_undone_before_the_outer_one(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.fail(1, ValueError("no"))
    run.complete(2)
    run.complete(3)

    assert run.tasks()[1:] == ["inner", "outer"]
    assert isinstance(failure(run), ValueError)


def by_hand_sync(ctx: WorkflowContext) -> str:
    with ctx.saga() as saga:
        saga.compensate(refund)
        saga.undo()
        raise ValueError("undone already")


async def by_hand_async(ctx: AsyncWorkflowContext) -> str:
    async with ctx.saga() as saga:
        saga.compensate(refund)
        await saga.undo()
        raise ValueError("undone already")


@forms(by_hand_sync, by_hand_async)
def test_what_was_undone_by_hand_is_not_undone_again(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.complete(1)

    assert run.tasks() == ["shop.refund"]
    assert str(failure(run)) == "undone already"


def loser_sync(ctx: WorkflowContext) -> str:
    def branch(inner: WorkflowContext) -> None:
        with inner.saga() as saga:
            saga.compensate(refund, inner.step(charge))
            inner.wait_signal("never")

    return ctx.race(branch=ctx.spawn(branch), late=ctx.timer(60)).name


async def loser_async(ctx: AsyncWorkflowContext) -> str:
    async def branch(inner: AsyncWorkflowContext) -> None:
        async with inner.saga() as saga:
            saga.compensate(refund, await inner.step(charge))
            await inner.wait_signal("never")

    return (await ctx.race(branch=ctx.spawn(branch), late=ctx.timer(60))).name


@forms(loser_sync, loser_async)
def test_a_branch_that_loses_a_race_is_undone_before_the_race_returns(code: Code, begin: Begin) -> None:
    run = begin(code)
    charged = next(e.number for e in run.outputs if isinstance(e, StepScheduled))
    timer = next(e.number for e in run.outputs if not isinstance(e, StepScheduled))
    run.complete(charged, "p-1")
    run.fire(timer)
    assert run.tasks() == ["shop.charge", "shop.refund"]
    assert not run.execution.closed
    run.complete(3)

    assert run.result == "late"


@pytest.mark.parametrize("bad", [lambda: None, ""])
def test_what_is_no_task_is_refused_when_it_is_noted(bad: Any) -> None:
    def code(ctx: WorkflowContext) -> None:
        with ctx.saga() as saga:
            saga.compensate(bad)

    run = Run(code).start()

    assert "no Celery task" in str(failure(run))
    assert run.kinds() == ["RunFailed"]


def test_arguments_that_cannot_be_recorded_are_refused_when_they_are_noted() -> None:
    def code(ctx: WorkflowContext) -> None:
        with ctx.saga() as saga:
            saga.compensate(refund, object())

    assert "compensation shop.refund" in str(failure(Run(code).start()))


def test_an_evicted_execution_undoes_nothing() -> None:
    run = booked(Run(trip_sync).start())
    run.execution.evict()

    assert run.execution.take_outputs() == ()
