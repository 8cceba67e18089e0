"""Heartbeats save progress and keep an attempt; steps that wait are told from outside how they ended."""

from __future__ import annotations

import pytest

from durable_celery.store.protocol import Claim, Refusal, StepState, Store
from tests.store.backends import Backend
from tests.store.invariants import snapshot
from tests.store.moves import (
    begin,
    call,
    cancel,
    child,
    claim,
    close,
    deliver,
    execute,
    key,
    kinds,
    only,
    record,
    refused,
    result,
    step,
    step_messages,
    sweep,
    turn,
)


def test_heartbeat_saves_progress_for_the_attempt_and_the_next_one(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    begun = claim(store)
    assert begun.progress is None

    beaten = store.claim(begun.key, begun.owner, progress='{"é":[1,"\\u0000"]}')

    assert isinstance(beaten, Claim)
    assert (beaten.attempt, beaten.token, beaten.progress) == (1, begun.token, '{"é":[1,"\\u0000"]}')
    assert only(record(store).steps).progress == '{"é":[1,"\\u0000"]}'
    store.postpone(begun.key, begun.owner, delay=0.0, error="x")
    again = claim(store)
    assert (again.attempt, again.progress) == (2, '{"é":[1,"\\u0000"]}')


def test_progress_outlives_the_process(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    begun = claim(store)
    store.claim(begun.key, begun.owner, progress="7")

    backend.advance(10)

    assert claim(store, owner=call("p2")).progress == "7"


def test_heartbeat_without_progress_leaves_what_is_there(store: Store) -> None:
    begin(store, step(1))
    begun = claim(store)
    store.claim(begun.key, begun.owner, progress="7")

    beaten = store.claim(begun.key, begun.owner, progress="")

    assert isinstance(beaten, Claim)
    assert beaten.progress == "7"


def test_progress_goes_with_the_step(store: Store) -> None:
    begin(store, step(1))
    begun = claim(store)
    store.claim(begun.key, begun.owner, progress="7")

    store.finish(begun.key, result(1), token=begun.token)

    assert record(store).steps == ()


def test_heartbeat_never_begins_an_attempt(store: Store) -> None:
    begin(store, step(1), child(2))
    store.settle(key(2))

    assert refused(store.claim(key(1), call(), progress="1")).reason is Refusal.LOST
    assert refused(store.claim(key(2), call(), progress="1")).reason is Refusal.LOST
    assert refused(store.claim(key(7), call(), progress="1")).reason is Refusal.UNKNOWN

    assert [entry.attempt for entry in record(store).steps] == [0, 0]


def test_heartbeat_of_an_attempt_that_was_taken_over_is_refused(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    old = claim(store)
    backend.advance(10)
    claim(store, owner=call("p2"))

    assert refused(store.claim(old.key, old.owner, progress="1")).reason is Refusal.LOST

    assert only(record(store).steps).progress is None


def test_heartbeat_of_an_attempt_that_was_postponed_is_refused(store: Store) -> None:
    begin(store, step(1))
    old = claim(store)
    store.postpone(old.key, old.owner, delay=0.0, error="x")

    assert refused(store.claim(old.key, old.owner, progress="1")).reason is Refusal.LOST


def test_heartbeat_of_a_cancelled_step_is_refused(store: Store) -> None:
    begin(store, step(1))
    begun = claim(store)
    turn(store, cancel(2, 1))

    assert refused(store.claim(begun.key, begun.owner, progress="1")).reason is Refusal.CANCELLED


def test_heartbeat_of_a_finished_step_is_refused(store: Store) -> None:
    begin(store, step(1))
    begun = claim(store)
    store.finish(begun.key, result(1), token=begun.token)

    assert refused(store.claim(begun.key, begun.owner, progress="1")).reason is Refusal.FINISHED


def test_heartbeat_in_a_closed_run_is_refused_and_takes_the_step_away(store: Store) -> None:
    begin(store, step(1))
    begun = claim(store)
    close(store)

    assert refused(store.claim(begun.key, begun.owner, progress="1")).reason is Refusal.FINISHED

    assert record(store).steps == ()
    deliver(store)
    assert refused(store.claim(begun.key, begun.owner, progress="1")).reason is Refusal.FINISHED


def wait(store: Store) -> Claim:
    """Begin a step and leave its outcome to somebody outside."""
    begun = claim(store)
    assert store.postpone(begun.key, begun.owner, delay=None, error="")
    return begun


def test_step_that_waits_is_neither_sent_nor_claimed(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    begun = wait(store)

    assert only(record(store).steps).state is StepState.WAITING
    assert refused(store.claim(key(1), call())).reason is Refusal.HELD
    assert refused(store.claim(key(1), begun.owner)).reason is Refusal.HELD
    backend.advance(3600)
    assert step_messages(store) == []
    assert not store.finish(begun.key, result(1), token=begun.token).recorded


def test_step_that_waits_gets_one_outcome_from_outside(store: Store) -> None:
    begin(store, step(1))
    wait(store)

    done = store.finish(key(1), result(1), token=None)

    assert (done.recorded, done.message is not None) == (True, True)
    assert not store.finish(key(1), result(1, payload="6"), token=None).recorded
    assert (kinds(store).count("StepCompleted"), record(store).steps) == (1, ())


def test_outcome_from_outside_may_come_before_the_attempt_has_ended(store: Store) -> None:
    begin(store, step(1))
    begun = claim(store)

    assert store.finish(key(1), result(1), token=None).recorded

    assert not store.postpone(begun.key, begun.owner, delay=None, error="")
    assert record(store).steps == ()


def test_wait_of_an_attempt_that_went_on_is_refused(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    old = claim(store)
    backend.advance(10)
    claim(store, owner=call("p2"))

    assert not store.postpone(old.key, old.owner, delay=None, error="")

    assert only(record(store).steps).state is StepState.CLAIMED


@pytest.mark.parametrize("options", [{"timeout": 30}, {"attempt_timeout": 30}])
def test_step_that_waits_too_long_fails(backend: Backend, options: dict[str, float]) -> None:
    store = backend.store
    begin(store, step(1, options=options))
    wait(store)

    backend.advance(30)
    sweep(store)

    assert kinds(store)[-1] == "StepFailed"
    assert not store.finish(key(1), result(1), token=None).recorded


def test_step_that_waits_is_kept_by_heartbeats_from_anybody(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1, options={"heartbeat_timeout": 30}))
    begun = wait(store)

    for _ in range(3):
        backend.advance(20)
        beaten = store.claim(key(1), "", progress="")
        assert isinstance(beaten, Claim)
        assert beaten.attempt == begun.attempt
        sweep(store)

    assert only(record(store).steps).state is StepState.WAITING
    backend.advance(30)
    sweep(store)
    assert only(tuple(step_messages(store))).attempt == 2
    assert (claim(store).lost, only(record(store).steps).lost) == (1, 1)


def test_cancel_takes_a_step_that_waits_away(store: Store) -> None:
    begin(store, step(1))
    wait(store)

    turn(store, cancel(2, 1))

    assert not store.finish(key(1), result(1), token=None).recorded
    assert record(store).steps == ()


def test_end_of_the_run_takes_a_step_that_waits_away(store: Store) -> None:
    begin(store, step(1, options={"timeout": 60}), step(2))
    wait(store)
    close(store)

    assert [entry.number for entry in record(store).steps] == [2]
    begun = claim(store, 2)
    assert store.postpone(begun.key, begun.owner, delay=None, error="")
    assert record(store).steps == ()
    assert {entry[0] for entry in snapshot(store).agenda} == {"owner", "run"}


def test_steps_that_use_none_of_this_have_no_more_entries_than_before(store: Store) -> None:
    begin(store, step(1), step(2))
    execute(store, 1)

    assert {entry for entry in snapshot(store).agenda if entry[0] != "owner"} == {("run", "w", 0), ("step", "w", 2)}
