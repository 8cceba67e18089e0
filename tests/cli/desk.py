"""The app that the command line is tried on. Its broker and its code version come from the environment."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from durable_celery import RetryPolicy, WorkflowContext, current_step, durable_task

app = Celery("desk", broker=os.environ["DESK_BROKER"], set_as_current=False)
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)

#: An hour keeps the retry waiting for as long as a test looks at it.
LATER = RetryPolicy(initial_interval=3600.0, maximum_interval=3600.0, jitter=0.0)


@app.task(name="desk.note")
def note(text: str) -> str:
    return f"noted: {text}"


@app.task(name="desk.stumble")
def stumble() -> None:
    raise ConnectionError("the mail server is away")


@durable_task(app=app, name="desk.approval")
def approval(ctx: WorkflowContext, text: str) -> Any:
    noted = ctx.step(note, text)
    decision = ctx.wait_signal("decision")
    return [noted, decision]


@app.task(name="desk.ask")
def ask() -> None:
    step = current_step()
    assert step is not None
    raise step.complete_later()


@durable_task(app=app, name="desk.asked")
def asked(ctx: WorkflowContext) -> Any:
    return ctx.step(ask)


@durable_task(app=app, name="desk.mail")
def mail(ctx: WorkflowContext) -> None:
    ctx.options(retry=LATER).step(stumble)


@durable_task(app=app, name="desk.shift")
def shift(ctx: WorkflowContext, day: int) -> Any:
    """One run is one day; the id that it notes is another one in each run."""
    ctx.step(note, f"day {day}: {ctx.uuid4()}")
    decision = ctx.wait_signal("decision")
    if decision != "leave":
        ctx.continue_as_new(day + 1)
    return day


@durable_task(app=app, name="desk.family")
def family(ctx: WorkflowContext) -> Any:
    return ctx.step(approval, "for the child")


@durable_task(app=app, name="desk.upgraded")
def upgraded(ctx: WorkflowContext) -> None:
    ctx.step(note, "new" if os.environ.get("DESK_CODE") == "2" else "old")
    ctx.wait_signal("decision")
