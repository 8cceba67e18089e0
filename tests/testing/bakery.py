"""Workflows whose saved histories are replayed. What today's code does wrong, the environment says: `BAKERY_BUG`."""

# Celery carries no types: to pyright a task is the function that it was made of.
# pyright: reportArgumentType=false

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from celery import Celery

from durable_celery import AsyncWorkflowContext, WorkflowContext, durable_task

#: No broker answers there: replaying needs none.
app = Celery("bakery", broker="redis://127.0.0.1:1/0", set_as_current=False)

#: What runs leave behind that they should not.
baked: list[str] = []
#: Each time that the local step runs.
weighed: list[str] = []


def bug(name: str) -> bool:
    return os.environ.get("BAKERY_BUG") == name


@app.task(name="bakery.knead")
def knead(dough: str) -> str:
    return dough


@app.task(name="bakery.bake")
def bake(dough: str) -> str:
    return dough


@app.task(name="bakery.sell")
def sell(what: str) -> str:
    return what


def weigh(dough: str) -> int:
    weighed.append(dough)
    return len(dough)


@durable_task(app=app, name="bakery.bread")
def bread(ctx: WorkflowContext, dough: str) -> Any:
    weight = ctx.run(weigh, dough)
    kneaded = ctx.step(bake if bug("task") else knead, dough if not bug("dough") else "another dough")
    if bug("memory"):
        baked.append(dough)
        if len(baked) > 1:
            ctx.step(sell, "another one")
    ctx.sleep(timedelta(hours=8))
    if bug("new step") or (bug("patched") and ctx.patched("sample")):
        ctx.step(sell, "a sample")
    if bug("datetime") and datetime.now(UTC).year != ctx.now().year:
        ctx.step(sell, "what is old")
    if bug("time") and time.localtime().tm_year != ctx.now().year:
        ctx.step(sell, "what is old")
    if bug("death") and os.environ.get("PYTHONHASHSEED") == "2":
        sys.stderr.write("the oven exploded\n")
        sys.stderr.flush()
        os._exit(3)
    if bug("signal"):
        baked.append(dough)
    baker = ctx.wait_signal("baker" if len(baked) < 2 else "a baker")
    if bug("file"):
        open("/etc/hostname").close()  # noqa: PTH123 - what a careless author writes
    weight += ctx.run(weigh, kneaded)
    return [weight, ctx.step(bake, kneaded), baker]


@durable_task(app=app, name="bakery.rolls")
async def rolls(ctx: AsyncWorkflowContext) -> Any:
    kinds = ["rye", "wheat", "oat", "corn", "rice", "spelt"]
    done = [await ctx.step(bake, kind) for kind in (set(kinds) if bug("set") else kinds)]
    return [*done, await ctx.run(weigh, "all")]
