# pyright: reportUnnecessaryTypeIgnoreComment=true
"""What type checkers say of workflows. A comment that ignores an error proves it: one too many is an error too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_type

from celery import Celery, Task

from durable_celery import (
    AsyncWorkflowContext,
    DurableTask,
    ForeignTask,
    Query,
    Signal,
    Update,
    UpdateHandle,
    WorkflowContext,
    WorkflowHandle,
    complete_callback,
    durable_task,
    publish_event,
)
from durable_celery.workflow.handles import Handle, StepHandle
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


@durable_task
def scoped(ctx: WorkflowContext) -> str:
    assert_type(ctx.start({"task": "a signature"}), Handle[Any])
    assert_type(ctx.start(ForeignTask("billing.charge")), Handle[Any])
    # A block with a time limit swallows nothing, one that may be told to end does.
    with ctx.timeout(60) as scope:
        assert_type(scope.cancelled, bool)
        return "in time"


@durable_task
async def scoped_async(ctx: AsyncWorkflowContext) -> str:
    async with ctx.cancel_scope() as scope:
        return "in time"
    return f"told to end: {scope.cancel()}"


@durable_task(name="named", queue="side")
async def with_options(ctx: AsyncWorkflowContext, count: int) -> float:
    assert_type(await ctx.step(charge, "o", count), bytes)
    return count / 2


@durable_task(name="named", version=2, queue="named-v2")
def second_version(ctx: WorkflowContext, count: int) -> float:
    ctx.deprecate_patch("half")
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


@checkout.query
def status(state: Any, verbose: bool = False) -> str:
    return f"{state.phase} {verbose}"


@checkout.query(name="count")
def how_many(state: Any) -> int:
    return len(state.items)


@checkout.update
def add_item(ctx: WorkflowContext, item: str, count: int = 1) -> float:
    return len(item) * count / 2


@add_item.validator
def _(state: Any, item: str, count: int = 1) -> None: ...


@with_options.update
async def add_later(ctx: AsyncWorkflowContext, item: str) -> bytes:
    return item.encode()


@with_options.update(name="later still")
async def add_later_still(ctx: AsyncWorkflowContext, item: str) -> bytes:
    return item.encode()


@add_later.validator  # type: ignore[arg-type]
def wrong(state: Any, item: int) -> None: ...


def talk(handle: WorkflowHandle[list[str]]) -> None:
    keeps_its_answer: Query[..., str] = status
    assert_type(handle.query(keeps_its_answer), str)
    assert_type(handle.query(status, True), str)
    assert_type(handle.query(how_many), int)
    assert_type(handle.query("status"), Any)
    handle.query(how_many, 1)  # type: ignore[call-overload]
    keeps_its_result: Update[..., float] = add_item
    assert_type(handle.update(keeps_its_result), float)
    assert_type(handle.update(add_item, "apple", count=2, key="k", timeout=1), float)
    assert_type(handle.start_update(add_later, "apple"), UpdateHandle[bytes])
    assert_type(handle.start_update(add_later_still, "apple").result(timeout=1), bytes)
    assert_type(checkout.update_with_start(add_item, ("apple",), task_id="o-1"), UpdateHandle[float])
    assert_type(checkout.signal_with_start("go", 1, args=("o-1",), task_id="o-1"), WorkflowHandle[list[str]])


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
    assert_type(second_version.delay(3).get(), float)
    durable_task(version="2")  # type: ignore[call-overload]
    second_version.delay("3")  # type: ignore[arg-type]
    nothing.delay("too much")  # type: ignore[call-arg]


@dataclass
class Approval:
    by: str


approved = Signal("approved", Approval)
count = Signal("count", int)
done = Signal("done", None)
anything = Signal("anything")
optional: Signal[int | None] = Signal("optional", int | None)


@durable_task(signals=[approved, count, "plain"])
def waits(ctx: WorkflowContext) -> None:
    assert_type(ctx.wait_signal(approved), Approval)
    assert_type(ctx.wait_signal(count, timeout=3), int)
    assert_type(ctx.wait_signal(optional), int | None)
    assert_type(ctx.signal(approved), Handle[Approval])
    assert_type(ctx.signal(approved).result().by, str)
    ctx.wait_signal("plain").whatever()
    ctx.wait_signal(anything).whatever()
    assert_type(ctx.callback(timeout=3).token, str)
    assert_type(ctx.event("paid"), Handle[Any])
    assert_type(ctx.wait_event("paid", 3), Any)
    assert_type(ctx.publish_event("paid", 1), None)


@durable_task(signals=[approved])
async def waits_too(ctx: AsyncWorkflowContext) -> None:
    assert_type(await ctx.wait_signal(approved), Approval)
    assert_type(await ctx.signal(count), int)


def send(handle: WorkflowHandle[None], token: str) -> None:
    handle.signal(approved, Approval("ann"), key="k")
    handle.signal(done)
    handle.signal("plain", object())
    handle.signal(approved, "ann")  # type: ignore[misc]
    handle.signal(approved)  # type: ignore[arg-type]
    handle.signal(count, None)  # type: ignore[arg-type]
    assert_type(complete_callback(token, 1), bool)
    assert_type(publish_event("paid", 1), bool)
