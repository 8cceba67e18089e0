"""Suspended executions: whoever goes on with a run, and however little is kept, it goes on as one."""

from __future__ import annotations

from typing import Any

import pytest

from durable_celery.store.protocol import RunStatus
from durable_celery.testing.world import World
from durable_celery.workflow import AsyncWorkflowContext, WorkflowContext
from tests.engine.invariants import check_at_rest


def counting(world: World, turns: int) -> list[str]:
    """Start a run that waits ``turns`` times; return the log of which process executed its code from the start."""
    begun: list[str] = []

    def main(ctx: WorkflowContext) -> list[Any]:
        begun.append(world.running.name)
        return [ctx.wait_signal("go") for _ in range(turns)]

    world.start(world.flow(main))
    return begun


def test_process_replays_a_run_once_however_often_turns_alternate() -> None:
    world = World(processes=2)
    begun = counting(world, 9)
    world.drain(0)
    for turn in range(8):
        world.signal("go", turn)
        world.drain(turn % 2)

    assert begun == ["p0.1", "p1.1"], "each process fed its suspended execution with what was new"
    world.signal("go", 8)
    world.drain(0)
    assert world.outcome() == (RunStatus.COMPLETED, list(range(9)))
    check_at_rest(world)


@pytest.mark.parametrize(("size", "replays"), [(0, 5), (1, 1), (100, 1)])
def test_cache_keeps_as_many_as_it_may(size: int, replays: int) -> None:
    world = World(processes=1, cache_size=size)
    begun = counting(world, 4)
    world.drain()
    for turn in range(4):
        world.signal("go", turn)
        world.drain()

    assert len(begun) == replays
    assert world.outcome() == (RunStatus.COMPLETED, [0, 1, 2, 3])
    check_at_rest(world)


def test_least_recently_used_execution_is_evicted_and_its_clean_up_does_nothing() -> None:
    world = World(processes=1, cache_size=1)
    task = world.task(lambda: "cleaned", "clean")
    left: list[str] = []

    def main(ctx: WorkflowContext) -> Any:
        try:
            return ctx.wait_signal("go")
        finally:
            left.append(ctx.info.workflow_id)
            ctx.step(task)

    flow = world.flow(main)
    world.start(flow, id="a")
    world.start(flow, id="b")
    world.drain()

    assert left == ["a"]
    assert world.kinds("a") == ["RunStarted"]
    for name in ("a", "b"):
        world.signal("go", name, id=name)
    world.run()
    assert {name: world.outcome(name) for name in "ab"} == {name: (RunStatus.COMPLETED, name) for name in "ab"}
    check_at_rest(world)


@pytest.mark.parametrize("size", [0, 1, 100])
@pytest.mark.parametrize("processes", [1, 2])
def test_steps_and_timers_of_both_forms_go_on_in_any_process(size: int, processes: int) -> None:
    world = World(processes=processes, cache_size=size)
    plus = world.task(lambda x: x + 1, "plus")

    def blocking(ctx: WorkflowContext) -> int:
        x = 0
        for _ in range(4):
            x = ctx.step(plus, ctx.run(lambda y: y + 10, x))
            ctx.sleep(1)
        return x

    async def awaiting(ctx: AsyncWorkflowContext) -> int:
        x = 0
        for _ in range(4):
            x = await ctx.step(plus, await ctx.run(lambda y: y + 10, x))
            await ctx.sleep(1)
        return x

    world.start(world.flow(blocking), id="a")
    world.start(world.flow(awaiting), id="b")
    world.run()

    assert world.outcome("a") == world.outcome("b") == (RunStatus.COMPLETED, 44)
    assert max(world.executions.values()) == 1
    check_at_rest(world)
