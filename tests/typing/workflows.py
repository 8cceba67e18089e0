# pyright: reportUnnecessaryTypeIgnoreComment=true
"""What type checkers say of workflows. A comment that ignores an error proves it: one too many is an error too."""

from __future__ import annotations

from typing import assert_type

from celery import Celery, Task

from durable_celery import AsyncWorkflowContext, DurableTask, WorkflowContext, WorkflowHandle, durable_task
from durable_celery.workflow.handles import StepHandle
from durable_celery.workflow.tasks import TaskLike


class Charge:
    """A task with types, as typed stubs for Celery give it."""

    name = "charge"

    def __call__(self, order: str, amount: int) -> bytes:
        return f"{order}{amount}".encode()


charge: TaskLike[[str, int], bytes] = Charge()

app = Celery("typed", set_as_current=False)

#: mypy takes it for true. To mypy Celery's own decorator gives Any; pyright sees through it.
MYPY = False


@app.task(shared=False)
def add(x: int, y: int) -> int:
    return x + y


@app.task(bind=True, shared=False)
def bound(self: Task, x: int) -> str:
    return str(x)


@durable_task
def checkout(ctx: WorkflowContext, order: str, amount: int = 1) -> list[str]:
    assert_type(ctx.step(charge, order, amount), bytes)
    assert_type(ctx.start(charge, order, amount), StepHandle[bytes])
    assert_type(ctx.options(at_most_once=True, attempt_timeout=5).step(charge, order, amount), bytes)
    ctx.step(charge, amount, order)  # type: ignore[call-overload]
    return [order]


@durable_task(name="named", queue="side")
async def with_options(ctx: AsyncWorkflowContext, count: int) -> float:
    assert_type(await ctx.step(charge, "o", count), bytes)
    return count / 2


@durable_task
def parent(ctx: WorkflowContext) -> None:
    assert_type(ctx.step(checkout, "o-1", amount=2), list[str])
    assert_type(ctx.start(with_options, 1), StepHandle[float])
    if not MYPY:
        assert_type(ctx.step(add, 1, 2), int)
        assert_type(ctx.step(bound, 1), str)
        ctx.step(add, "1", 2)  # pyright: ignore[reportCallIssue]


@durable_task
def again(ctx: WorkflowContext, month: int) -> str:
    # It never returns, so nothing has to be returned after it.
    ctx.continue_as_new(month + 1)


@durable_task
async def again_and_again(ctx: AsyncWorkflowContext, month: int) -> str:
    if ctx.info.continue_as_new_suggested:
        ctx.continue_as_new(month + ctx.info.history_bytes)
    return "done"


@durable_task(app=app)
def nothing(ctx: WorkflowContext) -> None: ...


def start() -> None:
    handle = checkout.delay("o-1", amount=2)
    assert_type(handle, WorkflowHandle[list[str]])
    assert_type(handle.get(timeout=1), list[str])
    assert_type(with_options.delay(3).get(), float)
    assert_type(checkout.apply_async(("o-1",), task_id="o-1").get(), list[str])
    assert_type(checkout.AsyncResult("o-1").get(), list[str])
    keeps_its_signature: DurableTask[[int], float] = with_options
    keeps_its_signature.delay(4)

    checkout.delay()  # type: ignore[call-arg]
    checkout.delay(1)  # type: ignore[arg-type]
    checkout.delay("o-1", colour="red")  # type: ignore[call-arg]
    with_options.delay("3")  # type: ignore[arg-type]
    nothing.delay("too much")  # type: ignore[call-arg]
