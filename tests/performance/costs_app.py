"""The app whose costs are counted. Nothing is sent again in a count, however slow the machine is."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from durable_celery import WorkflowContext, durable_task

app = Celery("costs", set_as_current=False)
app.conf.update(
    broker_url=os.environ.get("COSTS_BROKER", "memory://"),
    task_ignore_result=True,
    durable_resend_after=300.0,
    durable_run_ahead=float(os.environ.get("COSTS_RUN_AHEAD", "0")),
    durable_atomic_publish=bool(os.environ.get("COSTS_ATOMIC_PUBLISH")),
)


def _echo(value: Any = None) -> Any:
    return value


#: Celery's decorator has no types.
echo: Any = app.task(_echo, name="costs.echo")


@durable_task(app=app, name="costs.sequence")
def sequence(ctx: WorkflowContext, steps: int) -> int:
    for number in range(steps):
        ctx.step(echo, number)
    return steps


@durable_task(app=app, name="costs.local")
def local(ctx: WorkflowContext, steps: int) -> int:
    for number in range(steps):
        ctx.run(abs, number)
    return steps


@durable_task(app=app, name="costs.fan")
def fan(ctx: WorkflowContext, steps: int) -> int:
    return len(ctx.gather(*[ctx.start(echo, number) for number in range(steps)]))
