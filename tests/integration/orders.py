"""Workflows of the integration suite. The source goes into the worker's directory, or into its container."""

# Celery carries no types: to pyright a shared task is the function that it was made of.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import time
from typing import Any

from celery import current_app, shared_task

from durable_celery import WorkflowContext, current_step, durable_task

#: Keys in the result backend, which workers and tests reach alike, also from inside a container.
ATTEMPTS, RELEASE = "orders:attempts", "orders:release"
HOLD_LIMIT = 60.0


@shared_task
def charge(order: str, amount: int) -> str:
    return f"payment of {amount} for {order}"


@shared_task
def ship(order: str) -> int:
    """Say which attempt this is, wait until the test lets it go, return the attempt."""
    step = current_step()
    attempt = step.attempt if step else 0
    redis: Any = current_app.backend.client  # pyright: ignore[reportAttributeAccessIssue] # the Redis backend has it
    redis.rpush(ATTEMPTS, attempt)
    deadline = time.monotonic() + HOLD_LIMIT
    while not redis.exists(RELEASE):
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody let {order} go")
        time.sleep(0.05)
    return attempt


@shared_task
def confirm(order: str, payment: str) -> str:
    return f"{order}: {payment}"


@durable_task
def checkout(ctx: WorkflowContext, order: str, amount: int) -> str:
    payment = ctx.step(charge, order, amount)
    confirmation: str = ctx.step(confirm, order, payment)
    return confirmation


@durable_task
def delivery(ctx: WorkflowContext, order: str) -> tuple[str, int, str]:
    payment = ctx.step(charge, order, 1)
    attempt = ctx.step(ship, order)
    return payment, attempt, ctx.step(confirm, order, "shipped")


@durable_task
def approval(ctx: WorkflowContext, order: str) -> tuple[str, float]:
    before = ctx.now()
    ctx.sleep(0.5)
    slept = (ctx.now() - before).total_seconds()
    return ctx.step(confirm, order, ctx.wait_signal("approve", timeout=60)), slept
