"""Steps that take long, and the workflows that call them: heartbeats, limits, losses, outcomes from outside.

A part of the app of :mod:`tests.flows`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Celery

from durable_celery import StepCancelled, StepLostError, StepTimeoutError, WorkflowContext, current_step, durable_task

#: How long a step goes on if nobody ends it, in seconds.
LONGEST = 60.0


def register(app: Celery, note: Callable[[str, str], int]) -> None:
    """Add the tasks and workflows to an app; ``note`` leaves a line of an execution in a file."""

    def beating(directory: str, name: str) -> list[int]:
        """Go on with heartbeats until it is stopped or released; return where each attempt began, by its progress."""
        step = current_step()
        assert step is not None
        note(directory, f"{name}.began")
        begin = step.progress or 0
        try:
            for count in range(begin, begin + round(LONGEST / 0.02)):
                step.heartbeat(count)
                if (Path(directory) / f"{name}.release").exists():
                    return [begin, step.attempt]
                time.sleep(0.02)
        except StepCancelled:
            note(directory, f"{name}.stopped")
            raise
        return [begin, -1]

    def silent(directory: str, name: str) -> int:
        """Hang in the first attempt; then return the attempt."""
        attempt = note(directory, f"{name}.began")
        if attempt == 1:
            time.sleep(LONGEST)
        return attempt

    def handed_out(directory: str, name: str) -> None:
        note(directory, name)
        step = current_step()
        assert step is not None
        raise step.complete_later()

    for task in (beating, silent, handed_out):
        app.task(name=task.__name__, shared=False)(task)
    for workflow in (with_options, raced, once):
        durable_task(name=workflow.__name__, app=app, shared=False)(workflow)


def with_options(ctx: WorkflowContext, task: str, directory: str, name: str, options: dict[str, Any]) -> Any:
    try:
        return ctx.options(**options).step(task, directory, name)
    except (StepLostError, StepTimeoutError) as error:
        return [type(error).__name__, str(error)]


def raced(ctx: WorkflowContext, directory: str, name: str) -> str:
    won = ctx.race(step=ctx.start("beating", directory, name), signal=ctx.signal("enough")).name
    ctx.wait_signal("end")
    return won


def once(ctx: WorkflowContext, directory: str, name: str, retry: int | None) -> Any:
    """Hold in a step that is not to be repeated, in a worker that may be killed meanwhile."""
    return with_options(ctx, "hold", directory, name, {"at_most_once": True, "retry": retry})
