"""``ctx.deprecate_patch``: the old side of a change is gone, marks of it are not.

Three releases of one change: ``patched``, ``deprecate_patch``, nothing. Runs go between neighbours in any order, as
they do while a deploy lasts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from durable_celery.errors import DurableError, NonDeterminismError
from durable_celery.events import PatchMarked
from durable_celery.workflow import AsyncWorkflowContext, Definition, WorkflowContext, replay
from tests.workflow.conftest import Begin
from tests.workflow.log import CODEC, Run, charge, notify, refund

Code = Callable[..., Any]


class Releases:
    """One workflow through all releases of a change, in one form."""

    @staticmethod
    def before(ctx: WorkflowContext) -> None:
        ctx.step(charge)
        ctx.step(notify)

    @staticmethod
    def patched(ctx: WorkflowContext) -> None:
        ctx.step(charge)
        if ctx.patched("refund-too"):
            ctx.step(refund)
        ctx.step(notify)

    @staticmethod
    def deprecated(ctx: WorkflowContext) -> None:
        ctx.step(charge)
        ctx.deprecate_patch("refund-too")
        ctx.step(refund)
        ctx.step(notify)

    @staticmethod
    def gone(ctx: WorkflowContext) -> None:
        ctx.step(charge)
        ctx.step(refund)
        ctx.step(notify)


class AsyncReleases:
    @staticmethod
    async def before(ctx: AsyncWorkflowContext) -> None:
        await ctx.step(charge)
        await ctx.step(notify)

    @staticmethod
    async def patched(ctx: AsyncWorkflowContext) -> None:
        await ctx.step(charge)
        if ctx.patched("refund-too"):
            await ctx.step(refund)
        await ctx.step(notify)

    @staticmethod
    async def deprecated(ctx: AsyncWorkflowContext) -> None:
        await ctx.step(charge)
        ctx.deprecate_patch("refund-too")
        await ctx.step(refund)
        await ctx.step(notify)

    @staticmethod
    async def gone(ctx: AsyncWorkflowContext) -> None:
        await ctx.step(charge)
        await ctx.step(refund)
        await ctx.step(notify)


@pytest.fixture(params=[Releases, AsyncReleases], ids=["def", "async def"])
def code(request: pytest.FixtureRequest) -> Any:
    return request.param


def deploy(run: Run, code: Code) -> None:
    run.execution.evict()
    run.definition = Definition(name="test", function=code)
    run.execution = run.replayed()


def finish(run: Run) -> None:
    """Let the steps end, in their order."""
    while not run.execution.closed:
        done = {getattr(item.event, "number", 0) for item in run.events if type(item.event).__name__ == "StepCompleted"}
        run.complete(next(event.number for event in run.outputs if hasattr(event, "task") and event.number not in done))


NEW_SIDE = ["shop.charge", "shop.refund", "shop.notify"]


@pytest.mark.parametrize("stop", range(4))
@pytest.mark.parametrize(
    "releases",
    [("patched", "deprecated"), ("deprecated", "patched"), ("deprecated", "gone"), ("gone", "deprecated")],
    ids=" then ".join,
)
def test_a_run_goes_between_neighbouring_releases_at_any_place(
    begin: Begin, code: Any, releases: tuple[str, str], stop: int
) -> None:
    first, then = (getattr(code, release) for release in releases)
    run = begin(first)
    for number in [event.number for event in run.outputs][:stop]:
        run.complete(number)
    while len(run.tasks()) < stop and not run.execution.closed:
        run.complete(max(event.number for event in run.outputs))

    deploy(run, then)
    finish(run)

    assert run.tasks() == NEW_SIDE
    for release in {first, then}:
        replay(Definition(name="test", function=release), run.workflow_id, run.events, CODEC).evict()


@pytest.mark.parametrize("back_and_forth", [("patched", "deprecated"), ("deprecated", "gone")], ids=" and ".join)
def test_a_run_may_change_the_release_at_every_turn(code: Any, back_and_forth: tuple[str, str]) -> None:
    run = Run(getattr(code, back_and_forth[0])).start()
    for turn in range(1, 4):
        deploy(run, getattr(code, back_and_forth[turn % 2]))
        run.complete(max(event.number for event in run.outputs if not isinstance(event, PatchMarked)))
    assert run.execution.closed
    assert run.tasks() == NEW_SIDE


def test_a_run_on_the_old_side_is_refused(code: Any) -> None:
    run = Run(code.before).start()
    run.complete(1)
    with pytest.raises(NonDeterminismError, match=r"history has 'shop\.notify', the code 'shop\.refund'"):
        deploy(run, code.deprecated)


def test_the_call_cannot_go_while_a_mark_of_patched_is_there(code: Any) -> None:
    run = Run(code.patched).start()
    run.complete(1)
    deploy(run, code.deprecated)
    with pytest.raises(NonDeterminismError, match=r"history has 'patched'"):
        deploy(run, code.gone)


def test_the_mark_of_patched_stays_binding_when_deprecated_code_has_replayed_it(begin: Begin, code: Any) -> None:
    run = begin(code.patched)
    run.complete(1)
    deploy(run, code.deprecated)
    finish(run)
    assert [event.is_deprecated for event in run.outputs if isinstance(event, PatchMarked)] == [False]


def several(ctx: WorkflowContext) -> list[bool]:
    for change in ("a", "b", "a", "c"):
        ctx.deprecate_patch(change)
    ctx.step(charge)
    return [ctx.patched("a"), ctx.patched("d")]


async def several_async(ctx: AsyncWorkflowContext) -> list[bool]:
    for change in ("a", "b", "a", "c"):
        ctx.deprecate_patch(change)
    await ctx.step(charge)
    return [ctx.patched("a"), ctx.patched("d")]


@pytest.mark.parametrize("changes", ["", "a", "ab", "abc", "b"])
@pytest.mark.parametrize("code", [several, several_async], ids=["def", "async def"])
def test_of_several_in_one_place_a_history_may_have_the_marks_it_was_written_with(
    begin: Begin, code: Code, changes: str
) -> None:
    def old(ctx: WorkflowContext) -> list[bool]:
        for change in changes:
            assert ctx.patched(change)
        ctx.step(charge)
        return []

    run = begin(old)
    deploy(run, code)
    run.complete(len(changes) + 1)
    assert run.result == ["a" in changes, True]


def test_each_branch_has_its_own(begin: Begin) -> None:
    def branch(ctx: WorkflowContext, change: str) -> None:
        ctx.step(charge)
        ctx.deprecate_patch(change)
        ctx.step(notify)

    def code(ctx: WorkflowContext) -> None:
        ctx.gather(ctx.spawn(branch, "a"), ctx.spawn(branch, "b"))

    run = begin(code)
    run.complete(2)
    run.complete(1)
    assert [event.patch_id for event in run.outputs if isinstance(event, PatchMarked)] == ["b", "a"]
    finish(run)

    def branch_gone(ctx: WorkflowContext, _: str) -> None:
        ctx.step(charge)
        ctx.step(notify)

    def gone(ctx: WorkflowContext) -> None:
        ctx.gather(ctx.spawn(branch_gone, "a"), ctx.spawn(branch_gone, "b"))

    assert replay(Definition(name="test", function=gone), run.workflow_id, run.events, CODEC).closed


def test_it_is_a_verb_and_so_for_workflow_code_alone() -> None:
    leaked: list[WorkflowContext] = []

    def code(ctx: WorkflowContext) -> None:
        leaked.append(ctx)
        ctx.step(charge)

    Run(code).start()
    with pytest.raises(DurableError, match="from outside its workflow code"):
        leaked[0].deprecate_patch("x")
