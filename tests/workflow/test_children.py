"""What becomes of child runs that go on when the code of their parent has ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from durable_celery.codec import rebuild
from durable_celery.errors import InvalidIdError, InvalidRequestError, NonDeterminismError
from durable_celery.events import RunCancelled, RunCompleted, RunFailed, StepScheduled
from durable_celery.workflow import AsyncWorkflowContext, WorkflowContext
from tests.workflow.log import CODEC, Run, Task, charge, child

Code = Callable[..., Any]
Begin = Callable[..., Run]


def forms(*codes: Code) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("code", codes, ids=["def", "async def"])


def leaving_sync(ctx: WorkflowContext, policy: str | None, fails: bool) -> str:
    ctx.options(parent_close=policy).start(child, 1)
    ctx.start(child, 2)
    ctx.wait_signal("go")
    if fails:
        raise ValueError("no")
    return "done"


async def leaving_async(ctx: AsyncWorkflowContext, policy: str | None, fails: bool) -> str:
    ctx.options(parent_close=policy).start(child, 1)
    ctx.start(child, 2)
    await ctx.wait_signal("go")
    if fails:
        raise ValueError("no")
    return "done"


@forms(leaving_sync, leaving_async)
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("policy", [None, "abandon"])
def test_a_child_goes_on_after_the_end_of_its_parent(code: Code, begin: Begin, policy: str | None, fails: bool) -> None:
    run = begin(code, policy, fails)
    run.signal("go")

    assert run.execution.closed
    assert run.cancelled() == []


@forms(leaving_sync, leaving_async)
@pytest.mark.parametrize("fails", [False, True])
def test_a_child_is_cancelled_with_the_end_of_its_parent_if_that_was_asked_for(
    code: Code, begin: Begin, fails: bool
) -> None:
    run = begin(code, "cancel", fails)
    run.signal("go")

    assert run.cancelled() == [1]
    assert isinstance(run.last, RunFailed if fails else RunCompleted)


@forms(leaving_sync, leaving_async)
@pytest.mark.parametrize("fails", [False, True])
def test_the_end_of_a_parent_waits_for_its_child_if_that_was_asked_for(code: Code, begin: Begin, fails: bool) -> None:
    run = begin(code, "wait", fails)
    run.signal("go")
    assert not run.execution.closed
    assert "shop.child" in run.execution.waiting
    run.complete(1)

    assert isinstance(run.last, RunFailed if fails else RunCompleted)
    assert run.cancelled() == []


@forms(leaving_sync, leaving_async)
def test_the_failure_of_a_child_that_is_only_waited_for_does_not_fail_its_parent(code: Code, begin: Begin) -> None:
    run = begin(code, "wait", False)
    run.signal("go")
    run.fail(1, ValueError("the child"))

    assert run.result == "done"


@forms(leaving_sync, leaving_async)
def test_a_cancel_that_comes_while_a_parent_waits_for_its_child_cancels_both(code: Code, begin: Begin) -> None:
    run = begin(code, "wait", False)
    run.signal("go")
    run.cancel()

    assert run.cancelled() == [1, 2]
    assert isinstance(run.last, RunCancelled)


@forms(leaving_sync, leaving_async)
def test_a_cancel_leaves_a_child_that_was_abandoned_alone(code: Code, begin: Begin) -> None:
    run = begin(code, "abandon", False)
    run.cancel()

    assert run.cancelled() == [2]
    assert isinstance(run.last, RunCancelled)


def test_an_unknown_policy_is_refused() -> None:
    def code(ctx: WorkflowContext) -> None:
        ctx.options(parent_close="forget").step(child)

    run = Run(code).start()

    assert isinstance(run.last, RunFailed)
    error = rebuild(run.last.payload, CODEC)
    assert isinstance(error, InvalidRequestError)
    assert "cancel, abandon, wait" in str(error)


def chosen_sync(ctx: WorkflowContext, id: Any, what: Task) -> list[Any]:  # noqa: A002
    handle = ctx.options(workflow_id=id).start(what, 1)
    plain = ctx.start(child, 2)
    return [handle.workflow_id, plain.workflow_id, ctx.start(charge).workflow_id]


async def chosen_async(ctx: AsyncWorkflowContext, id: Any, what: Task) -> list[Any]:  # noqa: A002
    handle = ctx.options(workflow_id=id).start(what, 1)
    plain = ctx.start(child, 2)
    return [handle.workflow_id, plain.workflow_id, ctx.start(charge).workflow_id]


def bound(code: Code, what: Task) -> Code:
    """Give a workflow what no history can hold."""

    def sync(ctx: WorkflowContext, id: Any) -> Any:  # noqa: A002
        return code(ctx, id, what)

    async def plain(ctx: AsyncWorkflowContext, id: Any) -> Any:  # noqa: A002
        return await code(ctx, id, what)

    return plain if code is chosen_async else sync


@forms(chosen_sync, chosen_async)
def test_the_code_chooses_the_id_of_a_child_and_it_is_recorded(code: Code) -> None:
    run = Run(bound(code, child)).start("invoice-7")

    assert run.result == ["invoice-7", "w-1/1.2", None]
    first, second = run.outputs[:2]
    assert isinstance(first, StepScheduled)
    assert isinstance(second, StepScheduled)
    assert (first.options, second.options) == ({"workflow_id": "invoice-7"}, None)


@forms(chosen_sync, chosen_async)
@pytest.mark.parametrize("id", ["", "a b", "x" * 256, "{1}", "new\nline", 7])
def test_an_id_that_cannot_be_one_is_refused(code: Code, id: Any) -> None:  # noqa: A002
    run = Run(bound(code, child)).start(id)

    assert isinstance(rebuild(run.last.payload, CODEC), InvalidIdError)
    assert run.kinds() == ["RunFailed"]


@forms(chosen_sync, chosen_async)
def test_the_id_of_a_child_is_refused_for_a_plain_task(code: Code) -> None:
    run = Run(bound(code, charge)).start("invoice-7")

    assert "shop.charge is no durable task" in str(rebuild(run.last.payload, CODEC))
    assert run.kinds() == ["RunFailed"]


def test_an_id_that_is_another_one_on_replay_is_no_child_of_the_history() -> None:
    ids = iter(["first", "second"])

    def code(ctx: WorkflowContext) -> None:
        ctx.options(workflow_id=next(ids)).step(child)

    run = Run(code).start()

    with pytest.raises(NonDeterminismError, match=r"id of the child run: history has 'first', the code 'second'"):
        run.replayed()
