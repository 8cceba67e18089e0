"""Workflows of several runs in a system where things happen at the worst moment."""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest

from durable_celery.codec import AesGcm, Codec
from durable_celery.engine import HistoryLimits
from durable_celery.events import RunContinued
from durable_celery.store.protocol import RunStatus, Timing
from durable_celery.testing.watch import At, Call, Fault, Kind
from durable_celery.testing.world import World
from durable_celery.workflow import AsyncWorkflowContext, WorkflowContext
from tests.engine.invariants import check_at_rest
from tests.engine.programs import arithmetic


def continues(call: Call) -> bool:
    """Tell whether a commit ends a run to go on as the next one."""
    return any(isinstance(event, RunContinued) for event in call.args[1])


def takes_all(ctx: WorkflowContext, rounds: int = 3, got: list[Any] | None = None) -> list[Any]:
    """Take a signal in each round; after the last one, what is left."""
    got = [*(got or []), ctx.wait_signal("go")]
    if rounds > 1:
        ctx.continue_as_new(rounds - 1, got)
    return got


@pytest.mark.parametrize("cache_size", [0, 100])
@pytest.mark.parametrize("after", [False, True])
def test_signal_at_the_moment_of_the_commit_is_in_the_next_run(cache_size: int, *, after: bool) -> None:
    world = World(cache_size=cache_size)
    world.start(world.flow(takes_all))
    world.drain()
    for number in (2, 3):
        world.watch.hooks.append(At("commit", lambda n=number: world.signal("go", n), after=after, when=continues))  # type: ignore[misc]
    world.signal("go", 1)
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, [1, 2, 3])
    check_at_rest(world)


def test_signals_that_came_early_are_taken_one_by_one_by_the_runs() -> None:
    world = World()
    world.start(world.flow(takes_all), 4)
    for number in range(4):
        world.signal("go", number)
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, [0, 1, 2, 3])
    assert [len(history) for history in world.histories().values()] == [6, 5, 4, 3]
    check_at_rest(world)


def test_signal_that_is_sent_again_to_a_later_run_is_not_taken_in() -> None:
    world = World()
    world.start(world.flow(takes_all), 2)
    world.signal("go", 1, key="one")
    world.run(until=lambda: world.record().run == 2)
    world.signal("go", 1, key="one")
    world.drain()

    assert world.record().status is RunStatus.RUNNING
    world.signal("go", 2, key="two")
    world.run()
    assert world.outcome() == (RunStatus.COMPLETED, [1, 2])


@pytest.mark.parametrize("kind", [Kind.LOST_REPLY, Kind.CRASH_AFTER, Kind.CRASH_BEFORE, Kind.UNREACHED])
def test_commit_that_goes_wrong_begins_one_new_run(kind: Kind) -> None:
    world = World()
    world.start(world.flow(takes_all), 2)
    world.drain()
    world.watch.hooks.append(
        At("commit", lambda: world.watch.hooks.append(Fault(kind, world.watch.count)), when=continues)
    )
    world.signal("go", 1)
    world.signal("go", 2)
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, [1, 2])
    assert world.record().run == 2
    check_at_rest(world)


def test_the_message_of_the_next_run_may_be_lost() -> None:
    world = World(processes=1)
    world.start(world.flow(takes_all), 2)
    world.signal("go", 1)
    world.run(until=lambda: world.record().run == 2)
    world.broker.clear()
    world.signal("go", 2)
    world.broker.clear()
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, [1, 2])


def test_an_execution_that_another_process_keeps_of_the_old_run_is_thrown_away() -> None:
    world = World(processes=2)
    world.start(world.flow(takes_all), 3)
    world.drain(0)
    world.signal("go", 1)
    world.drain(1)
    world.signal("go", 2)
    world.drain(0)
    world.signal("go", 3)
    world.drain(1)

    assert world.outcome() == (RunStatus.COMPLETED, [1, 2, 3])
    check_at_rest(world)


@pytest.mark.parametrize("after", [False, True])
def test_cancel_at_the_moment_of_the_commit_cancels_the_next_run(*, after: bool) -> None:
    world = World()
    world.start(world.flow(takes_all), 5)
    world.watch.hooks.append(At("commit", world.cancel, after=after, when=continues))
    world.signal("go", 1)
    world.run()

    assert world.outcome() == (RunStatus.CANCELLED, "asked")
    assert world.record().run == 2
    check_at_rest(world)


def test_a_turn_that_lost_its_lease_reads_on_in_the_log_of_its_own_run() -> None:
    """A frozen process wakes up when the workflow is in its third run, and must not mix the logs."""
    world = World(processes=2)
    world.start(world.flow(takes_all), 4)
    world.drain(0)
    frozen = world.processes[1]

    def others_go_on() -> None:
        world.clock.advance(60)
        for number in (2, 3):
            world.signal("go", number)
        world.processes[0].beat(frozen.name)
        world.drain(0)

    world.watch.hooks.append(At("take", others_go_on, after=True, when=lambda call: call.caller is frozen))
    world.signal("go", 1)
    world.deliver(1)
    assert world.record().run == 4
    world.signal("go", 4)
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, [1, 2, 3, 4])
    check_at_rest(world)


def test_step_of_an_old_run_that_ends_late_tells_the_new_one_nothing() -> None:
    world = World(processes=2)
    plus, _ = arithmetic(world)

    def main(ctx: WorkflowContext, more: int = 1) -> int:
        late = ctx.start(plus, 10 * more)
        ctx.wait_signal("go")
        if more:
            ctx.continue_as_new(more - 1)
        return int(late.result())

    world.start(world.flow(main))
    world.deliver(0)
    step = world.broker.popleft()
    world.signal("go")
    world.drain(0)
    assert world.record().run == 2
    world.broker.append(step)
    world.drain(1)
    world.signal("go", key="again")
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, 1)
    assert world.executions["w/1.1"] == 1, "what was started is executed, as after a return"
    check_at_rest(world)


def test_parent_hears_of_a_child_once_at_its_real_end() -> None:
    world = World()
    kid = world.flow(takes_all)

    def main(ctx: WorkflowContext) -> Any:
        return ctx.step(kid, 3)

    world.start(world.flow(main))
    world.drain()
    for number in range(3):
        world.signal("go", number, id="w/1.1")
        world.drain()
        assert world.record().status.is_closed is (number == 2)

    world.run()
    assert world.outcome() == (RunStatus.COMPLETED, [0, 1, 2])
    assert [name for name, _ in world.deliveries] == ["w/1.1", "w"]
    check_at_rest(world)


def test_result_is_delivered_once_however_many_runs_there_are() -> None:
    world = World()
    world.start(world.flow(takes_all), 4)
    for number in range(4):
        world.signal("go", number)
    world.run()

    assert len(world.deliveries) == 1


def test_chance_is_another_one_in_each_run() -> None:
    world = World()

    def main(ctx: WorkflowContext, ids: list[str]) -> list[str]:
        ids = [*ids, str(ctx.uuid4()), str(ctx.random.random())]
        if ctx.info.run < 3:
            ctx.continue_as_new(ids)
        return ids

    world.start(world.flow(main), [])
    world.run()

    status, ids = world.outcome()
    assert status is RunStatus.COMPLETED
    assert len(set(ids)) == 6


def test_async_code_with_open_tasks_goes_on() -> None:
    world = World()
    plus, _ = arithmetic(world)

    async def main(ctx: AsyncWorkflowContext, more: int = 2) -> int:
        async def branch(inner: AsyncWorkflowContext) -> None:
            await inner.sleep(1000)

        ctx.spawn(branch)
        value: int = await ctx.step(plus, more)
        if more:
            ctx.continue_as_new(more - 1)
        return value

    world.start(world.flow(main))
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, 1)
    check_at_rest(world)


@pytest.mark.parametrize("accepts", [AesGcm({"k": os.urandom(32)})])
def test_what_goes_along_is_opened_where_payloads_are_encrypted(accepts: AesGcm) -> None:
    world = World(codec=Codec(chain=[accepts]), cache_size=0)
    plus, _ = arithmetic(world)

    def main(ctx: WorkflowContext, total: int = 0, rounds: int = 3) -> int:
        total = ctx.step(plus, total + ctx.wait_signal("go"))
        if rounds > 1:
            ctx.continue_as_new(total, rounds=rounds - 1)
        return total

    world.start(world.flow(main))
    for number in (1, 2, 3):
        world.signal("go", number)
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, 9)
    payloads = [item.event.payload for history in world.histories().values() for item in history]
    assert all(payload.startswith("~aes~") for payload in payloads if payload is not None)


def ticking(ctx: WorkflowContext, rounds: int = 3) -> str:
    for _ in range(10):
        ctx.sleep(1)
    if rounds:
        ctx.continue_as_new(rounds - 1)
    return "done"


def test_a_run_at_its_limit_that_continues_is_fine_again() -> None:
    world = World(processes=1)
    world.processes[0].engine.limits = HistoryLimits(events=22)
    world.start(world.flow(ticking))
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, "done")
    assert [len(history) for history in world.histories().values()] == [22] * 4


@pytest.mark.parametrize("cache_size", [0, 100])
def test_long_history_is_warned_of_once_at_each_doubling(
    cache_size: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("durable_celery.engine.limits.WARN_EVENTS", 10)
    world = World(processes=2, cache_size=cache_size)
    with caplog.at_level(logging.WARNING, "durable_celery.engine.limits"):
        world.start(world.flow(ticking), 0)
        world.run()

    assert [record.args[1] for record in caplog.records if isinstance(record.args, tuple)] == [10, 20]
    assert all("continue_as_new" in record.getMessage() for record in caplog.records)


def test_logs_of_old_runs_go_after_their_retention_while_the_workflow_lives() -> None:
    world = World(timing=Timing(retention=100.0))
    world.start(world.flow(takes_all), 3)
    world.signal("go", 1)
    world.run(until=lambda: world.record().run == 2)
    assert len(world.histories()) == 2

    world.clock.advance(101)
    world.processes[0].beat()

    assert list(world.histories()) == [2]
    world.signal("go", 2)
    world.signal("go", 3)
    world.run()
    assert world.outcome() == (RunStatus.COMPLETED, [1, 2, 3])
