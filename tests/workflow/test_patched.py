"""``ctx.patched``: old histories keep to the old side of a change, new ones take the new side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from durable_celery.errors import NonDeterminismError
from durable_celery.workflow import AsyncWorkflowContext, Definition, WorkflowContext, replay
from tests.workflow.log import CODEC, Run, charge, notify, refund

Code = Callable[..., Any]


def before(ctx: WorkflowContext) -> None:
    ctx.step(charge)
    ctx.step(notify)


def after(ctx: WorkflowContext) -> None:
    ctx.step(charge)
    if ctx.patched("refund-too"):
        ctx.step(refund)
    ctx.step(notify)


async def after_async(ctx: AsyncWorkflowContext) -> None:
    await ctx.step(charge)
    if ctx.patched("refund-too"):
        await ctx.step(refund)
    await ctx.step(notify)


@pytest.fixture(params=[after, after_async], ids=["def", "async def"])
def new_code(request: pytest.FixtureRequest) -> Code:
    code: Code = request.param
    return code


def deploy(run: Run, code: Code) -> None:
    run.execution.evict()
    run.definition = Definition(name="test", function=code)
    run.execution = run.replayed()


def test_a_new_run_takes_the_new_side_and_marks_it(new_code: Code) -> None:
    run = Run(new_code).start()
    run.complete(1)
    assert run.kinds() == ["StepScheduled", "PatchMarked", "StepScheduled"]
    run.go_cold()
    run.complete(3)
    run.complete(4)
    assert run.replayed().closed


def test_a_run_that_is_past_the_change_keeps_to_the_old_side(new_code: Code) -> None:
    run = Run(before).start()
    run.complete(1)
    deploy(run, new_code)
    run.complete(2)
    assert run.tasks() == ["shop.charge", "shop.notify"]
    assert run.replayed().closed


def test_a_run_that_has_not_come_to_the_change_takes_the_new_side(new_code: Code) -> None:
    run = Run(before).start()
    deploy(run, new_code)
    run.complete(1)
    assert run.tasks() == ["shop.charge", "shop.refund"]


def test_the_answer_is_given_once_and_kept() -> None:
    def code(ctx: WorkflowContext) -> list[bool]:
        seen = [ctx.patched("a"), ctx.patched("a"), ctx.patched("b")]
        ctx.step(charge)
        return [*seen, ctx.patched("a")]

    run = Run(code).start()
    run.go_cold()
    run.complete(3)
    assert run.result == [True, True, True, True]
    assert run.kinds() == ["PatchMarked", "PatchMarked", "StepScheduled", "RunCompleted"]


def test_an_old_answer_is_kept_at_the_end_of_the_history_too() -> None:
    def old(ctx: WorkflowContext) -> None:
        for _ in range(3):
            ctx.step(charge)

    def new(ctx: WorkflowContext) -> None:
        for _ in range(3):
            ctx.step(refund if ctx.patched("swap") else charge)

    run = Run(old).start()
    deploy(run, new)
    run.complete(1)
    run.complete(2)
    run.complete(3)
    assert run.tasks() == ["shop.charge"] * 3
    assert run.replayed().closed


def test_taking_out_a_mark_that_histories_still_hold_is_found(new_code: Code) -> None:
    run = Run(new_code).start()
    run.complete(1)
    with pytest.raises(NonDeterminismError, match=r"history has 'patched'.*the code 'step'"):
        replay(Definition(name="test", function=before), "w-1", run.events, CODEC)


def test_another_change_s_mark_is_not_taken_for_this_one() -> None:
    def one(ctx: WorkflowContext) -> None:
        ctx.patched("one")
        ctx.step(charge)

    def two(ctx: WorkflowContext) -> None:
        ctx.patched("two")
        ctx.patched("one")
        ctx.step(charge)

    run = Run(one).start()
    deploy(run, two)
    run.complete(2)
    assert run.execution.closed
