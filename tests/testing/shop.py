"""A shop under test: plain tasks, bound ones, retrying ones, pydantic ones, and workflows over them."""

# Celery carries no types: to pyright a task is the function that it was made of.
# pyright: reportArgumentType=false, reportCallIssue=false, reportFunctionMemberAccess=false

from __future__ import annotations

import asyncio
import random
from typing import Any

from celery import Celery, Task, signals
from pydantic import BaseModel

from durable_celery import AsyncWorkflowContext, WorkflowContext, current_step, durable_task

#: Nothing answers at these addresses.
app = Celery("shop", broker="redis://nowhere.invalid:1/0", backend="redis://nowhere.invalid:1/1", set_as_current=False)

#: What the outside world has seen: (what, key).
seen: list[tuple[str, str | None]] = []
prerun: list[str] = []


class DeclinedError(Exception):
    """The card was declined."""


@signals.task_prerun.connect
def note_prerun(task: Any = None, **_: Any) -> None:
    prerun.append(task.name)


@app.task
def charge(order_id: str, amount: int) -> str:
    step = current_step()
    seen.append((f"charge {order_id} {amount}", step.key if step else None))
    return f"pay-{order_id}"


@app.task
def send(order_id: str, payment: str) -> str:
    return f"mail {order_id} {payment}"


@app.task
def collect(words: list[str]) -> str:
    return ",".join(words)


@app.task
def decline(order_id: str) -> str:
    raise DeclinedError(order_id)


class Counting(Task):
    """A base class with a ``__call__`` of its own."""

    abstract = True
    calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        Counting.calls += 1
        return super().__call__(*args, **kwargs)


@app.task(bind=True, base=Counting)
def bound(self: Any, word: str) -> list[Any]:
    return [word, self.name, self.request.id]


@app.task(autoretry_for=(ConnectionError,), default_retry_delay=60, retry_backoff=False, max_retries=5)
def fetch(url: str) -> str:
    return f"page {url}"


@app.task(bind=True, max_retries=5)
def insist(self: Any, wanted: int) -> int:
    if self.request.retries < wanted:
        raise self.retry(countdown=600)
    return int(self.request.retries)


class Invoice(BaseModel):
    """What an order costs."""

    order_id: str
    total: int


@app.task(pydantic=True)
def bill(invoice: Invoice) -> Invoice:
    return Invoice(order_id=invoice.order_id, total=invoice.total * 2)


@app.task
def tell(word: str) -> None:
    """Call another task from a step, as any Celery task may."""
    charge.delay(word, 1)


@durable_task(app=app)
def checkout(ctx: WorkflowContext, order_id: str, amount: int) -> str:
    payment: str = ctx.step(charge, order_id, amount)
    ctx.step(send, order_id, payment)
    return payment


@durable_task(app=app)
async def checkout_async(ctx: AsyncWorkflowContext, order_id: str, amount: int) -> str:
    payment: str = await ctx.step(charge, order_id, amount)
    await asyncio.sleep(3600)
    await ctx.step(send, order_id, payment)
    return payment


@durable_task(app=app)
def failing(ctx: WorkflowContext, order_id: str) -> str:
    return str(ctx.step(decline, order_id))


@durable_task(app=app)
def approval(ctx: WorkflowContext, order_id: str) -> str:
    decision: str = ctx.wait_signal("decision")
    ctx.sleep(86400)
    return f"{order_id} {decision}"


@durable_task(app=app)
def two_waits(ctx: WorkflowContext) -> None:
    def wait(inner: WorkflowContext, name: str) -> Any:
        return inner.wait_signal(name)

    ctx.gather(ctx.spawn(wait, "paid"), ctx.spawn(wait, "packed"))


@durable_task(app=app)
def any_step(ctx: WorkflowContext, task: str, *args: Any) -> Any:
    return ctx.step(task, *args)


@durable_task(app=app)
def family(ctx: WorkflowContext, order_id: str) -> list[str]:
    return [ctx.step(checkout, order_id, 1), ctx.step(checkout, order_id, 2)]


@durable_task(app=app)
def fickle(ctx: WorkflowContext) -> str:
    return str(ctx.step(charge, str(random.random()), 1))


@durable_task(app=app)
def fickle_at_the_end(ctx: WorkflowContext) -> str:
    ctx.step(charge, "o", 1)
    return "done" if next(_turns) == 0 else str(ctx.step(charge, "another", 1))


#: Which execution of ``fickle_at_the_end`` this is, from the first that comes so far.
_turns = iter(range(1_000_000))


@durable_task(app=app)
def reaching_out(ctx: WorkflowContext) -> str:
    with open("/etc/hostname", encoding="utf-8") as file:  # noqa: PTH123 - what the guard stops
        return file.read()


@durable_task(app=app)
def for_ever(ctx: WorkflowContext) -> None:
    while True:
        ctx.sleep(1)


@durable_task(app=app)
def poll(ctx: WorkflowContext) -> int:
    polls = 1
    while ctx.step(charge, "poll", polls) != "ready":
        ctx.sleep(60)
        polls += 1
    return polls


@durable_task(app=app)
def local(ctx: WorkflowContext, word: str) -> str:
    return ctx.run(note, word)


def note(word: str) -> str:
    seen.append((word, None))
    return word.upper()


@durable_task(app=app)
def with_steps(ctx: WorkflowContext, steps: int) -> int:
    return steps
