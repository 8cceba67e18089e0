"""The subject: the same app with workflows. Broker and log are on one Redis database, or the log in SQL."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery

from benchmarks.plain import SETTINGS, URL
from durable_celery import WorkflowContext, durable_task

__all__ = ["app", "echo", "fan", "local", "noop", "paced", "pause", "sequence", "sleeper"]

app = Celery("benchmarks.durable", broker=f"{URL}/1", backend=f"{URL}/2", set_as_current=False)
app.conf.update(SETTINGS)
if store := os.environ.get("BENCH_STORE"):
    app.conf.update(durable_store=store, durable_namespace=os.environ["BENCH_NAMESPACE"])
app.conf.durable_shards = int(os.environ.get("BENCH_SHARDS", "1"))
# Longer histories than anybody should have are measured too.
app.conf.durable_history_limit = 1_000_000
app.conf.durable_run_ahead = float(os.environ.get("BENCH_RUN_AHEAD", "0"))
app.conf.durable_atomic_publish = bool(os.environ.get("BENCH_ATOMIC_PUBLISH"))


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


@app.task(ignore_result=True)
def noop(*_: Any) -> None:
    """Do nothing, keep no result: a task that no workflow calls."""


@app.task
def pause(seconds: float) -> None:
    """Take a while, and no CPU: as a step that waits for somebody else does."""
    time.sleep(seconds)


@durable_task(app=app)
def paced(ctx: WorkflowContext, steps: int, seconds: float) -> None:
    """Run steps one after the other that take a while."""
    for _ in range(steps):
        ctx.step(pause, seconds)


@durable_task(app=app)
def sleeper(ctx: WorkflowContext, seconds: float) -> None:
    """Sleep."""
    ctx.sleep(seconds)
