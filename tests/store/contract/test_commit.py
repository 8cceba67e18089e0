"""`commit`: what a turn decided enters the history, with all that follows from it, and no wake-up is lost."""

from __future__ import annotations

import pytest

from durable_celery.errors import StaleLeaseError
from durable_celery.events import (
    CancelRequested,
    Event,
    LocalStepCompleted,
    PatchMarked,
    RunCancelled,
    RunCompleted,
    RunFailed,
    StepFailed,
    TimerFired,
)
from durable_celery.store.protocol import Claim, Refusal, RunStatus, StepState, Store
from tests.store.backends import Backend
from tests.store.moves import (
    PROCESS,
    begin,
    call,
    cancel,
    child,
    claim,
    close,
    deliver,
    end,
    execute,
    key,
    kinds,
    new,
    only,
    record,
    refused,
    result,
    run_messages,
    signal,
    step,
    step_messages,
    sweep,
    take,
    timer,
    turn,
)


def test_outputs_enter_in_their_order(store: Store) -> None:
    store.start(new())
    outputs: list[Event] = [
        step(1, options={"queue": "q", "timeout": 2.5}),
        LocalStepCompleted(payload="7", number=2, cause=1, name="f", digest="d"),
        PatchMarked(number=3, cause=1, patch_id="p"),
    ]

    answer = turn(store, *outputs)

    assert [item.event for item in store.history("w")[1:]] == outputs
    assert (answer.events, answer.length, answer.held) == ((), 4, False)
    assert answer.now >= store.history("w")[-1].at


def test_commit_makes_the_run_running_and_says_what_it_waits_for(store: Store) -> None:
    store.start(new())
    taken = take(store)

    store.commit(taken.lease, [], read=1, waiting="step 1 shop.charge, or signal 'paid' until noon — é", hold=False)

    run = record(store)
    assert (run.status, run.read, run.owner) == (RunStatus.RUNNING, 1, None)
    assert run.waiting == "step 1 shop.charge, or signal 'paid' until noon — é"


def test_commit_without_new_inputs_gives_the_lease_back(store: Store) -> None:
    store.start(new())
    taken = take(store)

    answer = store.commit(taken.lease, [step(1)], read=1, waiting="", hold=False)

    assert not answer.held
    with pytest.raises(StaleLeaseError):
        store.commit(taken.lease, [step(2)], read=2, waiting="", hold=False)


def test_commit_keeps_the_lease_where_that_is_asked(store: Store) -> None:
    store.start(new())
    taken = take(store)

    assert store.commit(taken.lease, [step(1)], read=1, waiting="", hold=True).held
    assert not store.commit(taken.lease, [step(2)], read=2, waiting="", hold=False).held
    assert kinds(store) == ["RunStarted", "StepScheduled", "StepScheduled"]


def test_inputs_that_came_meanwhile_are_in_the_answer_and_the_lease_is_kept(store: Store) -> None:
    store.start(new())
    taken = take(store)
    assert signal(store).message is None

    answer = store.commit(taken.lease, [step(1)], read=1, waiting="", hold=False)

    assert answer.held
    assert [(item.seq, type(item.event).__name__) for item in answer.events] == [(2, "SignalReceived")]
    assert answer.length == 3
    assert not store.commit(taken.lease, [], read=3, waiting="", hold=False).held


def test_many_inputs_that_came_meanwhile_are_read_from_the_history(store: Store) -> None:
    store.start(new())
    taken = take(store)
    for number in range(250):
        signal(store, signal_key=str(number))
        # On a slow disk all of them take longer than an owner lives.
        store.renew([PROCESS])

    answer = store.commit(taken.lease, [step(1)], read=1, waiting="", hold=False)

    assert [item.seq for item in answer.events] == list(range(2, 202))
    assert answer.length == 252
    assert kinds(store)[-1] == "StepScheduled"


def test_a_commit_with_an_old_token_is_refused_and_writes_nothing(store: Store) -> None:
    store.start(new())
    old = take(store)
    store.release("w", old.lease.owner, delay=0.0)
    young = take(store)

    with pytest.raises(StaleLeaseError, match="'w'"):
        store.commit(old.lease, [step(1)], read=1, waiting="x", hold=False)

    run = record(store)
    assert (run.length, run.steps, run.waiting, run.owner) == (1, (), "", young.lease.owner)


def test_a_commit_of_a_lease_that_went_to_nobody_is_refused(store: Store) -> None:
    store.start(new())
    taken = take(store)
    store.release("w", taken.lease.owner, delay=0.0)

    with pytest.raises(StaleLeaseError):
        store.commit(taken.lease, [step(1)], read=1, waiting="", hold=False)

    assert kinds(store) == ["RunStarted"]


def test_a_commit_to_no_run_is_refused(backend: Backend) -> None:
    store = backend.store
    begin(store)
    close(store)
    taken = take(store)
    store.deliver(taken.lease)
    backend.advance(7 * 86400)
    sweep(store)

    with pytest.raises(StaleLeaseError):
        store.commit(taken.lease, [step(1)], read=1, waiting="", hold=False)


def test_outputs_after_the_end_are_refused(store: Store) -> None:
    store.start(new())
    taken = take(store)
    store.commit(taken.lease, [end()], read=1, waiting="", hold=True)

    with pytest.raises(StaleLeaseError):
        store.commit(taken.lease, [step(3)], read=2, waiting="", hold=True)

    assert kinds(store) == ["RunStarted", "RunCompleted"]


def test_outputs_from_before_the_last_commit_are_refused(store: Store) -> None:
    store.start(new())
    taken = take(store)
    store.commit(taken.lease, [step(1)], read=1, waiting="", hold=True)

    with pytest.raises(StaleLeaseError):
        store.commit(taken.lease, [step(2)], read=1, waiting="", hold=True)

    assert kinds(store) == ["RunStarted", "StepScheduled"]


@pytest.mark.parametrize("hold", [False, True])
def test_a_commit_that_comes_again_gets_its_answer_again(store: Store, hold: bool) -> None:
    store.start(new())
    taken = take(store)
    signal(store)
    outputs = [step(1), step(2)]
    first = store.commit(taken.lease, outputs, read=1, waiting="", hold=hold)

    again = store.commit(taken.lease, outputs, read=1, waiting="", hold=hold)

    assert (again.events, again.length, again.held) == (first.events, first.length, first.held)
    assert kinds(store) == ["RunStarted", "SignalReceived", "StepScheduled", "StepScheduled"]


def test_a_commit_that_comes_again_after_the_lease_was_given_back_gets_its_answer(store: Store) -> None:
    store.start(new())
    taken = take(store)
    store.commit(taken.lease, [step(1)], read=1, waiting="", hold=False)
    signal(store)

    again = store.commit(taken.lease, [step(1)], read=1, waiting="", hold=False)

    assert (again.events, again.length, again.held) == ((), 2, False)
    assert kinds(store) == ["RunStarted", "StepScheduled", "SignalReceived"]


def test_step_may_begin_with_its_commit(backend: Backend) -> None:
    store = backend.store
    store.start(new())
    taken = take(store)

    done = store.commit(taken.lease, [timer(1, 0), step(2)], read=1, waiting="", hold=False, begin=2)

    assert (done.begun, done.held) == (True, False)
    entry = only(record(store).steps)
    assert (entry.state, entry.attempt, entry.owner, entry.due_at) == (StepState.CLAIMED, 1, taken.lease.owner, None)
    assert refused(store.claim(key(2), call("other"))).reason is Refusal.HELD
    begun = store.claim(key(2), taken.lease.owner)
    assert isinstance(begun, Claim)
    assert (begun.token, begun.lost) == (1, 0)
    finished = store.finish(key(2), result(2), token=1)
    assert finished.recorded


def test_step_that_began_with_its_commit_is_freed_when_its_process_dies(backend: Backend) -> None:
    store = backend.store
    store.start(new())
    taken = take(store, owner=call("mortal"))
    store.commit(taken.lease, [step(1, options={"heartbeat_timeout": 600})], read=1, waiting="", hold=False, begin=1)
    store.renew([], gone=["mortal"])

    message = only(tuple(step_messages(store)))

    assert (message.key, message.attempt) == (key(1), 2)
    assert claim(store).lost == 1


def test_step_does_not_begin_in_a_process_that_has_expired(backend: Backend) -> None:
    store = backend.store
    store.start(new())
    taken = take(store, owner=call("mortal"))
    store.renew([], gone=["mortal"])

    done = store.commit(taken.lease, [step(1)], read=1, waiting="", hold=False, begin=1)

    assert not done.begun
    assert only(record(store).steps).state is StepState.PENDING


def test_step_of_a_commit_that_comes_again_is_asked_for_by_a_claim(store: Store) -> None:
    store.start(new())
    taken = take(store)
    store.commit(taken.lease, [step(1)], read=1, waiting="", hold=False, begin=1)

    again = store.commit(taken.lease, [step(1)], read=1, waiting="", hold=False, begin=1)

    assert not again.begun
    begun = store.claim(key(1), taken.lease.owner)
    assert isinstance(begun, Claim)
    assert begun.attempt == 1


def test_step_gets_an_entry_and_its_first_resend(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))

    entry = only(record(store).steps)
    assert (entry.number, entry.state, entry.attempt, entry.lost) == (1, StepState.PENDING, 0, 0)
    assert (entry.owner, entry.error, entry.due_at) == (None, None, None)
    backend.advance(6)
    assert step_messages(store) == []
    backend.advance(4)
    assert only(tuple(step_messages(store))).key == key(1)


def test_timer_fires_at_its_time_and_wakes_the_run(backend: Backend) -> None:
    store = backend.store
    store.start(new())
    taken = take(store)
    store.commit(taken.lease, [timer(1, taken.now + 30_000)], read=1, waiting="", hold=False)
    backend.advance(24)
    assert run_messages(store) == []

    backend.advance(6)

    assert run_messages(store) == ["w"]
    assert store.history("w")[-1].event == TimerFired(number=1)
    sweep(store)
    assert kinds(store).count("TimerFired") == 1


def test_timer_in_the_past_fires_at_once(store: Store) -> None:
    begin(store, timer(1, 0))

    assert run_messages(store) == ["w"]


def test_cancelled_timer_does_not_fire(backend: Backend) -> None:
    store = backend.store
    store.start(new())
    taken = take(store)
    store.commit(taken.lease, [timer(1, taken.now + 1000), cancel(2, 1)], read=1, waiting="", hold=False)
    backend.advance(60)

    assert sweep(store).counts.get("timer", 0) == 0
    assert "TimerFired" not in kinds(store)


def test_cancelled_step_is_not_sent_and_cannot_be_claimed(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    turn(store, cancel(2, 1))
    backend.advance(3600)

    assert step_messages(store) == []
    assert refused(store.claim(key(1), call())).reason is Refusal.CANCELLED
    assert record(store).steps == ()


def test_step_that_is_cancelled_while_it_runs_is_not_recorded(store: Store) -> None:
    begin(store, step(1))
    begun = claim(store)
    turn(store, cancel(2, 1))

    assert not store.finish(begun.key, result(1), token=begun.token).recorded
    assert "StepCompleted" not in kinds(store)


def test_cancel_of_a_finished_step_changes_nothing(store: Store) -> None:
    begin(store, step(1))
    execute(store)

    turn(store, cancel(2, 1))

    assert refused(store.claim(key(1), call())).reason is Refusal.FINISHED
    assert kinds(store).count("StepCompleted") == 1


def test_step_and_its_cancel_may_come_in_one_commit(store: Store) -> None:
    begin(store, step(1), cancel(2, 1))

    assert record(store).steps == ()


def test_deadline_fails_the_step_and_wakes_the_run(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1, options={"timeout": 5}))
    backend.advance(1)
    assert sweep(store).counts.get("deadline", 0) == 0

    backend.advance(4)

    assert run_messages(store) == ["w"]
    failed = store.history("w")[-1].event
    assert isinstance(failed, StepFailed)
    assert failed.number == 1
    assert '"durable_celery.errors.StepTimeoutError"' in (failed.payload or "")
    assert "within its timeout of 5 s" in (failed.payload or "")
    assert record(store).steps == ()


def test_deadline_makes_the_running_attempt_stale(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1, options={"timeout": 0.5}))
    begun = claim(store)
    backend.advance(0.5)
    sweep(store)

    assert not store.finish(begun.key, result(1), token=begun.token).recorded
    assert refused(store.claim(key(1), call())).reason is Refusal.FINISHED
    assert kinds(store)[-1] == "StepFailed"


def test_deadline_of_a_finished_step_does_nothing(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1, options={"timeout": 5}))
    execute(store)
    backend.advance(5)

    assert sweep(store).counts.get("deadline", 0) == 0


def test_retries_do_not_move_the_deadline(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1, options={"timeout": 5}))
    begun = claim(store)
    store.postpone(begun.key, begun.owner, delay=60.0, error="x")
    backend.advance(5)

    assert sweep(store).counts["deadline"] == 1
    failed = store.history("w")[-1].event
    assert isinstance(failed, StepFailed)
    assert failed.attempt == 1


def test_deadline_of_a_child_has_it_cancelled(backend: Backend) -> None:
    store = backend.store
    begin(store, child(1, options={"timeout": 5}))
    store.settle(key(1))
    backend.advance(5)
    sweep(store)

    assert kinds(store)[-1] == "StepFailed"
    assert only(record(store).steps).state is StepState.CANCELLING


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (RunCompleted(payload="1", number=2, cause=1), RunStatus.COMPLETED),
        (RunFailed(payload="{}", number=2, cause=1), RunStatus.FAILED),
        (RunCancelled(payload="{}", number=2, cause=1), RunStatus.CANCELLED),
    ],
)
def test_terminal_event_closes_the_run(store: Store, event: Event, status: RunStatus) -> None:
    begin(store)

    answer = turn(store, event)

    run = record(store)
    assert (run.status, run.closed_at, run.waiting) == (status, store.history("w")[-1].at, "")
    assert not answer.held


def test_closed_run_has_its_delivery_in_the_agenda(backend: Backend) -> None:
    store = backend.store
    begin(store)
    close(store)
    backend.advance(10)

    assert run_messages(store) == ["w"]


def test_closed_run_may_be_held_for_its_delivery(backend: Backend) -> None:
    store = backend.store
    begin(store)

    answer = turn(store, end(), hold=True)

    assert answer.held
    backend.advance(6)
    assert run_messages(store) == []


def test_delivery_is_repeated_after_the_death_of_its_owner(backend: Backend) -> None:
    store = backend.store
    begin(store)
    turn(store, end(), hold=True)
    backend.advance(10)

    assert [*run_messages(store), *run_messages(store)] == ["w"]


def test_inputs_that_came_before_the_end_was_written_are_too_late(store: Store) -> None:
    begin(store)
    taken = take(store)
    signal(store)

    answer = store.commit(taken.lease, [end()], read=1, waiting="", hold=False)

    assert not answer.held
    assert kinds(store) == ["RunStarted", "SignalReceived", "RunCompleted"]
    assert record(store).status is RunStatus.COMPLETED


def test_timers_and_deadlines_of_a_closed_run_are_gone(backend: Backend) -> None:
    store = backend.store
    store.start(new())
    taken = take(store)
    outputs = [timer(1, taken.now + 60_000), step(2, options={"timeout": 60}), end()]
    store.commit(taken.lease, outputs, read=1, waiting="", hold=False)
    deliver(store)
    backend.advance(60)

    counts = sweep(store).counts

    assert (counts.get("timer", 0), counts.get("deadline", 0)) == (0, 0)
    assert kinds(store)[-1] == "RunCompleted"


def test_gate_of_a_run_that_was_closed_before_it_began_is_gone(backend: Backend) -> None:
    store = backend.store
    store.start(new(delay=60.0))
    store.append("w", CancelRequested(), key="c")
    turn(store, RunCancelled(payload="{}", number=1, cause=2))
    deliver(store)
    backend.advance(60)
    sweep(store)

    assert kinds(store) == ["RunStarted", "CancelRequested", "RunCancelled"]


def test_detached_step_of_a_closed_run_is_executed_and_leaves_no_trace(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1), end())
    deliver(store)
    backend.advance(10)
    assert [message.key for message in step_messages(store)] == [key(1)]

    assert not execute(store).recorded

    assert record(store).steps == ()
    assert refused(store.claim(key(1), call())).reason is Refusal.FINISHED
    assert kinds(store)[-1] == "RunCompleted"
    backend.advance(3600)
    assert step_messages(store) == []


def test_claimed_step_of_a_closed_run_is_repeated_after_a_crash(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    claim(store)
    turn(store, end())
    deliver(store)
    backend.advance(10)
    sweep(store)

    assert claim(store, owner=call("p2")).lost == 1
    store.renew(["p2"])


def test_child_of_a_closed_run_is_not_waited_for(store: Store) -> None:
    begin(store, child(1))
    store.settle(key(1))

    turn(store, end())

    assert record(store).steps == ()
    assert not store.finish(key(1), result(1), token=None).recorded


def test_child_that_starts_after_the_end_of_its_parent_is_not_waited_for(store: Store) -> None:
    begin(store, child(1), end())

    store.settle(key(1))

    assert record(store).steps == ()


def test_detached_step_goes_with_its_run(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1), step(2), end())
    deliver(store)
    claim(store, 1)
    backend.advance(7 * 86400)
    store.renew(["p1"])
    claim(store, 2)

    for _ in range(3):
        sweep(store)

    assert store.get("w") is None


@pytest.mark.parametrize("finishers", [2, 10])
def test_many_outcomes_cause_one_wake(store: Store, finishers: int) -> None:
    begin(store, *map(step, range(1, finishers + 1)))

    messages = [execute(store, number).message for number in range(1, finishers + 1)]

    assert sum(message is not None for message in messages) == 1


def test_delayed_run_that_was_blocked_is_still_to_begin(store: Store) -> None:
    store.start(new(delay=600))
    store.release("w", take(store).lease.owner, delay=0.0, reason="its code cannot be loaded")

    turn(store)

    assert record(store).status is RunStatus.PENDING
