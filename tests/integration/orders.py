"""Workflows of the integration suite. The source goes into the worker's directory, or into its container."""

# Celery carries no types: to pyright a shared task is the function that it was made of.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import time

from celery import shared_task

from durable_celery import WorkflowContext, current_step, durable_task

#: Seconds for which a first attempt stands still, to be killed meanwhile.
HOLD = 60.0


@shared_task
def charge(order: str, amount: int) -> str:
    return f"payment of {amount} for {order}"


@shared_task
def ship(order: str) -> int:
    """Return which attempt this is; the first waits for its worker to be killed."""
    step = current_step()
    attempt = step.attempt if step else 0
    if attempt == 1:
        time.sleep(HOLD)
        raise TimeoutError(f"nobody killed the worker of {order}")
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
