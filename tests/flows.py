"""A Celery app whose workflows can be watched from outside: what the pool and crash suites run on real workers.

Tasks leave a line for each execution in a file of the directory that they are given, so a test can count what really
ran. The app is made by a function, and its tasks join no other app, so a test process may make one for each site.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from celery import Celery, Task

from durable_celery import (
    AsyncWorkflowContext,
    RetryPolicy,
    WorkflowCancelled,
    WorkflowContext,
    current_step,
    durable_task,
)
from tests import long_steps

#: How long a task waits for a test to release it, in seconds.
HOLD_LIMIT = 60.0


class NotYetError(Exception):
    """A task that is to be tried again."""


def make_app(config: Mapping[str, Any]) -> Celery:
    """Return an app of its own with all tasks and workflows of this module."""
    app = Celery("flows", set_as_current=False)
    app.conf.update(config)
    for task in (add, effect, hold, hand_out, poison):
        app.task(name=task.__name__, shared=False)(task)
    app.task(name="watch", shared=False, base=Watching)(watch)
    app.task(name="flaky", shared=False, bind=True, autoretry_for=(NotYetError,), default_retry_delay=0)(flaky)
    app.task(name="unsteady", shared=False)(unsteady)
    for workflow in (
        sequence,
        rounds,
        fan_out,
        nap,
        approval,
        guarded,
        local,
        retrying,
        held,
        poisoned,
        held_local,
        called,
        watched,
    ):
        durable_task(name=workflow.__name__, app=app, shared=False)(workflow)
    child = durable_task(name="child", app=app, shared=False)(sequence)

    def composed(ctx: WorkflowContext, directory: str, child_id: str) -> list[Any]:
        ended = "in time"
        try:
            with ctx.timeout(2):
                ctx.step("hold", directory, "step")
        except TimeoutError:
            ended = "timed out"
        return [ended, ctx.options(workflow_id=child_id).step(child, directory, 2)]

    durable_task(name="composed", app=app, shared=False)(composed)
    long_steps.register(app, note)
    durable_task(name="asequence", app=app, shared=False)(asequence)
    durable_task(name="talkative", app=app, shared=False)(talkative).update(tell)
    durable_task(name="expectant", app=app, shared=False)(expectant)
    app.finalize()
    return app


# -- tasks -----------------------------------------------------------------------------------------------------------


def add(left: int, right: int) -> int:
    return left + right


def effect(directory: str, value: int, pause: float = 0.0) -> int:
    """Leave a line, then take some time: a kill meanwhile repeats the effect."""
    note(directory, "effects")
    time.sleep(pause)
    return value * 10


class Watching(Task):
    """Looks for its step in a handler, too."""

    def after_return(self, *rest: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        (directory,) = rest[3]
        note(directory, "after")


def watch(directory: str) -> int:
    return note(directory, "within")


def hold(directory: str, name: str) -> int:
    """Say that it runs, wait until the test lets it go, and return the attempt."""
    attempt = note(directory, f"{name}.began")
    deadline = time.monotonic() + HOLD_LIMIT
    while not (Path(directory) / f"{name}.release").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody released {name}")
        time.sleep(0.02)
    note(directory, f"{name}.ended")
    return attempt


def hand_out(token: str, directory: str) -> int:
    """Leave the token where the test finds it, and go on until the test lets it end."""
    with (Path(directory) / "tokens").open("ab", buffering=0) as file:
        file.write(f"{token}\n".encode())
    return hold(directory, "hand_out")


def poison(directory: str) -> None:
    """End the process that runs it, each time."""
    note(directory, "poison")
    os.kill(os.getpid(), signal.SIGKILL)


def flaky(self: Any, times: int) -> int:
    """Ask Celery for a retry a few times."""
    if self.request.retries < times:
        raise NotYetError(self.request.retries)
    retries: int = self.request.retries
    return retries


def unsteady(directory: str, times: int) -> int:
    """Fail a few times, to be tried again by the step's own policy."""
    attempt = note(directory, "unsteady")
    if attempt <= times:
        raise NotYetError(attempt)
    return attempt


def note(directory: str, name: str) -> int:
    """Append a line '<idempotency key> <attempt> <pid>' to a file, in one write; return the attempt."""
    step = current_step()
    key, attempt = (step.key, step.attempt) if step else ("local", 0)
    with (Path(directory) / name).open("ab", buffering=0) as file:
        file.write(f"{key} {attempt} {os.getpid()}\n".encode())
    return attempt


# -- workflows -------------------------------------------------------------------------------------------------------


def sequence(ctx: WorkflowContext, directory: str, steps: int, pause: float = 0.0) -> list[int]:
    return [ctx.step("effect", directory, number, pause) for number in range(steps)]


def watched(ctx: WorkflowContext, directory: str, steps: int) -> list[int]:
    """Do a step that has a message, because it has a priority, and then others of the same task."""
    return [
        ctx.options(priority=1).step("watch", directory),
        *(ctx.step("watch", directory) for _ in range(steps - 1)),
    ]


def rounds(ctx: WorkflowContext, directory: str, left: int, results: list[int] | None = None) -> list[int]:
    """Do two steps and take a signal in each run."""
    results = [*(results or []), *(ctx.step("effect", directory, number) for number in range(2))]
    results.append(ctx.wait_signal("round"))
    if left > 1:
        ctx.continue_as_new(directory, left - 1, results)
    return results


async def asequence(ctx: AsyncWorkflowContext, directory: str, steps: int) -> list[int]:
    async with asyncio.timeout(60):
        first = await ctx.step("effect", directory, 0)
        await asyncio.sleep(0.05)
        others = await asyncio.gather(*(ctx.step("effect", directory, number) for number in range(1, steps)))
    return [first, *others]


def fan_out(ctx: WorkflowContext, width: int) -> int:
    return sum(ctx.gather(*(ctx.start("add", number, 1) for number in range(width))))


def nap(ctx: WorkflowContext, seconds: float) -> float:
    before = ctx.now()
    ctx.sleep(seconds)
    return (ctx.now() - before).total_seconds()


def approval(ctx: WorkflowContext) -> Any:
    answer = ctx.wait_signal("approve", timeout=60)
    ctx.sleep(0.05)
    return [ctx.step("add", 1, 2), answer]


def guarded(ctx: WorkflowContext, directory: str) -> str:
    """Wait for ever; when cancelled, clean up with a step."""
    try:
        ctx.step("effect", directory, 1)
        ctx.wait_signal("never")
    except WorkflowCancelled:
        ctx.step("effect", directory, 2)
        raise
    return "not reached"


def local(ctx: WorkflowContext, directory: str) -> list[str]:
    return [ctx.run(_local_effect, directory, word) for word in ("one", "two")]


def _local_effect(directory: str, word: str) -> str:
    note(directory, "local")
    return word.upper()


def retrying(ctx: WorkflowContext, directory: str) -> list[int]:
    policy = RetryPolicy(initial_interval=0.05, maximum_attempts=5)
    return [ctx.step("flaky", 2), ctx.options(retry=policy).step("unsteady", directory, 2)]


def talkative(ctx: WorkflowContext, count: int) -> list[int]:
    """End when so many updates have been done."""
    ctx.state.told = []
    ctx.wait_until(lambda: len(ctx.state.told) >= count and not ctx.open_updates)
    return sorted(ctx.state.told)


def expectant(ctx: WorkflowContext, name: str) -> list[Any]:
    """Wait for an event, with a step before and a step after."""
    return [ctx.step("add", 1, 0), ctx.wait_event(name), ctx.step("add", 2, 0)]


def tell(ctx: WorkflowContext, directory: str, number: int) -> int:
    """Do a step, and tell of it in each way that there is."""
    value = ctx.step("effect", directory, number, 0.02)
    ctx.state.told.append(number)
    ctx.publish("last", number)
    ctx.stream("told").append([number, len(ctx.state.told)])
    return int(value)


def held(ctx: WorkflowContext, directory: str, name: str) -> list[int]:
    """A step before, a step that waits for the test, a step after."""
    return [ctx.step("add", 1, 0), ctx.step("hold", directory, name), ctx.step("add", 2, 0)]


def held_local(ctx: WorkflowContext, directory: str, name: str) -> list[int]:
    """A local step that waits for the test, in the run message's own turn, and a step after."""
    return [ctx.run(hold, directory, name), ctx.step("add", 2, 0)]


def poisoned(ctx: WorkflowContext, directory: str, attempts: int | None) -> str:
    ctx.options(retry=attempts).step("poison", directory)
    return "not reached"


def called(ctx: WorkflowContext, directory: str) -> list[Any]:
    """Wait for an answer to a token that a step hands out."""
    answer = ctx.wait_callback("hand_out", directory, timeout=300, heartbeat=200)
    return [answer, ctx.step("add", 1, 2)]
