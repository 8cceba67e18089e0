"""`claim`, `finish`, `postpone`, `settle`: attempts are counted, outcomes are recorded once."""

from __future__ import annotations

import pytest

from durable_celery.events import StepFailed
from durable_celery.store.protocol import Claim, Refusal, Refused, RunStatus, StepKey, StepState, Store
from tests.store.backends import Backend
from tests.store.moves import (
    begin,
    call,
    cancel,
    child,
    claim,
    close,
    execute,
    key,
    kinds,
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
    turn,
)


def test_claim_begins_the_first_attempt(store: Store) -> None:
    begin(store, step(1, options={"queue": "q"}))

    begun = store.claim(key(1), "p1#a")

    assert isinstance(begun, Claim)
    assert (begun.key, begun.owner, begun.attempt, begun.lost, begun.retries) == (key(1), "p1#a", 1, 0, 0)
    assert begun.scheduled == step(1, options={"queue": "q"})
    entry = only(record(store).steps)
    assert (entry.state, entry.owner, entry.attempt) == (StepState.CLAIMED, "p1#a", 1)


def test_claimed_step_is_not_sent(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    claim(store)
    for _ in range(3):
        backend.advance(6)
        store.renew(["p1"])

    assert step_messages(store) == []


def test_claim_of_a_step_that_a_live_owner_executes_is_refused(store: Store) -> None:
    begin(store, step(1))
    claim(store)

    assert store.claim(key(1), call()) == Refused(reason=Refusal.HELD)
    assert store.claim(key(1), call("p2")) == Refused(reason=Refusal.HELD)
    assert only(record(store).steps).attempt == 1


def test_claim_that_is_asked_again_gets_the_same_attempt(store: Store) -> None:
    begin(store, step(1))

    first, again = store.claim(key(1), "p1#a"), store.claim(key(1), "p1#a")

    assert first == again
    assert only(record(store).steps).attempt == 1


def test_claim_of_a_dead_owner_is_taken_over_and_counted_as_lost(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    old = claim(store)
    backend.advance(10)

    young = claim(store, owner=call("p2"))

    assert (young.attempt, young.lost) == (2, 1)
    assert young.token != old.token
    assert not store.finish(old.key, result(1), token=old.token).recorded
    assert store.finish(young.key, result(1, 2), token=young.token).recorded


@pytest.mark.parametrize("unknown", [StepKey(workflow_id="no", run=1, number=1), key(7), key(1, run=2)])
def test_claim_of_what_is_not_there_is_refused(store: Store, unknown: StepKey) -> None:
    begin(store, step(1))

    assert refused(store.claim(unknown, call())).reason is Refusal.UNKNOWN


def test_claim_of_an_earlier_run_is_refused_as_finished(store: Store) -> None:
    begin(store, step(1))

    assert refused(store.claim(key(1, run=0), call())).reason is Refusal.FINISHED


def test_claim_of_a_finished_step_is_refused_and_wakes_once_more(store: Store) -> None:
    begin(store, step(1))
    first = execute(store)
    assert first.message is not None

    again = refused(store.claim(key(1), call()))

    assert (again.reason, again.message) == (Refusal.FINISHED, first.message)


def test_claim_of_a_finished_step_whose_outcome_was_read_wakes_nobody(store: Store) -> None:
    begin(store, step(1))
    execute(store)
    turn(store)

    assert refused(store.claim(key(1), call())) == Refused(reason=Refusal.FINISHED)


def test_claim_of_a_finished_step_during_a_turn_wakes_nobody(store: Store) -> None:
    begin(store, step(1))
    execute(store)
    take(store)

    assert refused(store.claim(key(1), call())) == Refused(reason=Refusal.FINISHED)


def test_claim_of_a_finished_step_wakes_a_run_whose_owner_is_dead(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    take(store, owner=call("mortal"))
    execute(store)
    backend.advance(10)

    assert refused(store.claim(key(1), call())).message is not None


def test_outcome_takes_the_deadline_away(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1, options={"timeout": 60}))

    execute(store)

    store.renew([], gone=["p1"])
    sweep(store)
    assert sweep(store).next_in == pytest.approx(10, abs=2), "the wake of the run is all that is left"


def test_finish_records_the_outcome_and_gives_the_message(store: Store) -> None:
    begin(store, step(1))
    begun = claim(store)

    done = store.finish(begun.key, result(1, payload='"pé"'), token=begun.token)

    assert (done.recorded, done.turn) == (True, None)
    assert done.message is not None
    assert done.message.workflow_id == "w"
    assert store.history("w")[-1].event == result(1, payload='"pé"')
    assert record(store).steps == ()


def test_finish_records_a_failure(store: Store) -> None:
    begin(store, step(1))
    begun = claim(store)
    failure = StepFailed(payload='{"message":"no"}', number=1, attempt=1)

    assert store.finish(begun.key, failure, token=begun.token).recorded

    assert store.history("w")[-1].event == failure


def test_second_finish_is_not_recorded_but_gives_the_message_again(store: Store) -> None:
    begin(store, step(1))
    begun = claim(store)
    first = store.finish(begun.key, result(1), token=begun.token)

    again = store.finish(begun.key, result(1, payload="6"), token=begun.token)

    assert (again.recorded, again.message) == (False, first.message)
    assert kinds(store).count("StepCompleted") == 1


def test_second_finish_gives_no_message_once_the_outcome_was_read(store: Store) -> None:
    begin(store, step(1))
    begun = claim(store)
    store.finish(begun.key, result(1), token=begun.token)
    turn(store)

    again = store.finish(begun.key, result(1), token=begun.token)

    assert (again.recorded, again.turn, again.message) == (False, None, None)


@pytest.mark.parametrize("stale", [key(1, "no"), key(7), key(1, run=2)])
def test_finish_of_what_is_not_there_is_not_recorded(store: Store, stale: StepKey) -> None:
    begin(store, step(1))

    done = store.finish(stale, result(stale.number), token=1)

    assert (done.recorded, done.turn, done.message) == (False, None, None)
    assert only(record(store).steps).state is StepState.PENDING


def test_finish_with_another_token_is_not_recorded(store: Store) -> None:
    begin(store, step(1))
    begun = claim(store)

    assert not store.finish(begun.key, result(1), token=begun.token + 1).recorded

    assert only(record(store).steps).state is StepState.CLAIMED


def test_finish_may_take_the_lease(store: Store) -> None:
    begin(store, step(1))
    begun = claim(store)

    done = store.finish(begun.key, result(1), token=begun.token, take_over="p1#b", known=2)

    assert done.recorded
    assert done.message is None
    assert done.turn is not None
    assert done.turn.lease.owner == "p1#b"
    assert [item.event for item in done.turn.events] == [result(1)]
    assert (done.turn.run.length, record(store).owner) == (3, "p1#b")


def test_lease_from_a_finish_that_is_asked_again_is_the_same(store: Store) -> None:
    begin(store, step(1))
    begun = claim(store)
    first = store.finish(begun.key, result(1), token=begun.token, take_over="p1#b", known=2)

    again = store.finish(begun.key, result(1), token=begun.token, take_over="p1#b", known=2)

    assert first.turn is not None
    assert again.turn is not None
    assert (again.turn.lease, again.turn.events) == (first.turn.lease, first.turn.events)


def test_finish_does_not_take_the_lease_from_a_live_owner(store: Store) -> None:
    begin(store, step(1))
    begun = claim(store)
    taken = take(store)

    done = store.finish(begun.key, result(1), token=begun.token, take_over="p1#b")

    assert (done.recorded, done.turn, done.message) == (True, None, None)
    assert record(store).owner == taken.lease.owner


def test_finish_takes_the_lease_from_a_dead_owner(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    take(store, owner=call("mortal"))
    backend.advance(10)
    begun = claim(store)

    done = store.finish(begun.key, result(1), token=begun.token, take_over="p1#b")

    assert done.turn is not None
    assert done.turn.run.failures == 1


def test_stale_finish_takes_the_lease_where_inputs_are_unread(store: Store) -> None:
    begin(store, step(1))
    execute(store)

    done = store.finish(key(1), result(1), token=1, take_over="p1#b")

    assert not done.recorded
    assert done.turn is not None


def test_stale_finish_takes_no_lease_where_nothing_is_unread(store: Store) -> None:
    begin(store, step(1))
    execute(store)
    turn(store)

    done = store.finish(key(1), result(1), token=1, take_over="p1#b")

    assert (done.turn, done.message, record(store).owner) == (None, None, None)


def test_finish_after_the_end_is_not_recorded(store: Store) -> None:
    begin(store, step(1))
    begun = claim(store)
    close(store)

    done = store.finish(begun.key, result(1), token=begun.token, take_over="p1#b")

    assert (done.recorded, done.turn, done.message) == (False, None, None)
    assert record(store).steps == ()
    assert kinds(store)[-1] == "RunCompleted"


@pytest.mark.parametrize("state", [StepState.PENDING, StepState.CLAIMED, StepState.CHILD])
def test_outcome_from_outside_a_claim_is_recorded(store: Store, state: StepState) -> None:
    begin(store, child(1) if state is StepState.CHILD else step(1))
    if state is StepState.CLAIMED:
        claim(store)
    if state is StepState.CHILD:
        store.settle(key(1))

    assert store.finish(key(1), result(1), token=None).recorded
    assert not store.finish(key(1), result(1), token=None).recorded

    assert record(store).steps == ()
    assert kinds(store).count("StepCompleted") == 1


def test_postponed_step_is_sent_after_its_delay(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    begun = claim(store)

    assert store.postpone(begun.key, begun.owner, delay=5.0, error="boom \udcff é", retries=2, override="[[9],{}]")

    entry = only(record(store).steps)
    assert (entry.state, entry.attempt, entry.lost, entry.owner) == (StepState.PENDING, 1, 0, None)
    assert entry.due_at is not None
    assert entry.error is not None
    assert entry.error.startswith("boom ")
    assert entry.error.endswith(" é")
    backend.advance(1)
    assert step_messages(store) == []
    backend.advance(4)
    message = only(tuple(step_messages(store)))
    assert (message.attempt, message.retries, message.override, message.cancel) == (2, 2, "[[9],{}]", False)
    assert (message.key, message.scheduled, message.workflow) == (key(1), step(1), "shop.checkout")


def test_claim_before_a_retry_is_due_is_refused(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    begun = claim(store)
    store.postpone(begun.key, begun.owner, delay=5.0, error="x")

    assert store.claim(key(1), call()) == Refused(reason=Refusal.EARLY)
    backend.advance(5)
    again = claim(store)

    assert (again.attempt, again.lost, again.retries) == (2, 0, 0)
    assert only(record(store).steps).due_at is None


def test_retries_are_told_to_the_next_claim(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    begun = claim(store)
    store.postpone(begun.key, begun.owner, delay=0.0, error="x", retries=3)

    assert claim(store).retries == 3


def test_retries_and_arguments_stay_as_they_were_where_none_are_given(store: Store) -> None:
    begin(store, step(1))
    begun = claim(store)
    store.postpone(begun.key, begun.owner, delay=0.0, error="x", retries=3, override="[[9],{}]")
    begun = claim(store)
    assert begun.retries == 3

    store.postpone(begun.key, begun.owner, delay=0.0, error="y")

    message = only(tuple(step_messages(store)))
    assert (message.retries, message.override, message.attempt) == (3, "[[9],{}]", 3)


def test_postpone_of_a_claim_that_went_on_is_refused(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    old = claim(store)
    backend.advance(10)
    claim(store, owner=call("p2"))

    assert not store.postpone(old.key, old.owner, delay=5.0, error="x")
    assert not store.postpone(key(1, "no"), old.owner, delay=5.0, error="x")
    assert not store.postpone(key(7), old.owner, delay=5.0, error="x")

    assert only(record(store).steps).state is StepState.CLAIMED


def test_finish_of_a_postponed_attempt_is_not_recorded(store: Store) -> None:
    begin(store, step(1))
    begun = claim(store)
    store.postpone(begun.key, begun.owner, delay=5.0, error="x")

    assert not store.finish(begun.key, result(1), token=begun.token).recorded


def test_child_that_was_started_is_not_sent_again(backend: Backend) -> None:
    store = backend.store
    begin(store, child(1))

    store.settle(key(1))

    assert only(record(store).steps).state is StepState.CHILD
    backend.advance(3600)
    assert step_messages(store) == []


def test_child_is_not_claimed(store: Store) -> None:
    begin(store, child(1))
    store.settle(key(1))

    assert refused(store.claim(key(1), call())).reason is Refusal.HELD


@pytest.mark.parametrize("noted", [False, True])
def test_cancelled_child_is_told_at_once_and_until_that_is_noted(backend: Backend, noted: bool) -> None:
    store = backend.store
    begin(store, child(1))
    if noted:
        store.settle(key(1))
    turn(store, cancel(2, 1))

    assert only(record(store).steps).state is StepState.CANCELLING
    assert only(tuple(step_messages(store))).cancel
    backend.advance(10)
    assert only(tuple(step_messages(store))).cancel

    store.settle(key(1), cancel=True)

    assert record(store).steps == ()
    backend.advance(3600)
    assert step_messages(store) == []


def test_child_that_is_cancelled_before_its_start_was_noted_is_still_told(store: Store) -> None:
    begin(store, child(1))
    turn(store, cancel(2, 1))

    store.settle(key(1))

    assert only(record(store).steps).state is StepState.CANCELLING
    assert only(tuple(step_messages(store))).cancel


def test_note_of_a_cancel_leaves_a_child_that_is_wanted(store: Store) -> None:
    begin(store, child(1))
    store.settle(key(1), cancel=True)
    assert only(record(store).steps).state is StepState.PENDING
    store.settle(key(1))

    store.settle(key(1), cancel=True)

    assert only(record(store).steps).state is StepState.CHILD


def test_end_of_a_cancelled_child_is_not_recorded(store: Store) -> None:
    begin(store, child(1))
    store.settle(key(1))
    turn(store, cancel(2, 1))

    assert not store.finish(key(1), result(1), token=None).recorded

    assert record(store).steps == ()
    assert "StepCompleted" not in kinds(store)


def test_cancelled_child_is_told_after_the_end_of_its_parent(backend: Backend) -> None:
    store = backend.store
    begin(store, child(1))
    store.settle(key(1))
    turn(store, cancel(2, 1))
    close(store)

    assert only(tuple(step_messages(store))).cancel
    store.settle(key(1), cancel=True)
    assert record(store).steps == ()


def test_settle_of_what_is_not_there_changes_nothing(store: Store) -> None:
    begin(store, step(1))
    claim(store)

    for number in (1, 7):
        store.settle(key(number))
        store.settle(key(number), cancel=True)
    store.settle(key(1, "no"))

    assert only(record(store).steps).state is StepState.CLAIMED


def test_steps_are_listed_in_order(store: Store) -> None:
    begin(store, *map(step, range(1, 13)))
    execute(store, 3)

    assert [entry.number for entry in record(store).steps] == [1, 2, *range(4, 13)]


def test_signal_during_a_step_wakes_the_run_and_not_the_step(store: Store) -> None:
    begin(store, step(1))
    claim(store)

    assert signal(store).message is not None
    turn(store)

    assert record(store).status is RunStatus.RUNNING
    assert run_messages(store) == []
