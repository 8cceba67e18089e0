"""The races of the protocol, each forced at the very call where it happens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from durable_celery.errors import StoreUnavailableError, WorkflowCancelled, WorkflowClosedError, WorkflowConflictError
from durable_celery.events import RunCancelled, RunCompleted, StepCompleted, StepScheduled
from durable_celery.policy import RetryPolicy
from durable_celery.store.protocol import Claim, Refusal, RunMessage, RunStatus, StepKey, StepMessage, StepState, Turn
from durable_celery.testing.watch import At, Call, Fault, Kind
from durable_celery.testing.world import Task, World, crash_in
from durable_celery.workflow import WorkflowContext
from tests.engine.invariants import check, check_at_rest

STEP = StepKey(workflow_id="w", run=1, number=1)


def one_step(world: World, **waits: Any) -> Task:
    """Start a run with one step and wait for nothing."""
    plus = world.task(lambda x: x + 1, "plus")

    def main(ctx: WorkflowContext, x: int) -> Any:
        return ctx.step(plus, x)

    flow = world.flow(main, "adder")
    world.start(flow, 1, **waits)
    return flow


def waiting(world: World) -> Task:
    """Start a run that returns the first two signals called "go"."""

    def main(ctx: WorkflowContext) -> list[Any]:
        return [ctx.wait_signal("go"), ctx.wait_signal("go")]

    flow = world.flow(main)
    world.start(flow)
    return flow


def run_messages(world: World) -> int:
    return sum(isinstance(message, RunMessage) for message in world.broker)


def message_of(world: World) -> RunMessage:
    record = world.record()
    return RunMessage(workflow_id="w", name=record.name, envelope="{}", created_at=record.created_at)


# -- turns -------------------------------------------------------------------------------------------------------------


def test_of_two_turns_at_once_one_runs() -> None:
    world = World()
    one_step(world)
    first = world.broker[0]
    world.watch.hooks.append(At("commit", lambda: world.processes[1].handle(first)))

    world.processes[0].handle(world.broker.popleft())

    assert world.kinds() == ["RunStarted", "StepScheduled"]
    assert world.record().token == 1
    world.run()
    check_at_rest(world)


def test_completion_during_a_turn_is_seen_by_its_commit() -> None:
    world = World(go_on=False)
    plus = world.task(lambda x: x + 1, "plus")

    def main(ctx: WorkflowContext) -> list[int]:
        return ctx.gather(ctx.start(plus, 1), ctx.start(plus, 2))

    world.start(world.flow(main))
    world.deliver(0)
    world.deliver(1)
    wake = next(message for message in world.broker if isinstance(message, RunMessage))
    step = next(message for message in world.broker if isinstance(message, StepMessage))
    world.broker.clear()
    world.watch.hooks.append(At("commit", lambda: world.processes[1].handle(step)))

    world.processes[0].handle(wake)

    assert world.outcome() == (RunStatus.COMPLETED, [2, 3])
    assert not world.broker, "the turn saw it, so nobody had to be woken"
    world.run()
    check_at_rest(world)


@pytest.mark.parametrize("in_the_agenda", [False, True], ids=["taken over by a message", "swept"])
def test_commit_of_a_zombie_is_refused_and_its_execution_dropped(in_the_agenda: bool) -> None:
    world = World()
    one_step(world)
    zombie, heir = world.processes
    message = world.broker.popleft()

    def freeze() -> None:
        world.clock.advance(11)
        if in_the_agenda:
            heir.beat()
            world.broker.clear()
        heir.handle(message)

    world.watch.hooks.append(At("commit", freeze, when=lambda call: call.caller is zombie))
    zombie.handle(message)

    assert world.kinds() == ["RunStarted", "StepScheduled"]
    assert zombie.engine.cache.checkout("w") is None
    assert heir.engine.cache.checkout("w") is not None
    world.run()
    assert world.outcome() == (RunStatus.COMPLETED, 2)
    check_at_rest(world)


def test_commit_of_a_zombie_is_refused_while_its_heir_is_at_work() -> None:
    world = World()
    one_step(world)
    zombie, heir = world.processes

    def freeze() -> None:
        world.clock.advance(11)
        assert isinstance(heir.engine.store.take("w", f"{heir.name}#1", known=0), Turn)

    world.watch.hooks.append(At("commit", freeze, when=lambda call: call.caller is zombie))
    zombie.handle(world.broker.popleft())

    assert world.kinds() == ["RunStarted"]
    assert world.record().owner == f"{heir.name}#1"
    check(world)


def test_duplicate_messages_of_a_run_find_nothing_to_do() -> None:
    world = World()
    one_step(world)
    world.broker.extend([world.broker[0]] * 5)

    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, 2)
    assert world.executions[str(STEP)] == 1
    assert len(world.deliveries) == 1
    check_at_rest(world)


def test_run_whose_turn_kills_its_process_backs_off_and_harms_no_other() -> None:
    world = World()
    die = crash_in(world)
    world.start(world.flow(lambda _: die(), "poison"), id="poison")
    one_step(world)

    world.run(until=lambda: world.clock.now > world.record("poison").created_at + 300_000)

    assert world.outcome() == (RunStatus.COMPLETED, 2)
    assert world.record("poison").token < 30, "a life of 10 s each, and growing waits between"
    assert world.record("poison").token - world.record("poison").failures in {0, 1}
    check(world)


# -- steps -------------------------------------------------------------------------------------------------------------


def test_duplicate_message_of_a_running_step_is_dropped() -> None:
    world = World()
    one_step(world)
    world.deliver()
    message = world.broker[0]
    outcome = At("finish", lambda: world.processes[1].handle(message))
    world.watch.hooks.append(outcome)

    world.run()

    assert outcome.is_spent
    assert world.executions[str(STEP)] == 1
    assert world.outcome() == (RunStatus.COMPLETED, 2)
    check_at_rest(world)


def test_duplicate_message_of_a_finished_step_only_wakes_again() -> None:
    world = World(go_on=False)
    one_step(world)
    world.deliver()
    message = world.broker[0]
    world.deliver()
    world.broker.clear()

    world.processes[1].handle(message)

    assert run_messages(world) == 1, "the wake that was lost came from the duplicate"
    assert world.executions[str(STEP)] == 1
    world.run()
    check_at_rest(world)


@pytest.mark.parametrize(("cache_size", "verb"), [(100, "commit"), (0, "finish")], ids=["with what follows", "alone"])
def test_outcome_of_a_zombie_is_refused_after_its_step_was_claimed_again(cache_size: int, verb: str) -> None:
    world = World(cache_size=cache_size)
    results = iter([10, 20])
    slow = world.task(lambda: next(results), "slow")
    world.start(world.flow(lambda ctx: ctx.step(slow), "main"))
    zombie, heir = world.processes
    world.processes[0].handle(world.broker.popleft())
    message = world.broker.popleft()

    def freeze() -> None:
        world.clock.advance(11)
        heir.handle(message)

    world.watch.hooks.append(At(verb, freeze, when=lambda call: call.caller is zombie))
    zombie.handle(message)
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, 20)
    assert world.executions[str(STEP)] == 2
    check_at_rest(world)


def test_outcome_of_a_zombie_is_refused_while_its_step_is_executed_again() -> None:
    world = World()
    one_step(world)
    world.deliver()
    zombie, heir = world.processes
    old = zombie.engine.begin_step(STEP)
    world.clock.advance(11)
    young = heir.engine.begin_step(STEP)
    assert isinstance(old, Claim)
    assert isinstance(young, Claim)

    zombie.engine.complete_step(old, 10)
    assert world.kinds() == ["RunStarted", "StepScheduled"]
    heir.engine.complete_step(young, 20)
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, 20)
    check(world)


def test_step_of_a_dead_owner_is_taken_over_by_a_repeated_message_without_a_sweep() -> None:
    world = World()
    one_step(world)
    world.deliver()
    message = world.broker.popleft()
    assert isinstance(message, StepMessage)
    assert isinstance(world.processes[0].engine.begin_step(message.key), Claim)
    world.clock.advance(11)

    world.processes[1].handle(message)

    assert world.outcome() == (RunStatus.COMPLETED, 2)


def test_poison_step_fails_after_its_attempts() -> None:
    world = World(lost_attempts=3)
    poison = world.task(crash_in(world), "poison")

    def main(ctx: WorkflowContext) -> str:
        try:
            ctx.step(poison)
        except Exception as error:  # noqa: BLE001 - any
            return type(error).__name__
        return "lives"

    world.start(world.flow(main))
    one_step(world, id="other")
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, "StepLostError")
    assert world.executions[str(STEP)] == 3
    assert world.outcome("other") == (RunStatus.COMPLETED, 2)
    check_at_rest(world)


def test_poison_step_with_a_policy_fails_after_its_maximum_attempts() -> None:
    world = World(lost_attempts=100)
    poison = world.task(crash_in(world), "poison")

    def main(ctx: WorkflowContext) -> None:
        ctx.options(retry=RetryPolicy(maximum_attempts=2)).step(poison)

    world.start(world.flow(main))
    world.run()

    assert world.outcome()[0] is RunStatus.FAILED
    assert world.executions[str(STEP)] == 2
    check_at_rest(world)


def test_many_completions_at_once_cause_few_turns_and_few_messages() -> None:
    many = 200
    world = World(go_on=False)
    plus = world.task(lambda x: x + 1, "plus")

    def main(ctx: WorkflowContext) -> int:
        return sum(ctx.gather(*(ctx.start(plus, x) for x in range(many))))

    world.start(world.flow(main))
    world.deliver()
    steps = list(world.broker)
    world.broker.clear()
    assert len(steps) == many

    for slot, message in enumerate(steps):
        world.processes[slot % 2].handle(message)

    assert run_messages(world) == 1
    world.run()
    assert world.outcome() == (RunStatus.COMPLETED, many * (many + 1) // 2)
    assert world.record().token == 2
    check_at_rest(world)


def test_completions_while_a_worker_goes_on_with_the_workflow_need_no_message() -> None:
    world = World()
    plus = world.task(lambda x: x + 1, "plus")

    def main(ctx: WorkflowContext) -> int:
        return sum(ctx.gather(*(ctx.start(plus, x) for x in range(50))))

    world.start(world.flow(main))
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, 1275)
    assert world.executions.total() == 50
    check_at_rest(world)


def test_retries_of_celery_outlive_a_store_that_was_away() -> None:
    world = World(patience=0.0)
    one_step(world)
    world.deliver()
    message = world.broker.popleft()
    assert isinstance(message, StepMessage)
    engine = world.processes[0].engine
    claim = engine.begin_step(message.key)
    assert isinstance(claim, Claim)
    engine.postpone_step(claim, delay=0.0, error="x", retries=2, override="[[5],{}]")
    fault = Fault(Kind.LOST_REPLY, world.watch.count + 1)
    world.watch.hooks.append(fault)
    with pytest.raises(StoreUnavailableError):
        engine.begin_step(message.key)

    assert engine.patience.work_off()
    world.processes[0].beat()

    again = world.broker.pop()
    assert isinstance(again, StepMessage)
    assert (again.retries, again.override, again.attempt) == (2, "[[5],{}]", 3)
    world.broker.append(again)
    world.run()
    assert world.outcome() == (RunStatus.COMPLETED, 6)


# -- signals and cancels -----------------------------------------------------------------------------------------------


def test_signal_before_the_first_turn_is_kept() -> None:
    world = World()
    waiting(world)
    world.signal("go", 1)
    world.signal("go", 2)

    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, [1, 2])
    check_at_rest(world)


def test_signal_with_a_key_counts_once() -> None:
    world = World()
    waiting(world)
    for value in (1, 1, 1):
        world.signal("go", value, key="same")
    world.signal("go", 2)

    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, [1, 2])
    check_at_rest(world)


def test_signal_after_the_end_is_refused() -> None:
    world = World()
    one_step(world)
    world.run()

    with pytest.raises(WorkflowClosedError):
        world.signal("go")

    check_at_rest(world)


@pytest.mark.parametrize("verb", ["take", "commit"])
@pytest.mark.parametrize("after", [False, True])
def test_signal_during_a_turn_is_not_lost(verb: str, after: bool) -> None:
    world = World()
    waiting(world)
    world.signal("go", 1)
    world.watch.hooks.append(At(verb, partial(world.signal, "go", 2), after=after))

    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, [1, 2])
    check_at_rest(world)


@pytest.mark.parametrize(
    ("verb", "status"),
    [("take", RunStatus.CANCELLED), ("commit", RunStatus.COMPLETED)],
    ids=["cancel is first", "the end is first"],
)
def test_of_cancel_and_end_the_first_recorded_wins(verb: str, status: RunStatus) -> None:
    """The turn that ends the run is on its way: a cancel before its take counts; one before its commit is too late."""
    world = World(go_on=False)
    one_step(world)
    world.deliver()
    if status is RunStatus.CANCELLED:
        world.cancel()
        world.deliver()
    else:
        world.deliver()

        def end_is_near(call: Call) -> bool:
            return call.verb == "commit" and any(isinstance(event, RunCompleted) for event in call.args[1])

        world.watch.hooks.append(At(verb, world.cancel, when=end_is_near))
    world.run()

    assert world.outcome()[0] is status
    ends = [kind for kind in world.kinds() if kind in {"RunCompleted", "RunCancelled"}]
    assert len(ends) == 1
    check_at_rest(world)


def test_cancel_after_the_end_changes_nothing() -> None:
    world = World()
    one_step(world)
    world.run()
    before = world.history()

    world.cancel()
    world.run()

    assert world.history() == before


@pytest.mark.parametrize("first", ["timer", "step"])
def test_tie_of_timer_and_step_is_decided_by_the_log_and_replayed(first: str) -> None:
    world = World(go_on=False)
    plus = world.task(lambda x: x + 1, "plus")

    def main(ctx: WorkflowContext) -> str:
        return ctx.race(timer=ctx.timer(20), step=ctx.start(plus, 1)).name

    world.start(world.flow(main))
    world.deliver()
    step = world.broker.popleft()
    world.clock.advance(20)
    moves: list[Callable[[], None]] = [world.processes[0].beat, partial(world.processes[1].handle, step)]
    for move in moves if first == "timer" else reversed(moves):
        move()
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, first)
    check_at_rest(world)


# -- parents and children ----------------------------------------------------------------------------------------------


def parent(world: World, *, seconds: float = 1.0) -> None:
    """Start a run that starts a child and cancels it after a while."""

    def child(ctx: WorkflowContext) -> None:
        ctx.wait_signal("never")

    kid = world.flow(child)

    def main(ctx: WorkflowContext) -> str:
        handle = ctx.start(kid)
        ctx.sleep(seconds)
        handle.cancel()
        return "done"

    world.start(world.flow(main))


def test_child_whose_start_is_overtaken_by_its_cancel_never_begins() -> None:
    world = World()
    parent(world)
    slow, fast = world.processes

    def overtake() -> None:
        world.clock.advance(2)
        for _ in range(3):
            fast.beat()
            world.drain(1)

    world.watch.hooks.append(At("start", overtake, when=lambda call: call.caller is slow))
    slow.handle(world.broker.popleft())
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, "done")
    assert world.kinds("w/1.1") == ["RunStarted", "CancelRequested", "RunCancelled"]
    check_at_rest(world)


def test_child_that_is_cancelled_between_its_start_and_the_note_of_it_is_told() -> None:
    world = World()
    parent(world)
    slow, fast = world.processes

    def overtake() -> None:
        world.clock.advance(2)
        fast.beat()
        world.drain(1)

    world.watch.hooks.append(At("settle", overtake, when=lambda call: call.caller is slow))
    slow.handle(world.broker.popleft())
    world.run()

    assert world.outcome("w/1.1")[0] is RunStatus.CANCELLED
    check_at_rest(world)


def test_end_of_a_child_that_is_reported_twice_counts_once() -> None:
    world = World()
    plus = world.task(lambda x: x + 1, "plus")
    kid = world.flow(lambda ctx, x: ctx.step(plus, x), "child")
    world.start(world.flow(lambda ctx: ctx.step(kid, 1), "main"))
    deaths: list[str] = []

    def die_once(process: Any, ending: Any) -> None:
        if ending.run.parent and not deaths:
            deaths.append(process.name)
            process.crash()

    world.on_delivery = die_once
    world.run()

    assert deaths
    assert world.outcome() == (RunStatus.COMPLETED, 2)
    assert sum(isinstance(item.event, StepCompleted) for item in world.history()) == 1
    check_at_rest(world)


def test_child_whose_id_is_taken_fails_its_step() -> None:
    world = World()
    kid = world.flow(lambda _: 1, "child")
    other = world.flow(lambda ctx: ctx.wait_signal("go"), "other")
    world.start(other, id="w/1.1")

    def main(ctx: WorkflowContext) -> str:
        try:
            ctx.step(kid)
        except Exception as error:  # noqa: BLE001 - any
            return type(error).__name__
        return "ran"

    world.start(world.flow(main))
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, "WorkflowConflictError")
    assert world.record("w/1.1").status is RunStatus.RUNNING
    check_at_rest(world, open_runs=True)


def chosen(world: World, *, seconds: float = 1.0) -> None:
    """Start a run that starts a child under an id of its choice, and cancels it after a while."""
    kid = world.flow(lambda ctx, _: ctx.wait_signal("never"), "child")

    def main(ctx: WorkflowContext) -> str:
        handle = ctx.options(workflow_id="invoice-7").start(kid, 1)
        ctx.race(failed=handle, timer=ctx.timer(seconds))
        return f"cancelled {handle.workflow_id}"

    world.start(world.flow(main))


def test_child_has_the_id_that_its_parent_chose_and_its_cancel_overtakes_its_start() -> None:
    world = World()
    chosen(world)
    slow, fast = world.processes

    def overtake() -> None:
        world.clock.advance(2)
        for _ in range(3):
            fast.beat()
            world.drain(1)

    world.watch.hooks.append(At("start", overtake, when=lambda call: call.caller is slow))
    slow.handle(world.broker.popleft())
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, "cancelled invoice-7")
    assert world.kinds("invoice-7") == ["RunStarted", "CancelRequested", "RunCancelled"]
    assert world.record("invoice-7").parent == "w/1.1"
    check_at_rest(world)


@pytest.mark.parametrize("same_arguments", [True, False])
def test_run_of_somebody_else_that_has_the_chosen_id_is_neither_waited_for_nor_cancelled(same_arguments: bool) -> None:
    world = World()
    chosen(world)
    world.start(Task("child", print), 1 if same_arguments else 2, id="invoice-7")
    slow, fast = world.processes

    def overtake() -> None:
        # The parent gives the child up before the start, which is on its way, finds out that the id is taken.
        world.clock.advance(2)
        for _ in range(3):
            fast.beat()
            world.drain(1)

    world.watch.hooks.append(At("start", overtake, when=lambda call: call.caller is slow))
    slow.handle(world.broker.popleft())
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, "cancelled invoice-7")
    assert world.record("invoice-7").status is RunStatus.RUNNING
    assert "CancelRequested" not in world.kinds("invoice-7")
    check_at_rest(world, open_runs=True)


@pytest.mark.parametrize("same_arguments", [True, False])
def test_child_whose_chosen_id_is_taken_fails_its_step(same_arguments: bool) -> None:
    world = World()
    kid = world.flow(lambda ctx, x: ctx.wait_signal(f"go {x}"), "child")
    world.start(kid, 1, id="invoice-7")

    def main(ctx: WorkflowContext) -> str:
        try:
            ctx.options(workflow_id="invoice-7").step(kid, 1 if same_arguments else 2)
        except WorkflowConflictError as error:
            return error.workflow_id
        return "ran"

    world.start(world.flow(main))
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, "invoice-7")
    assert world.kinds("invoice-7") == ["RunStarted"]
    check_at_rest(world, open_runs=True)


def test_two_children_of_one_run_do_not_share_an_id_nor_does_a_child_share_its_parents() -> None:
    world = World()
    plus = world.task(lambda x: x + 1, "plus")
    kid = world.flow(lambda ctx, x: ctx.step(plus, x), "child")

    def main(ctx: WorkflowContext) -> list[str]:
        handles = [ctx.options(workflow_id=id).start(kid, 1) for id in ("one", "one", "w")]  # noqa: A001
        return [str(value).split(" was ")[0] for value in ctx.gather(*handles, return_exceptions=True)]

    world.start(world.flow(main))
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, ["2", "workflow 'one'", "workflow 'w'"])
    check_at_rest(world)


def test_cancel_reaches_children_of_children() -> None:
    world = World()

    def leaf(ctx: WorkflowContext) -> None:
        ctx.wait_signal("never")

    leaves = world.flow(leaf)
    middle = world.flow(lambda ctx: ctx.step(leaves), "middle")
    world.start(world.flow(lambda ctx: ctx.step(middle), "main"))
    world.at(5, world.cancel)
    world.run()

    assert {name: world.outcome(name)[0] for name in world.store.run_table} == dict.fromkeys(
        ["w", "w/1.1", "w/1.1/1.1"], RunStatus.CANCELLED
    )
    check_at_rest(world)


# -- ends and beginnings -----------------------------------------------------------------------------------------------


def test_delivery_that_dies_after_the_callbacks_is_repeated() -> None:
    world = World()
    one_step(world)
    # The callbacks were fired, and nobody notes it.
    world.watch.hooks.append(At("deliver", crash_in(world)))

    world.run()

    assert [name for name, _ in world.deliveries] == ["w", "w"]
    check_at_rest(world)


def test_end_that_could_not_be_delivered_comes_again() -> None:
    world = World()
    one_step(world)
    refused: list[str] = []

    def refuse_twice(process: Any, ending: Any) -> None:
        if len(refused) < 2:
            refused.append(process.name)
            process.engine.cancel_delivery(ending)
            raise StoreUnavailableError("the result backend is away")

    world.on_delivery = refuse_twice
    world.run()

    assert len(refused) == 2
    assert [type(event) for _, event in world.deliveries] == [RunCompleted]
    check_at_rest(world)


def test_start_that_expired_before_any_worker_came_never_begins() -> None:
    world = World()
    one_step(world, expires=30.0)
    world.clock.advance(31)

    world.run()

    assert world.kinds() == ["RunStarted", "TimerFired", "RunCancelled"]
    check_at_rest(world)


def test_delayed_start_that_is_cancelled_before_its_time_never_begins() -> None:
    world = World()
    one_step(world, delay=3600.0)
    world.cancel()

    world.run(seconds=60)

    assert world.kinds() == ["RunStarted", "CancelRequested", "RunCancelled"]
    assert isinstance(world.deliveries[0][1], RunCancelled)
    check_at_rest(world)


def test_delayed_start_begins_neither_early_nor_by_a_message() -> None:
    world = World()
    one_step(world, delay=20.0)
    world.broker.append(message_of(world))

    world.drain()

    assert world.kinds() == ["RunStarted"]
    assert world.record().status is RunStatus.PENDING
    world.run()
    assert world.outcome() == (RunStatus.COMPLETED, 2)
    check_at_rest(world)


# -- code and store that go away ---------------------------------------------------------------------------------------


def test_run_whose_code_is_missing_is_blocked_and_goes_on_by_itself() -> None:
    world = World()
    flow = one_step(world)
    del world.tasks["adder"]
    world.run(until=lambda: world.clock.now > world.record().created_at + 100_000)

    record = world.record()
    assert record.status is RunStatus.BLOCKED
    assert "adder is not registered" in record.reason
    assert record.token < 15
    world.tasks["adder"] = flow
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, 2)
    assert world.record().reason == ""
    check_at_rest(world)


def test_run_whose_version_is_missing_is_blocked_and_goes_on_beside_newer_code() -> None:
    world = World()
    old = one_step(world)
    world.flow(lambda ctx: ctx.sleep(99), old.name, version=2)
    del world.flows[old.name, 1]
    world.run(until=lambda: world.clock.now > world.record().created_at + 100_000)

    record = world.record()
    assert record.status is RunStatus.BLOCKED
    assert "version 1 of adder is not registered" in record.reason
    # It is tried again more and more rarely, and does not spin.
    assert record.token < 15
    world.flow(old.function, old.name)
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, 2)
    check_at_rest(world)


def test_run_that_moves_to_a_process_with_newer_code_stays_on_its_version() -> None:
    world = World(cache_size=0)
    plus = world.task(lambda x: x + 1, "plus")

    def old(ctx: WorkflowContext) -> Any:
        return ctx.step(plus, ctx.wait_signal("go"))

    flow = world.flow(old, "price")
    world.start(flow)
    world.run(until=lambda: world.record().waiting != "")
    world.flow(lambda ctx: ctx.step(plus, 100), "price", version=2)
    world.signal("go", 1)
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, 2)
    check_at_rest(world)


def test_run_whose_code_was_changed_is_blocked_and_repeats_no_step_after_the_mend() -> None:
    world = World(cache_size=0)
    plus = world.task(lambda x: x + 1, "plus")
    double = world.task(lambda x: x * 2, "double")

    def old(ctx: WorkflowContext) -> Any:
        return ctx.step(plus, ctx.step(double, ctx.step(plus, ctx.wait_signal("go"))))

    def changed(ctx: WorkflowContext) -> Any:
        return ctx.step(double, ctx.step(double, ctx.step(plus, ctx.wait_signal("go"))))

    world.start(world.flow(old, "main"))
    world.signal("go", 1)
    world.run(until=lambda: world.executions.total() == 1)
    world.flow(lambda ctx: ctx.step(double, 1), "main")
    world.run(until=lambda: world.record().status is RunStatus.BLOCKED)
    assert "NonDeterminismError" in world.record().reason
    executed = world.executions.copy()

    world.flow(changed, "main")
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, 8)
    assert all(world.executions[key] == 1 for key in executed)
    check_at_rest(world)


def test_unforeseen_error_in_a_turn_parks_the_run_visibly() -> None:
    world = World()

    def definition(name: str, version: int) -> Any:
        raise RuntimeError("the registry is broken")

    one_step(world)
    for process in world.processes:
        process.engine.workflows = definition
    world.run(until=lambda: world.record().status is RunStatus.BLOCKED)
    assert world.record().reason == "RuntimeError: the registry is broken"
    check(world)

    for process in world.processes:
        process.engine.workflows = world.definition
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, 2)
    check_at_rest(world)


def test_history_that_cannot_be_read_parks_its_run_and_does_not_spin() -> None:
    world = World()
    one_step(world)

    def corrupt() -> None:
        raise ValueError("event 1 cannot be read")

    hooks = [At("take", corrupt, after=True) for _ in range(2)]
    world.watch.hooks += hooks
    world.run(until=lambda: world.record().status is RunStatus.BLOCKED)
    first = world.clock.now
    check(world)
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, 2)
    assert world.clock.now - first >= 60_000
    check_at_rest(world)


@pytest.mark.parametrize("verb", ["take", "commit", "claim", "finish", "postpone", "release", "deliver", "settle"])
@pytest.mark.parametrize("kind", [Kind.UNREACHED, Kind.LOST_REPLY])
def test_store_that_is_away_for_longer_than_the_patience_leaves_nothing_held(verb: str, kind: Kind) -> None:
    """The verb fails again and again, then the store is away for good; owners live on when it is back."""
    world = World(patience=3.0)
    failures = [ValueError("first")]

    def flaky() -> int:
        if failures:
            raise failures.pop()
        return 1

    task = world.task(flaky)
    kid = world.flow(lambda ctx: ctx.run(lambda: 7), "child")

    def main(ctx: WorkflowContext) -> list[int]:
        return [ctx.options(retry=10).step(task), ctx.step(kid), ctx.step(task)]

    world.start(world.flow(main))
    away = _Away(verb, kind, calls=12)
    world.watch.hooks.append(away)
    if verb == "release":
        del world.tasks["main"]
        world.at(8, lambda: world.flow(main))
    world.run()

    # The agenda repeats what is not repeated at once.
    assert away.calls == (11 if verb == "settle" else 0)
    assert world.outcome() == (RunStatus.COMPLETED, [1, 7, 1])
    check_at_rest(world)


class _Away:
    """A hook: the next calls of one verb by workers fail."""

    def __init__(self, verb: str, kind: Kind, calls: int) -> None:
        self.verb, self.kind, self.calls = verb, kind, calls

    def before(self, call: Call) -> None:
        if self.kind is Kind.UNREACHED:
            self._fail(call)

    def after(self, call: Call) -> None:
        if self.kind is Kind.LOST_REPLY:
            self._fail(call)

    def _fail(self, call: Call) -> None:
        if call.verb == self.verb and call.caller.name != "client" and self.calls:
            self.calls -= 1
            raise StoreUnavailableError("away")


def test_store_that_came_back_with_an_older_log_goes_on_from_there() -> None:
    """A server that lost its last second: what a process has in its cache is then more than the log has."""
    world = World(processes=1)
    waiting(world)
    world.signal("go", 1)
    world.drain()
    run = world.store.run_table["w"]
    assert len(run.log) == 2
    del run.log[1:]
    run.keys.clear()
    run.update(length=1, read=0)
    world.signals.clear()
    world.broker.append(message_of(world))

    world.drain()
    world.signal("go", 5, key="a")
    world.signal("go", 6, key="b")
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, [5, 6])
    check_at_rest(world)


# -- messages that nobody meant ----------------------------------------------------------------------------------------


def test_messages_for_what_is_not_there_change_nothing() -> None:
    world = World()
    one_step(world)
    world.run()
    before = world.history()
    scheduled = next(item.event for item in before if isinstance(item.event, StepScheduled))
    forged = RunMessage(workflow_id="nobody", name="main", envelope="{}", created_at=0)
    step = StepMessage(
        key=StepKey(workflow_id="w", run=1, number=9), scheduled=scheduled, workflow="main", envelope="{}"
    )

    for message in (forged, step, message_of(world)):
        world.processes[0].handle(message)

    assert world.history() == before
    assert list(world.store.run_table) == ["w"]
    assert world.executions.total() == 1


def test_cancelled_step_is_not_executed() -> None:
    world = World()
    plus = world.task(lambda x: x + 1, "plus")

    def main(ctx: WorkflowContext) -> str:
        handle = ctx.start(plus, 1)
        ctx.wait_signal("go")
        handle.cancel()
        ctx.wait_signal("go")
        return "done"

    world.start(world.flow(main))
    world.deliver()
    message = world.broker.popleft()
    assert isinstance(message, StepMessage)
    world.signal("go")
    world.drain()

    assert world.processes[0].engine.begin_step(message.key) is Refusal.CANCELLED
    assert not world.executions
    world.signal("go")
    world.run()
    check_at_rest(world)


@pytest.mark.parametrize(("cache_size", "verb"), [(100, "commit"), (0, "finish")], ids=["with what follows", "alone"])
def test_revoked_step_fails_once_whoever_executes_it(cache_size: int, verb: str) -> None:
    world = World(cache_size=cache_size)
    one_step(world)
    world.deliver()
    engine = world.processes[1].engine
    answers: list[bool] = []
    world.watch.hooks.append(
        At(
            verb,
            lambda: answers.extend([engine.revoke_step(STEP, WorkflowCancelled("no")) for _ in range(2)]),
            when=lambda call: call.caller is world.processes[0],
        )
    )
    world.processes[0].handle(world.broker.popleft())

    world.run()

    assert answers == [True, False]
    assert world.outcome()[0] is RunStatus.FAILED
    check_at_rest(world)


def test_child_step_cannot_be_claimed_as_a_task() -> None:
    world = World()
    parent(world, seconds=30)
    world.deliver()

    assert world.processes[0].engine.begin_step(STEP) is Refusal.HELD
    assert world.record().steps[0].state is StepState.CHILD
    world.run()
    check_at_rest(world)
