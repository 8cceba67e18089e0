# Celery carries no types: to pyright a task is the function that it was made of.
# pyright: reportFunctionMemberAccess=false
"""An app whose large payloads stand in a directory. The worker imports it with ``-A tests.codec.archive``."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, Task

from durable_celery import AsyncWorkflowContext, WorkflowContext, durable_task
from durable_celery.codec import FileBlobs, Offload

app = Celery("archive", set_as_current=False)
app.conf.update(
    broker_url=os.environ.get("ARCHIVE_BROKER"),
    durable_store=os.environ.get("ARCHIVE_BROKER", ""),
    durable_codec=Offload(FileBlobs(os.environ.get("ARCHIVE_BLOBS", "/nowhere")), above=2000),
    durable_resend_after=1.0,
    durable_resend_limit=2.0,
)


@app.task(name="archive.double", shared=False)
def double(text: str) -> str:
    return text + text


@app.task(name="archive.again", shared=False, bind=True, max_retries=2)
def again(self: Task, text: str) -> str:
    if self.request.retries == 0:
        raise self.retry(args=(text + text,), countdown=0)
    assert self.request.args == [text]
    return text


@durable_task(name="archive.store", app=app)
def store(ctx: WorkflowContext, text: str) -> list[Any]:
    return [ctx.step(double, text), ctx.step(again, text), ctx.wait_signal("go"), ctx.run(double.run, text)]


@durable_task(name="archive.store_async", app=app)
async def store_async(ctx: AsyncWorkflowContext, text: str) -> list[Any]:
    seen = [await ctx.step(double, text), await ctx.step(again, text)]
    return [*seen, await ctx.wait_signal("go"), await ctx.run(double.run, text)]


@durable_task(name="archive.store_elsewhere", app=app)
def store_elsewhere(ctx: WorkflowContext, text: str) -> Any:
    return ctx.options(queue="elsewhere").step(double, text)
