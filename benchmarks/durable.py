"""The subject: the same app with workflows. Broker and log are on one Redis database, or the log in SQL."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from benchmarks.plain import SETTINGS, URL
from durable_celery import WorkflowContext, durable_task

__all__ = ["app", "echo", "fan", "local", "sequence", "sleeper"]

app = Celery("benchmarks.durable", broker=f"{URL}/1", backend=f"{URL}/2", set_as_current=False)
app.conf.update(SETTINGS)
if store := os.environ.get("BENCH_STORE"):
    app.conf.update(durable_store=store, durable_namespace=os.environ["BENCH_NAMESPACE"])
app.conf.durable_run_ahead = float(os.environ.get("BENCH_RUN_AHEAD", "0"))


@app.task
def echo(value: Any = None) -> Any:
    """Give back what was given: an ordinary Celery task."""
    return value


@durable_task(app=app)
def sequence(ctx: WorkflowContext, steps: int) -> int:
    """Run remote steps one after the other."""
    for number in range(steps):
        ctx.step(echo, number)
    return steps


@durable_task(app=app)
def local(ctx: WorkflowContext, steps: int) -> int:
    """Run local steps one after the other."""
    for number in range(steps):
        ctx.run(abs, number)
    return steps


@durable_task(app=app)
def fan(ctx: WorkflowContext, steps: int) -> int:
    """Run remote steps side by side and wait for all."""
    return len(ctx.gather(*[ctx.start(echo, number) for number in range(steps)]))


@durable_task(app=app)
def sleeper(ctx: WorkflowContext, seconds: float) -> None:
    """Sleep."""
    ctx.sleep(seconds)
