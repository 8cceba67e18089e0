"""More workflows with all that they need, as in :mod:`tests.engine.programs`: the verbs that are composed of others."""

from __future__ import annotations

from functools import partial
from typing import Any

from durable_celery.current import Pulse
from durable_celery.errors import CompleteLater, StepLostError
from durable_celery.policy import RetryPolicy
from durable_celery.store.protocol import StepKey
from durable_celery.testing.world import World
from durable_celery.workflow import AsyncWorkflowContext, Tolerance, WorkflowContext
from tests.engine.programs import CANCELLED, DONE, FAILED, Outcomes, Program, arithmetic


def batch_of_branches(world: World) -> Outcomes:
    plus, double = arithmetic(world)

    def branch(ctx: WorkflowContext, x: int) -> Any:
        return ctx.step(double, ctx.step(plus, x))

    def main(ctx: WorkflowContext) -> list[int]:
        return ctx.map(branch, range(5), max_concurrency=2).raise_if_failed().results

    world.start(world.flow(main))
    return {"w": (DONE, [2, 4, 6, 8, 10])}


def batch_that_is_decided(world: World) -> Outcomes:
    """Which items end is chance; that enough of them do is not, and nothing goes on afterwards."""
    plus, _ = arithmetic(world)

    async def main(ctx: AsyncWorkflowContext) -> list[Any]:
        async def slow(inner: AsyncWorkflowContext, x: int) -> int:
            await inner.sleep(x * 10)
            return int(await inner.step(plus, x))

        batch = await ctx.map(slow, range(6), max_concurrency=3, tolerate=Tolerance(successes=2))
        return [batch.is_successful, len(batch.results), [str(item.status) for item in batch.items[4:]]]

    world.start(world.flow(main))
    return {"w": (DONE, [True, 2, ["skipped", "skipped"]])}


def saga_that_fails(world: World) -> Outcomes:
    undone: list[int] = []
    plus, _ = arithmetic(world)
    undo = world.task(undone.append, "undo")

    def no() -> None:
        raise ValueError("declined")

    refuse = world.task(no, "no")

    def main(ctx: WorkflowContext) -> None:
        with ctx.saga() as saga:
            saga.compensate(undo, ctx.step(plus, 1))
            saga.compensate(undo, ctx.step(plus, 2))
            ctx.options(retry=RetryPolicy(initial_interval=0.5, maximum_attempts=30)).step(plus, 3)
            ctx.step(refuse)

    world.start(world.flow(main))
    return {"w": (FAILED, "declined")}


def saga_that_is_cancelled(world: World) -> Outcomes:
    plus, double = arithmetic(world)

    def main(ctx: WorkflowContext) -> None:
        with ctx.saga() as saga:
            saga.compensate(double, ctx.step(plus, 1))
            ctx.wait_signal("never")

    world.start(world.flow(main))
    world.at(6, world.cancel)
    return {"w": (CANCELLED, "asked")}


def polled(world: World) -> Outcomes:
    looks: list[int] = []

    def look() -> int:
        looks.append(1)
        return len(looks)

    task = world.task(look, "look")

    def main(ctx: WorkflowContext) -> bool:
        return bool(ctx.poll(task, every=5, until=lambda number: number >= 3, timeout=900) >= 3)

    world.start(world.flow(main))
    return {"w": (DONE, True)}


def conditions(world: World) -> Outcomes:
    plus, _ = arithmetic(world)

    def main(ctx: WorkflowContext) -> list[int]:
        done: list[int] = []

        def branch(inner: WorkflowContext, x: int) -> None:
            done.append(inner.step(plus, x))

        for x in range(3):
            ctx.spawn(branch, x)
        ctx.wait_until(lambda: len(done) == 3, timeout=900)
        return sorted(done)

    world.start(world.flow(main))
    return {"w": (DONE, [1, 2, 3])}


def shielded(world: World) -> Outcomes:
    plus, double = arithmetic(world)

    def main(ctx: WorkflowContext) -> None:
        def must_end(inner: WorkflowContext) -> None:
            inner.sleep(5)
            inner.step(double, inner.step(plus, 1))

        ctx.shield(ctx.spawn(must_end))

    world.start(world.flow(main))
    world.at(3, world.cancel)
    return {"w": (CANCELLED, "asked")}


def children_left(world: World) -> Outcomes:
    """A parent ends, with a child that goes on, one that is cancelled, and one that it waits for."""
    plus, _ = arithmetic(world)

    def child(ctx: WorkflowContext, seconds: float) -> Any:
        ctx.sleep(seconds)
        return ctx.step(plus, 1)

    kid = world.flow(child)

    def main(ctx: WorkflowContext) -> str:
        ctx.options(parent_close="abandon").start(kid, 9)
        ctx.options(parent_close="cancel").start(kid, 90)
        ctx.options(parent_close="wait").start(kid, 4)
        ctx.step(plus, 1)
        return "ended"

    world.start(world.flow(main))
    return {
        "w": (DONE, "ended"),
        "w/1.1": (DONE, 2),
        "w/1.2": (CANCELLED, "cancelled by its parent w"),
        "w/1.3": (DONE, 2),
    }


def child_abandoned_by_a_cancel(world: World) -> Outcomes:
    plus, _ = arithmetic(world)

    def child(ctx: WorkflowContext) -> Any:
        ctx.sleep(8)
        return ctx.step(plus, 1)

    kid = world.flow(child)

    def main(ctx: WorkflowContext) -> None:
        ctx.options(parent_close="abandon").start(kid)
        ctx.wait_signal("never")

    world.start(world.flow(main))
    world.at(3, world.cancel)
    return {"w": (CANCELLED, "asked"), "w/1.1": (DONE, 2)}


def several_runs(world: World) -> Outcomes:
    """Each run takes a signal, leaves one for the next, and a step that nobody waits for."""
    plus, double = arithmetic(world)

    def main(ctx: WorkflowContext, month: int = 1, total: int = 0) -> list[Any]:
        ctx.start(double, month)
        total = ctx.step(plus, total) + ctx.wait_signal("payment")
        if month < 3:
            ctx.continue_as_new(month + 1, total=total)
        return [ctx.info.run, month, total]

    world.start(world.flow(main))
    for number, moment in enumerate((0, 0, 2), 1):
        world.at(moment, lambda number=number: world.signal("payment", 10 * number, key=f"{number}"))  # type: ignore[misc]
    return {"w": (DONE, [3, 3, 63])}


def several_runs_of_async_code_end_by_a_cancel(world: World) -> Outcomes:
    plus, _ = arithmetic(world)

    async def main(ctx: AsyncWorkflowContext, month: int = 1) -> None:
        await ctx.step(plus, month)
        await ctx.sleep(4)
        ctx.continue_as_new(month + 1)

    world.start(world.flow(main))
    world.at(10, world.cancel)
    return {"w": (CANCELLED, "asked")}


def children_of_several_runs(world: World) -> Outcomes:
    """Children that go on, that are cancelled, and that are waited for, each in another run; one goes on itself."""
    plus, _ = arithmetic(world)

    def child(ctx: WorkflowContext, seconds: float, more: int = 0) -> Any:
        ctx.sleep(seconds)
        if more:
            ctx.continue_as_new(seconds, more - 1)
        return ctx.step(plus, ctx.info.run)

    kid = world.flow(child)

    def main(ctx: WorkflowContext, policies: list[str], results: list[int]) -> list[int]:
        if not policies:
            return results
        ctx.options(parent_close=policies[0]).start(kid, 9 if policies[0] == "abandon" else 90)
        results = [*results, ctx.step(kid, 1, 2)]
        return ctx.continue_as_new(policies[1:], results)

    world.start(world.flow(main), ["cancel", "abandon"], [])
    return {
        "w": (DONE, [4, 4]),
        "w/1.1": (CANCELLED, "cancelled by its parent w"),
        "w/1.2": (DONE, 4),
        "w/2.1": (DONE, 2),
        "w/2.2": (DONE, 4),
    }


def progress_of_a_step(world: World) -> Outcomes:
    """Each attempt goes on where an earlier one has stopped; the third one comes to the end."""
    policy = RetryPolicy(initial_interval=0.5, maximum_attempts=30)

    def climb() -> int:
        process = world.running
        assert process.claim is not None
        pulse = Pulse(process.engine, process.claim)
        height = pulse.progress or 0
        if height == 2:
            return int(height)
        pulse.beat(height + 1)
        pulse.check()
        raise ConnectionError(f"at {height}")

    task = world.task(climb)

    def main(ctx: WorkflowContext) -> Any:
        return ctx.options(retry=policy, heartbeat_timeout=600).step(task)

    world.start(world.flow(main))
    return {"w": (DONE, 2)}


def attempts_that_take_too_long(world: World) -> Outcomes:
    """Two attempts go on for longer than they may; what they return is not used."""
    policy = RetryPolicy(initial_interval=0.5, maximum_attempts=30)
    seen: list[int] = []

    def crawl() -> int:
        seen.append(1)
        if len(seen) < 3:
            world.clock.advance(5)
            world.store.sweep()
        return 0 if len(seen) < 3 else 1

    task = world.task(crawl)

    async def main(ctx: AsyncWorkflowContext) -> Any:
        return await ctx.options(retry=policy, attempt_timeout=4).step(task)

    world.start(world.flow(main))
    return {"w": (DONE, 1)}


def told_from_outside(world: World) -> Outcomes:
    """Two steps leave their outcome to others, which comes when it comes; nobody comes for the third."""

    def hand_out() -> None:
        raise CompleteLater

    task = world.task(hand_out)

    def main(ctx: WorkflowContext) -> list[Any]:
        first, second = ctx.start(task), ctx.options(heartbeat_timeout=250).start(task)
        with_timeout = ctx.options(timeout=200).start(task)
        found = ctx.gather(first, second, with_timeout, return_exceptions=True)
        return [*found[:2], type(found[2]).__name__]

    world.start(world.flow(main))
    for seconds in (2, 40, 150):
        for number in (1, 2):
            key = StepKey(workflow_id="w", run=1, number=number)
            world.at(seconds, partial(world.complete, key, f"the {number}."))
    return {"w": (DONE, ["the 1.", "the 2.", "StepTimeoutError"])}


def at_most_once(world: World) -> Outcomes:
    """Where nothing is lost it is a step like any other; where something is, the workflow hears of it."""
    begun: list[int] = []

    def fire() -> int:
        begun.append(1)
        return len(begun)

    task, (plus, _) = world.task(fire), arithmetic(world)

    def main(ctx: WorkflowContext) -> bool:
        try:
            is_once = ctx.options(at_most_once=True, retry=5).step(task) == 1
        except StepLostError:
            is_once = len(begun) <= 1
        return bool(is_once and ctx.step(plus, 1) == 2)

    world.start(world.flow(main))
    return {"w": (DONE, True)}


VOCABULARY: tuple[Program, ...] = (
    progress_of_a_step,
    attempts_that_take_too_long,
    told_from_outside,
    at_most_once,
    batch_of_branches,
    batch_that_is_decided,
    saga_that_fails,
    saga_that_is_cancelled,
    polled,
    conditions,
    shielded,
    children_left,
    child_abandoned_by_a_cancel,
    several_runs,
    several_runs_of_async_code_end_by_a_cancel,
    children_of_several_runs,
)
