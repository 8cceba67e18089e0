"""A step's end and the turn that it brings on are one call of the store, unless something else has happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from durable_celery.engine import HistoryLimits
from durable_celery.events import StepCompleted
from durable_celery.store.protocol import RunStatus
from durable_celery.testing.watch import At, Call, Fault, Kind
from durable_celery.testing.world import World, crash_in
from durable_celery.workflow import WorkflowContext
from tests.engine.invariants import check_at_rest


def world_of(
    function: Callable[..., Any], slow: Callable[[World], object] = lambda _: None, processes: int = 1, **options: Any
) -> World:
    """Start a run of a workflow that is given a step, which is its only argument."""
    world = World(processes=processes, **options)

    def plus(x: int) -> int:
        slow(world)
        return x + 1

    step = world.task(plus)
    world.start(world.flow(lambda ctx: function(ctx, step), "main"))
    return world


def three_steps(ctx: WorkflowContext, plus: Any) -> int:
    return int(ctx.step(plus, ctx.step(plus, ctx.step(plus, 0))))


def verbs(world: World) -> Counter[str]:
    return Counter(call.verb for call in world.watch.calls if call.verb in {"take", "claim", "finish", "commit"})


def is_finishing(call: Call) -> bool:
    return call.options.get("finishing") is not None


def test_a_step_costs_a_claim_and_a_commit() -> None:
    world = world_of(three_steps)
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, 3)
    # The second take is for the delivery.
    assert verbs(world) == {"take": 2, "claim": 3, "commit": 4}
    check_at_rest(world)


def test_a_step_that_runs_ahead_costs_a_commit() -> None:
    world = world_of(three_steps)
    world.runs_ahead = True
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, 3)
    # The lease with which the run ends is kept for its delivery.
    assert verbs(world) == {"take": 1, "commit": 4}
    check_at_rest(world)


def test_an_end_that_its_process_took_along_is_delivered_by_another() -> None:
    world = world_of(three_steps)
    world.runs_ahead = True
    crash = crash_in(world)
    world.watch.hooks.append(At("deliver", crash))
    world.run()

    assert [event.payload for _, event in world.deliveries] == ["3", "3"]
    assert world.record().delivered
    check_at_rest(world)


def test_without_its_suspended_code_a_step_is_finished_first() -> None:
    world = world_of(three_steps, cache_size=0)
    world.run()

    assert verbs(world) == {"take": 2, "claim": 3, "finish": 3, "commit": 4}


def six_steps(ctx: WorkflowContext, plus: Any) -> int:
    return sum(ctx.step(plus, number) for number in range(6))


def test_two_processes_that_take_turns_hear_what_they_have_missed_with_their_claims() -> None:
    world = world_of(six_steps, processes=2)
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, 21)
    # The second process has no suspended code when its first step ends.
    assert verbs(world) == {"take": 2, "claim": 6, "finish": 1, "commit": 7}
    check_at_rest(world)


def test_what_comes_after_the_claim_is_fed_before_the_outcome_that_it_came_before() -> None:
    def main(ctx: WorkflowContext, plus: Any) -> list[Any]:
        return [six_steps(ctx, plus), ctx.wait_signal("go")]

    def once(world: World) -> None:
        # The fourth step is executed by the process that has missed two turns.
        if sum(world.executions.values()) == 4:
            world.signal("go", "on")

    world = world_of(main, once, processes=2)
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, [21, "on"])
    # The first one is as above.
    assert verbs(world)["finish"] > 1
    history = [type(item.event).__name__ for item in world.history()]
    assert history.index("SignalReceived") == history.index("StepCompleted") + 6
    check_at_rest(world)


def test_code_that_has_changed_runs_no_local_step_without_a_lease() -> None:
    ran: list[str] = []
    changed: list[bool] = []

    def main(ctx: WorkflowContext, plus: Any) -> int:
        ctx.step(plus, 0)
        step = ctx.start(plus, 1)
        if changed:
            ctx.run(local)
        return int(step.result())

    def local() -> None:
        ran.append(str(world.record().owner))

    def change(world: World) -> None:
        # Both steps have been scheduled by the old code; the first process has not seen how the first one ended.
        if sum(world.executions.values()) == 2:
            changed.append(True)

    world = world_of(main, change, processes=2)
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, 2)
    assert len(ran) == 1
    assert ran != ["None"]
    assert verbs(world)["finish"] == 2
    check_at_rest(world)


def test_an_outcome_is_recorded_first_where_it_would_be_the_last_attempt() -> None:
    world = world_of(lambda ctx, plus: ctx.options(at_most_once=True).step(plus, 1))
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, 2)
    assert verbs(world)["finish"] == 1


def test_code_that_ends_its_process_costs_a_step_one_attempt() -> None:
    lives: list[int] = []

    def main(ctx: WorkflowContext, plus: Any) -> Any:
        first = ctx.step(plus, 1)
        lives.append(1)
        if len(lives) < 4:
            world.processes[0].crash()
        return first

    world = world_of(main)
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, 2)
    # The first time the outcome was lost with the process; then it was recorded before the code went on.
    assert world.executions["w/1.1"] == 2
    check_at_rest(world)


def test_where_the_code_takes_its_time_an_outcome_is_recorded_first() -> None:
    def main(ctx: WorkflowContext, plus: Any) -> Any:
        world.clock.advance(0.02)
        return ctx.step(plus, ctx.step(plus, 1))

    world = world_of(main)
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, 3)
    # The turn between the steps was quick.
    assert verbs(world)["finish"] == 1


@pytest.mark.parametrize("runs_ahead", [False, True])
def test_what_came_meanwhile_is_fed_first(runs_ahead: bool) -> None:
    def main(ctx: WorkflowContext, plus: Any) -> Any:
        first = ctx.step(plus, 1)
        return [first, ctx.step(plus, first), ctx.wait_signal("paid")]

    world = world_of(main, slow=lambda world: world.signal("paid", "yes", key="1"))
    world.runs_ahead = runs_ahead
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, [2, 3, "yes"])
    assert world.watch.refusals["stale commit"] == 1
    assert set(world.executions.values()) == {1}
    check_at_rest(world)


def test_a_step_that_a_refused_commit_would_have_begun_is_not_left_behind() -> None:
    world = world_of(three_steps)
    world.runs_ahead = True

    def lose_reply() -> None:
        world.watch.hooks.insert(0, Fault(Kind.LOST_REPLY, world.watch.count))
        # By the time that it comes again, a signal has moved the run on.
        world.watch.hooks.append(At("commit", lambda: world.signal("x"), when=is_finishing))

    fault = At("commit", lose_reply, when=is_finishing)
    world.watch.hooks.append(fault)
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, 3)
    assert set(world.executions.values()) == {1}
    check_at_rest(world)


def test_a_clock_that_was_set_back_delays_nothing() -> None:
    def set_back(world: World) -> None:
        world.clock.now -= 5_000

    world = world_of(three_steps, slow=set_back)
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, 3)
    assert set(world.executions.values()) == {1}


def test_the_code_is_told_when_the_step_ended() -> None:
    def main(ctx: WorkflowContext, plus: Any) -> Any:
        before = ctx.now()
        ctx.step(plus, 1)
        return ctx.now() - before >= timedelta(seconds=5)

    world = world_of(main, slow=lambda world: world.clock.advance(5))
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, True)
    assert verbs(world)["finish"] == 0


@pytest.mark.parametrize("comes", [False, True], ids=["alone", "with a signal"])
def test_an_outcome_is_recorded_before_a_local_step_runs(comes: bool) -> None:
    recorded: list[bool] = []

    def main(ctx: WorkflowContext, plus: Any) -> Any:
        first = ctx.step(plus, 1)
        return ctx.run(note, first)

    def note(value: int) -> int:
        recorded.append(any(isinstance(item.event, StepCompleted) for item in world.store.history("w")))
        return value

    world = world_of(main, slow=lambda world: world.signal("x", key="1") if comes else None)
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, 2)
    assert recorded == [True]
    check_at_rest(world)


def test_code_that_cannot_go_on_is_parked_with_the_outcome_in_its_history() -> None:
    world = world_of(three_steps)
    world.processes[0].engine.limits = HistoryLimits(events=3)
    world.run(until=lambda: world.record().status is RunStatus.BLOCKED)

    assert world.kinds() == ["RunStarted", "StepScheduled", "StepCompleted"]
    assert "3 events" in world.record().reason


def test_no_answer_leaves_an_outcome_to_be_recorded_later() -> None:
    world = world_of(three_steps, patience=0.0)
    world.watch.hooks.append(
        At("commit", lambda: world.watch.hooks.append(Fault(Kind.UNREACHED, world.watch.count, 3)), when=is_finishing)
    )
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, 3)
    assert set(world.executions.values()) == {1}
    check_at_rest(world)
