"""The app that Flower looks at. Steps that ``hold`` run until the test lets them go."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery, Task

from durable_celery import RetryPolicy, StepTimeoutError, WorkflowContext, current_step, durable_task

app = Celery("shop", broker=os.environ["SHOP_BROKER"], set_as_current=False)
app.conf.update(
    broker_connection_retry_on_startup=True,
    task_ignore_result=True,
    # Each pool process has a task in hand and more in reserve: received, and not started.
    worker_prefetch_multiplier=4,
    durable_owner_ttl=2.0,
    durable_resend_after=2.0,
)

#: Where steps say that they hold, and find the word to go on.
GATES = Path(os.environ["SHOP_GATES"])
SOON = RetryPolicy(initial_interval=0.1, backoff_coefficient=1.0, maximum_attempts=3)


@app.task(name="shop.charge")
def charge(order: str, amount: int = 1) -> str:
    return f"{order}:{amount}"


@app.task(name="shop.stumble")
def stumble() -> int:
    step = current_step()
    assert step is not None
    if step.attempt < 3:
        raise ConnectionError("not yet")
    return step.attempt


@app.task(name="shop.retries", bind=True, autoretry_for=(ConnectionError,), default_retry_delay=0.1, max_retries=3)
def retries(self: Task) -> int:
    if self.request.retries < 2:
        raise ConnectionError("not yet")
    count: int = self.request.retries
    return count


@app.task(name="shop.hold")
def hold(gate: str) -> str:
    (GATES / f"{gate}.held").touch()
    while not (GATES / gate).exists():
        time.sleep(0.02)
    return gate


@app.task(name="shop.poison")
def poison() -> None:
    os.kill(os.getpid(), 9)


@durable_task(app=app, name="shop.checkout")
def checkout(ctx: WorkflowContext, order: str, amount: int) -> Any:
    paid = ctx.step(charge, order, amount)
    ctx.wait_signal("go")
    return [paid, ctx.step(charge, order, amount=2)]


@durable_task(app=app, name="shop.quick")
def quick(ctx: WorkflowContext, order: str) -> Any:
    return ctx.step(charge, order)


@durable_task(app=app, name="shop.fails")
def fails(ctx: WorkflowContext) -> None:
    ctx.step(charge, "o-2", 1)
    ctx.sleep(0.5)
    raise ValueError("sold out")


@durable_task(app=app, name="shop.stubborn")
def stubborn(ctx: WorkflowContext) -> Any:
    return [ctx.options(retry=SOON).step(stumble), ctx.step(retries)]


@durable_task(app=app, name="shop.fan")
def fan(ctx: WorkflowContext, size: int) -> Any:
    return ctx.gather(*(ctx.start(charge, f"f-{number}") for number in range(size)))


@durable_task(app=app, name="shop.family")
def family(ctx: WorkflowContext) -> Any:
    return ctx.step(quick, "from-family")


@durable_task(app=app, name="shop.holds")
def holds(ctx: WorkflowContext, gate: str) -> Any:
    return ctx.step(hold, gate)


@durable_task(app=app, name="shop.elsewhere")
def elsewhere(ctx: WorkflowContext, gate: str) -> Any:
    return ctx.options(queue="steps").step(hold, gate)


@durable_task(app=app, name="shop.drops")
def drops(ctx: WorkflowContext, first: str, second: str) -> None:
    """Fill the pool with two steps; give a third up by hand, and a fourth by its timeout."""
    holding, other = ctx.start(hold, first), ctx.start(hold, second)
    unwanted = ctx.start(charge, "unwanted")
    late = ctx.options(timeout=0.2).start(charge, "late")
    holding.result()
    try:
        late.result()
    except StepTimeoutError:
        unwanted.cancel()
    other.result()


@durable_task(app=app, name="shop.deadly")
def deadly(ctx: WorkflowContext) -> None:
    ctx.options(retry=RetryPolicy(initial_interval=0.1, maximum_attempts=2)).step(poison)
