# Celery carries no types: to pyright a task is the function that it was made of.
# pyright: reportFunctionMemberAccess=false
"""One workflow as three releases of a shop have it: RELEASE is `old` (version 1), `new` (version 2) or `both`.

Each version's runs have a queue of their own. The worker imports this with ``-A tests.celery.releases``.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from durable_celery import AsyncWorkflowContext, WorkflowContext, durable_task

RELEASE = os.environ.get("RELEASE", "both")
NAME = "releases.checkout"

app = Celery("releases", set_as_current=False)
app.conf.update(
    broker_url=os.environ.get("SHOP_BROKER"),
    durable_store=os.environ.get("SHOP_STORE", ""),
    durable_resend_after=1.0,
    durable_resend_limit=2.0,
)


@app.task(shared=False, name="releases.whoami")
def whoami(part: str) -> str:
    """Say which worker executed this."""
    return f"{part} by {RELEASE}"


def checkout_v1(ctx: WorkflowContext, steps_queue: str) -> list[Any]:
    parts = [ctx.run(whoami.run, "begun")]
    parts.append(ctx.wait_signal("go"))
    parts += [ctx.options(queue=steps_queue).step(whoami, f"step {number}") for number in range(2)]
    return ["v1", *parts, ctx.run(whoami.run, "ended")]


async def checkout_v2(ctx: AsyncWorkflowContext, steps_queue: str) -> list[Any]:
    parts = [await ctx.run(whoami.run, "begun"), await ctx.wait_signal("go")]
    parts += [await ctx.options(queue=steps_queue).step(whoami, f"step {number}") for number in range(2)]
    return ["v2", *parts, await ctx.run(whoami.run, "ended")]


def nest(ctx: WorkflowContext, steps_queue: str) -> list[Any]:
    return ctx.gather(*(ctx.start(version, steps_queue) for version in (old, new)))


def register(release: str, version: int, function: Any) -> Any:
    decorate = durable_task(name=NAME, app=app, version=version, queue=f"releases-v{version}")
    return decorate(function) if RELEASE in {"both", release} else None


old, new = register("old", 1, checkout_v1), register("new", 2, checkout_v2)
if RELEASE == "both":
    parent: Any = durable_task(name="releases.nest", app=app, queue="releases-nest")(nest)
