"""Workflows with all that they need: each function starts runs in a world and returns what they must end with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from durable_celery.errors import StepLostError, WorkflowCancelled
from durable_celery.policy import RetryPolicy
from durable_celery.store.protocol import RunStatus
from durable_celery.testing.world import Task, World
from durable_celery.workflow import AsyncWorkflowContext, WorkflowContext

#: workflow id -> status and result
Outcomes = dict[str, tuple[RunStatus, Any]]
Program = Callable[[World], Outcomes]

DONE, FAILED, CANCELLED = RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED


def arithmetic(world: World) -> tuple[Task, Task]:
    """Register two steps whose results tell whether each ran with what the other gave."""
    return world.task(lambda x: x + 1, "plus"), world.task(lambda x: x * 2, "double")


def sequence(world: World) -> Outcomes:
    plus, double = arithmetic(world)

    def main(ctx: WorkflowContext, x: int) -> Any:
        for _ in range(2):
            x = ctx.step(double, ctx.step(plus, x))
        return x

    world.start(world.flow(main), 1)
    return {"w": (DONE, 10)}


def fan_out(world: World) -> Outcomes:
    plus, double = arithmetic(world)

    def main(ctx: WorkflowContext) -> list[int]:
        first = ctx.gather(*(ctx.start(plus, x) for x in range(4)))
        branches = [ctx.spawn(lambda inner, x: inner.step(double, inner.step(plus, x)), x) for x in first]
        return ctx.gather(*branches)

    world.start(world.flow(main))
    return {"w": (DONE, [4, 6, 8, 10])}


def asynchronous(world: World) -> Outcomes:
    plus, double = arithmetic(world)

    async def main(ctx: AsyncWorkflowContext, x: int) -> list[int]:
        async def branch(y: int) -> int:
            await asyncio.sleep(y)
            return await ctx.step(double, y)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(branch(x + y)) for y in range(3)]
        return [await ctx.step(plus, task.result()) for task in tasks]

    world.start(world.flow(main), 1)
    return {"w": (DONE, [3, 5, 7])}


def race_with_timer(world: World) -> Outcomes:
    plus, _ = arithmetic(world)

    def main(ctx: WorkflowContext) -> list[Any]:
        won = ctx.race(step=ctx.start(plus, 1), alarm=ctx.timer(900))
        lost = ctx.race(signal=ctx.signal("never"), alarm=ctx.timer(4))
        return [won.name, won.value, lost.name, ctx.step(plus, 2)]

    world.start(world.flow(main))
    return {"w": (DONE, ["step", 2, "alarm", 3])}


def signals(world: World) -> Outcomes:
    plus, _ = arithmetic(world)

    def main(ctx: WorkflowContext) -> list[int]:
        first = ctx.wait_signal("go")
        ctx.sleep(5)
        return [first, ctx.wait_signal("go", timeout=900), ctx.step(plus, ctx.wait_signal("last"))]

    world.start(world.flow(main))
    world.signal("go", 1)
    world.at(1, lambda: world.signal("go", 2, key="second"))
    world.at(2, lambda: world.signal("go", 2, key="second"))
    world.at(3, lambda: world.signal("last", 3))
    return {"w": (DONE, [1, 2, 4])}


def children(world: World) -> Outcomes:
    plus, _ = arithmetic(world)

    def child(ctx: WorkflowContext, x: int) -> Any:
        if x > 2:
            raise ValueError(f"{x} is too much")
        return ctx.step(plus, x)

    kid = world.flow(child)

    def main(ctx: WorkflowContext) -> list[Any]:
        results = ctx.gather(*(ctx.start(kid, x) for x in (1, 2, 3)), return_exceptions=True)
        return [str(result) for result in results]

    world.start(world.flow(main))
    return {"w": (DONE, ["2", "3", "3 is too much"]), "w/1.1": (DONE, 2), "w/1.3": (FAILED, "3 is too much")}


def cancel_with_clean_up(world: World) -> Outcomes:
    plus, double = arithmetic(world)

    def child(ctx: WorkflowContext) -> None:
        ctx.wait_signal("never")

    kid = world.flow(child)

    def main(ctx: WorkflowContext) -> Any:
        ctx.step(plus, 1)
        handle = ctx.start(kid)
        try:
            return ctx.wait_signal("never")
        except WorkflowCancelled:
            handle.cancel()
            ctx.step(double, 4)
            raise

    world.start(world.flow(main))
    world.at(20, world.cancel)
    return {"w": (CANCELLED, "asked"), "w/1.2": (CANCELLED, "cancelled by its parent w")}


def cancel_at_once(world: World) -> Outcomes:
    """The child is cancelled in the very turn that starts it, or soon after: whoever is first, it does not go on."""

    def child(ctx: WorkflowContext) -> None:
        ctx.wait_signal("never")

    kid = world.flow(child)

    def main(ctx: WorkflowContext) -> str:
        ctx.start(kid).cancel()
        second = ctx.start(kid)
        ctx.sleep(1)
        second.cancel()
        ctx.sleep(1)
        return "gone"

    world.start(world.flow(main))
    return {"w": (DONE, "gone"), "w/1.1": (CANCELLED, "cancelled by its parent w")}


def local_steps(world: World) -> Outcomes:
    plus, _ = arithmetic(world)

    def main(ctx: WorkflowContext, x: int) -> list[int]:
        made = ctx.run(lambda: x + 10)
        handle = ctx.start(plus, made)
        again = ctx.run(lambda: made + 10)
        return [made, handle.result(), again]

    world.start(world.flow(main), 1)
    return {"w": (DONE, [11, 12, 21])}


def retries(world: World) -> Outcomes:
    failures = [ValueError("first"), ValueError("second")]

    def flaky() -> str:
        if failures:
            raise failures.pop()
        return "third"

    def broken() -> None:
        raise KeyError("never")

    flaky_task, broken_task = world.task(flaky), world.task(broken)

    def main(ctx: WorkflowContext) -> list[Any]:
        policy = RetryPolicy(initial_interval=1, maximum_attempts=8)
        result = ctx.options(retry=policy).step(flaky_task)
        try:
            ctx.options(retry=RetryPolicy(initial_interval=0.5, maximum_attempts=4)).step(broken_task)
        except (KeyError, StepLostError):
            # By its last attempt, or by the loss of the process that ran it.
            return [result, "gave up"]
        return []

    world.start(world.flow(main))
    return {"w": (DONE, ["third", "gave up"])}


def deadline(world: World) -> Outcomes:
    """A step whose messages go to a queue that nobody serves ends by its timeout; so does a child."""
    plus, _ = arithmetic(world)

    def child(ctx: WorkflowContext) -> None:
        ctx.wait_signal("never")

    kid = world.flow(child)

    def main(ctx: WorkflowContext) -> str:
        try:
            ctx.options(timeout=15).step(kid)
        except TimeoutError:
            return f"late {ctx.step(plus, 1)}"
        return "in time"

    world.start(world.flow(main))
    return {"w": (DONE, "late 2"), "w/1.1": (CANCELLED, "cancelled by its parent w")}


def delayed(world: World) -> Outcomes:
    plus, _ = arithmetic(world)

    def main(ctx: WorkflowContext) -> Any:
        return ctx.step(plus, 1)

    flow = world.flow(main)
    world.start(flow, id="late", delay=20.0)
    world.start(flow, id="in time", expires=60.0)
    world.start(flow, id="too late", delay=20.0, expires=10.0)
    world.start(flow, id="never", delay=20.0)
    world.at(5, partial(world.cancel, "never"))
    return {
        "late": (DONE, 2),
        "in time": (DONE, 2),
        "too late": (CANCELLED, "expired before it began"),
        "never": (CANCELLED, "asked"),
    }


def blocked(world: World) -> Outcomes:
    """New code that does not fit the history is deployed, and mended later."""
    plus, double = arithmetic(world)

    def old(ctx: WorkflowContext) -> Any:
        x = ctx.step(plus, 1)
        ctx.sleep(10)
        return ctx.step(double, x)

    def wrong(ctx: WorkflowContext) -> Any:
        x = ctx.step(double, 1)
        ctx.sleep(10)
        return ctx.step(plus, x)

    world.start(world.flow(old, "main"))

    def deploy() -> None:
        if "TimerStarted" not in world.kinds():
            # A fault has kept the old code from its first turns.
            world.at(2, deploy)
            return
        world.at(55, lambda: world.flow(old, "main"))
        world.flow(wrong, "main")
        for process in world.processes:
            process.engine.cache.clear()

    world.at(5, deploy)
    return {"w": (DONE, 4)}


PROGRAMS: tuple[Program, ...] = (
    sequence,
    fan_out,
    asynchronous,
    race_with_timer,
    signals,
    children,
    cancel_with_clean_up,
    cancel_at_once,
    local_steps,
    retries,
    deadline,
    delayed,
    blocked,
)
