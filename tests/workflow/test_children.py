"""What becomes of child runs that go on when the code of their parent has ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from durable_celery.codec import rebuild
from durable_celery.errors import InvalidRequestError
from durable_celery.events import RunCancelled, RunCompleted, RunFailed
from durable_celery.workflow import AsyncWorkflowContext, WorkflowContext
from tests.workflow.log import CODEC, Run, child

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
