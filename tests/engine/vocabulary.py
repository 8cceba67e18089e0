"""More workflows with all that they need, as in :mod:`tests.engine.programs`: the verbs that are composed of others."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from durable_celery.errors import WaitTimeoutError, WorkflowConflictError
from durable_celery.foreign import NotYetError
from durable_celery.policy import RetryPolicy
from durable_celery.testing.world import World
from durable_celery.workflow import AsyncWorkflowContext, ForeignTask, Tolerance, WorkflowContext
from durable_celery.workflow.foreign import OUTCOME, SEND
from tests.engine.programs import CANCELLED, DONE, FAILED, Outcomes, Program, arithmetic
from tests.workflow.signatures import chain, chord, sig


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


def scopes(world: World) -> Outcomes:
    """A block whose time is up while its clean-up goes on, and one that another branch ends."""
    plus, double = arithmetic(world)

    def main(ctx: WorkflowContext) -> list[Any]:
        def stop(inner: WorkflowContext, scope: Any) -> None:
            inner.step(plus, 1)
            scope.cancel()

        cleaned = 0
        with suppress(WaitTimeoutError), ctx.timeout(4):
            try:
                ctx.wait_signal("never")
            except asyncio.CancelledError:
                cleaned = ctx.step(double, 2)
                raise
        with ctx.cancel_scope() as scope:
            ctx.spawn(stop, scope)
            ctx.sleep(9000)
        return [cleaned, scope.cancelled, ctx.step(plus, 5)]

    world.start(world.flow(main))
    return {"w": (DONE, [4, True, 6])}


def scope_that_is_cancelled(world: World) -> Outcomes:
    """The run is cancelled in a scope, about when the scope's time is up."""
    _, double = arithmetic(world)

    def main(ctx: WorkflowContext) -> None:
        with ctx.timeout(6):
            try:
                ctx.sleep(9000)
            except asyncio.CancelledError:
                ctx.sleep(3)
                ctx.step(double, 2)
                raise

    world.start(world.flow(main))
    world.at(6, world.cancel)
    return {"w": (CANCELLED, "asked")}


def children_with_chosen_ids(world: World) -> Outcomes:
    """One that ends, one whose id is taken by a run like it, and one that is cancelled with the parent's end."""
    plus, _ = arithmetic(world)

    def child(ctx: WorkflowContext, x: int) -> Any:
        ctx.sleep(x)
        return ctx.step(plus, x)

    kid = world.flow(child)

    def main(ctx: WorkflowContext) -> list[Any]:
        ctx.options(workflow_id="left", parent_close="cancel").start(kid, 9000)
        done = ctx.options(workflow_id="invoice-7").step(kid, 2)
        try:
            ctx.options(workflow_id="taken").step(kid, 5)
        except WorkflowConflictError as error:
            return [done, error.workflow_id]
        return []

    world.start(kid, 5, id="taken")
    world.start(world.flow(main))
    return {
        "w": (DONE, [3, "taken"]),
        "invoice-7": (DONE, 3),
        "taken": (DONE, 6),
        "left": (CANCELLED, "cancelled by its parent w"),
    }


def canvas(world: World) -> Outcomes:
    """A chord of chains with a child in it, what is linked, and a chain that fails."""
    plus, _ = arithmetic(world)
    linked: list[int] = []
    world.task(sum, "total")
    world.task(linked.append, "link")

    def no(x: int) -> None:
        raise ValueError(f"declined {x}")

    world.task(no, "no")
    kid = world.flow(lambda ctx, x: ctx.step(plus, x), "kid")

    def main(ctx: WorkflowContext) -> list[Any]:
        child = {**sig(kid.name), "durable": True}
        header = [chain(sig(plus.name, 1), child), sig(plus.name, 4, link=sig("link"))]
        total = ctx.step(chord(header, sig("total")))
        try:
            ctx.step(chain(sig(plus.name, 1), sig("no"), sig(plus.name)))
        except ValueError as error:
            return [total, str(error), len(linked) > 0]
        return []

    world.start(world.flow(main))
    return {"w": (DONE, [8, "declined 2", True])}


def foreign(world: World) -> Outcomes:
    """A service that has its outcome some time after it got the last of two messages."""
    sent: list[int] = []

    def send(_name: str, call: list[Any], _options: Any, task_id: str | None = None) -> str:
        sent.append(call[0][0])
        return task_id or "id"

    def outcome(task_id: str) -> Any:
        if len(sent) < 2:
            raise NotYetError(task_id)
        return [task_id, sent[-1]]

    world.task(send, SEND)
    world.task(outcome, OUTCOME)

    def main(ctx: WorkflowContext) -> Any:
        return ctx.step(ForeignTask("billing.charge", resend_after=20), 7)

    world.start(world.flow(main))
    return {"w": (DONE, ["id", 7])}


VOCABULARY: tuple[Program, ...] = (
    foreign,
    canvas,
    children_with_chosen_ids,
    scopes,
    scope_that_is_cancelled,
    batch_of_branches,
    batch_that_is_decided,
    saga_that_fails,
    saga_that_is_cancelled,
    polled,
    conditions,
    shielded,
    children_left,
    child_abandoned_by_a_cancel,
)
