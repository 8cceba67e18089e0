"""An app whose workflows call tasks of another service, by name."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from durable_celery import AsyncWorkflowContext, ForeignTask, WorkflowContext, durable_task

app = Celery("till", broker=os.environ.get("BILLING_BROKER"), backend=os.environ.get("BILLING_BACKEND"))
# Nobody serves the default queue: what the library's own tasks need comes to the queue of the workflow.
app.conf.update(task_default_queue="nobody", durable_resend_after=1.0)


@durable_task(app=app, queue="till")
def pay(ctx: WorkflowContext, order: str, amount: int) -> Any:
    return ctx.step(ForeignTask("billing.charge", queue="billing"), order, amount=amount)


@durable_task(app=app, queue="till")
async def pay_async(ctx: AsyncWorkflowContext, order: str, amount: int) -> Any:
    return await ctx.step(ForeignTask("billing.charge", queue="billing"), order, amount=amount)


@durable_task(app=app, queue="till")
def call(ctx: WorkflowContext, name: str, *args: Any, timeout: float | None = None, retry: int | None = None) -> Any:
    return ctx.options(timeout=timeout, retry=retry).step(ForeignTask(name, queue="billing"), *args)


@durable_task(app=app, queue="till")
def insist(ctx: WorkflowContext, order: str) -> Any:
    return ctx.step(ForeignTask("billing.charge", queue="billing", resend_after=1.0), order)
