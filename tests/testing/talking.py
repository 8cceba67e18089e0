"""An app whose workflows are talked to."""

# Celery carries no types: to pyright a task is the function that it was made of.
# pyright: reportArgumentType=false, reportCallIssue=false, reportFunctionMemberAccess=false

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from celery import Celery

from durable_celery import AsyncWorkflowContext, WorkflowContext, durable_task

app = Celery("talking", broker="redis://nowhere.invalid:1/0", set_as_current=False)


@dataclass
class Line:
    item: str
    count: int


@app.task
def price(item: str) -> int:
    return len(item)


@durable_task(app=app)
def basket(ctx: WorkflowContext, owner: str, size: int = 3) -> int:
    ctx.state.owner, ctx.state.lines, ctx.state.ctx = owner, [], ctx
    ctx.logger.warning("the basket of %s", owner)
    ctx.publish("phase", "open")
    try:
        ctx.wait_until(lambda: len(ctx.state.lines) >= size)
    finally:
        ctx.state.lines.append(Line("the bag", 1))
    ctx.publish("phase", "closed")
    return len(ctx.state.lines)


@basket.query
def lines(state: Any) -> list[Line]:
    return state.lines  # type: ignore[no-any-return] # a state holds anything


@basket.query(name="of")
def lines_of(state: Any, item: str, *, least: int = 1) -> int:
    return sum(line.count for line in state.lines if line.item == item and line.count >= least)


@basket.query
def clearing(state: Any) -> int:
    state.lines.clear()
    return len(state.lines)


@basket.query
def raising(state: Any) -> None:
    raise LookupError(state.owner)


@basket.query
def stepping(state: Any) -> Any:
    return state.ctx.step(price, "x")


@basket.query
def everything(state: Any) -> Any:
    return state


@basket.update
def put(ctx: WorkflowContext, item: str, count: int = 1) -> int:
    ctx.stream("lines").append({"item": item, "cost": ctx.step(price, item)})
    ctx.state.lines.append(Line(item, count))
    return len(ctx.state.lines)


@put.validator
def _(state: Any, item: str, count: int = 1) -> None:
    if count < 1:
        raise ValueError(f"{state.owner} asked for {count} of {item}")


@basket.update
def never(ctx: WorkflowContext) -> None:
    ctx.wait_signal("never")


@durable_task(app=app)
async def counter(ctx: AsyncWorkflowContext) -> int:
    ctx.state.count = 0
    await ctx.wait_signal("end")
    ctx.state.count += 100
    return int(ctx.state.count)


@counter.query
def count(state: Any) -> int:
    return int(state.count)


@counter.update
async def more(ctx: AsyncWorkflowContext, number: int) -> int:
    await ctx.sleep(60)
    ctx.state.count += number
    return int(ctx.state.count)


def stamp(number: int) -> int:
    return number + 1


@durable_task(app=app)
def local(ctx: WorkflowContext) -> None:
    ctx.state.phase = "before"
    try:
        ctx.run(stamp, 1)
        ctx.state.phase = "after"
    except BaseException:
        ctx.state.phase = "unwound"
        raise
    ctx.wait_signal("never")


@local.query
def phase(state: Any) -> str:
    return str(state.phase)


@durable_task(app=app)
def chancy(ctx: WorkflowContext) -> None:
    ctx.step(price, "x" * random.randrange(10**6))


@chancy.query
def nothing(state: Any) -> None: ...


@durable_task(app=app)
def quick(ctx: WorkflowContext) -> str:
    return "done"


@durable_task(app=app)
def letters(ctx: WorkflowContext, first: str) -> list[Any]:
    return [first, ctx.wait_signal("letter"), ctx.wait_signal("letter")]


@durable_task(app=app)
def leaving(ctx: WorkflowContext) -> None:
    """End while a branch goes on."""
    ctx.state.seen = []

    def branch(inner: WorkflowContext) -> None:
        inner.state.seen.append("begun")
        try:
            inner.wait_signal("never")
        finally:
            inner.state.seen.append("ended")

    ctx.spawn(branch)
    ctx.step(price, "x")


@leaving.query
def seen(state: Any) -> list[str]:
    return list(state.seen)
