"""Foreign tasks in both forms: the two steps of one, resends, retries, timeouts, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from durable_celery.codec import rebuild
from durable_celery.errors import InvalidRequestError, StepTimeoutError
from durable_celery.events import RunCancelled, StepScheduled
from durable_celery.policy import RetryPolicy
from durable_celery.workflow import AsyncWorkflowContext, ForeignTask, WorkflowContext
from durable_celery.workflow.foreign import OUTCOME, SEND
from tests.workflow.log import CODEC, Run

Code = Callable[..., Any]
Begin = Callable[..., Run]


def forms(*codes: Code) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("code", codes, ids=["def", "async def"])


def options(given: dict[str, Any]) -> dict[str, Any]:
    retry = given.get("retry")
    return {**given, "retry": RetryPolicy(initial_interval=1, jitter=0, maximum_attempts=retry) if retry else None}


def pay_sync(ctx: WorkflowContext, resend_after: float | None, **given: Any) -> Any:
    task = ForeignTask("billing.charge", queue="billing", resend_after=resend_after)
    return ctx.options(**options(given)).step(task, "o-1", amount=5)


async def pay_async(ctx: AsyncWorkflowContext, resend_after: float | None, **given: Any) -> Any:
    task = ForeignTask("billing.charge", queue="billing", resend_after=resend_after)
    return await ctx.options(**options(given)).step(task, "o-1", amount=5)


def begun(code: Code, begin: Begin, resend_after: float | None = None, **given: Any) -> Run:
    def sync(ctx: WorkflowContext) -> Any:
        return code(ctx, resend_after, **given)

    async def plain(ctx: AsyncWorkflowContext) -> Any:
        return await code(ctx, resend_after, **given)

    return begin(plain if code is pay_async else sync)


def steps(run: Run) -> list[StepScheduled]:
    return [event for event in run.outputs if isinstance(event, StepScheduled)]


def arguments(event: StepScheduled) -> list[Any]:
    args: list[Any] = CODEC.decode(event.payload)[0]
    return args


@forms(pay_sync, pay_async)
def test_a_foreign_task_is_sent_and_then_looked_for(code: Code, begin: Begin) -> None:
    run = begun(code, begin, priority=7)
    run.complete(1, "w-1/1.1/foreign")
    run.complete(2, "paid")

    send, look = steps(run)
    call = [["o-1"], {"amount": 5}]
    assert (send.task, arguments(send)) == (SEND, ["billing.charge", call, {"queue": "billing", "priority": 7}])
    assert (look.task, arguments(look)) == (OUTCOME, ["w-1/1.1/foreign"])
    assert [dict(step.options or {})["label"] for step in (send, look)] == [
        "billing.charge",
        "billing.charge (outcome)",
    ]
    # What goes to the other service is no option of our own two.
    assert not {"queue", "priority", "timeout"} & {*(send.options or {}), *(look.options or {})}
    assert run.result == "paid"


@forms(pay_sync, pay_async)
def test_a_foreign_task_is_sent_again_under_the_same_id(code: Code, begin: Begin) -> None:
    run = begun(code, begin, 60)
    run.complete(1, "id-1")
    run.fail(2, StepTimeoutError("nothing"))
    again = steps(run)[2]
    assert (again.task, arguments(again)[-1]) == (SEND, "id-1")
    run.complete(3, "id-1")
    run.complete(4, "paid")

    assert [dict(step.options or {}).get("timeout") for step in steps(run)] == [None, 60, None, 60]
    assert run.result == "paid"


@forms(pay_sync, pay_async)
def test_a_foreign_task_that_failed_is_sent_anew_by_the_policy(code: Code, begin: Begin) -> None:
    run = begun(code, begin, retry=2)
    run.complete(1, "id-1")
    run.fail(2, ValueError("declined"))
    run.fire(3)
    assert arguments(steps(run)[2])[0] == "billing.charge"
    run.complete(4, "id-4")
    run.fail(5, ValueError("declined again"))

    assert str(rebuild(run.last.payload, CODEC)) == "declined again"
    assert arguments(steps(run)[3]) == ["id-4"]


@forms(pay_sync, pay_async)
def test_a_timeout_is_for_all_of_it(code: Code, begin: Begin) -> None:
    run = begun(code, begin, 8, timeout=10, retry=9)
    run.complete(1, "id-1")
    run.now += 7000
    run.fail(2, StepTimeoutError("nothing in 8 s"))
    run.complete(3, "id-1")

    # Each input takes a second here; with the last one the time is up.
    assert [dict(step.options or {}).get("timeout") for step in steps(run)] == [10, 8, 1]
    error = rebuild(run.last.payload, CODEC)
    assert isinstance(error, StepTimeoutError)
    assert "billing.charge did not end within 10 s" in str(error)


@forms(pay_sync, pay_async)
def test_a_cancel_of_the_run_gives_up_looking(code: Code, begin: Begin) -> None:
    run = begun(code, begin)
    run.complete(1, "id-1")
    run.cancel()

    assert run.cancelled() == [2]
    assert isinstance(run.last, RunCancelled)


def test_what_cannot_be_meant_is_refused() -> None:
    for name in ("", None, 7):
        with pytest.raises(InvalidRequestError, match="has a name"):
            ForeignTask(name)  # type: ignore[arg-type]  # that is the point
    for patience in (0, timedelta(0)):
        with pytest.raises(InvalidRequestError, match="sends without end"):
            ForeignTask("billing.charge", resend_after=patience)
    with pytest.raises(InvalidRequestError, match="a duration is"):
        ForeignTask("billing.charge", resend_after=-1)


@pytest.mark.parametrize("how", ["compensate", "poll", "child"])
def test_other_verbs_and_options_do_not_take_a_foreign_task_for_one_of_this_app(how: str) -> None:
    def code(ctx: WorkflowContext) -> None:
        task = ForeignTask("billing.charge")
        if how == "child":
            ctx.options(workflow_id="mine").start(task)
        elif how == "poll":
            ctx.poll(task, every=1)
        else:
            ctx.saga().compensate(task)

    run = Run(code).start()

    assert isinstance(rebuild(run.last.payload, CODEC), InvalidRequestError)
    assert run.kinds() == ["RunFailed"]
