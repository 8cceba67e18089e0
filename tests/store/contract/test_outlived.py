"""Steps that outlive their run: no limit, no heartbeat and no outcome from outside is of any use to them any more."""

from __future__ import annotations

from typing import Any

import pytest

from durable_celery.events import StepFailed
from durable_celery.store.protocol import Claim, Refusal, StepState, Store, Timing
from tests.store.backends import Backend
from tests.store.invariants import snapshot
from tests.store.moves import again, begin, call, claim, close, key, kinds, record, refused, result, step, sweep, turn

LIMITS = {"timeout": 60, "start_timeout": 10, "attempt_timeout": 20, "heartbeat_timeout": 15}
STATES = ["pending", "claimed", "waiting"]


@pytest.fixture
def timing() -> Timing:
    return Timing(resend_after=10.0, resend_limit=20.0, retention=1000.0, owner_ttl=2000.0)


def limited(number: int = 1, **options: Any) -> Any:
    return step(number, options=options or LIMITS)


def alarms(store: Store) -> list[int]:
    """Return the places that have an alarm: the number of a step, in the first run."""
    return [number for kind, _, number in snapshot(store).agenda if kind == "deadline"]


def left(store: Store) -> list[StepState]:
    return [entry.state for entry in snapshot(store).left["w"]]


def reach(store: Store, state: str) -> Claim | None:
    """Bring step 1 of run 1 into a state."""
    if state == "pending":
        return None
    begun = claim(store)
    if state == "waiting":
        assert store.postpone(begun.key, begun.owner, delay=None, error="")
    return begun


def logs(store: Store) -> list[list[str]]:
    return [[type(item.event).__name__ for item in store.history("w", run=run)] for run in (1, 2)]


# Limits. --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
def test_no_limit_of_the_old_run_passes(backend: Backend, state: str) -> None:
    store = backend.store
    begin(store, limited())
    reach(store, state)
    assert alarms(store) == [1]

    turn(store, again(2))
    before = logs(store)

    assert alarms(store) == []
    backend.advance(100)
    assert sweep(store).counts.keys() <= {"run", "step"}
    assert logs(store) == before


def test_step_of_the_very_turn_that_continues_has_no_alarm(store: Store) -> None:
    begin(store, limited(), again(2))

    assert alarms(store) == []


def test_nothing_that_an_outlived_step_does_arms_an_alarm(store: Store) -> None:
    begin(store, limited(), again(2))

    begun = claim(store)
    assert alarms(store) == []
    store.postpone(begun.key, begun.owner, delay=0.0, error="x")
    assert alarms(store) == []
    claim(store, owner=call("p9"))
    store.renew([], gone=["p9"])
    sweep(store)
    assert claim(store).lost == 1
    assert alarms(store) == []


def test_alarm_is_that_of_the_step_of_its_run(backend: Backend) -> None:
    store = backend.store
    begin(store, limited(1, attempt_timeout=5))
    old = claim(store)
    turn(store, again(2))
    turn(store, limited(1, attempt_timeout=5, queue='the "slow" one'))
    new = claim(store, run=2)

    backend.advance(6)
    sweep(store)

    failed = store.history("w")[-1].event
    assert isinstance(failed, StepFailed)
    assert (failed.number, failed.attempt) == (1, 1)
    assert not store.finish(new.key, result(1), token=new.token).recorded
    assert left(store) == [StepState.CLAIMED]
    assert isinstance(store.claim(old.key, old.owner), Claim)


def test_story_of_a_later_run_names_its_own_step(backend: Backend) -> None:
    store = backend.store
    begin(store, limited(1, queue="old"), again(2))
    turn(store, limited(1, start_timeout=5, queue='the "slow" one'))

    backend.advance(6)
    sweep(store)

    failed = store.history("w")[-1].event
    assert isinstance(failed, StepFailed)
    assert r"start_timeout of 5 s: does one consume queue the \"slow\" one?" in (failed.payload or "")


def test_attempt_of_a_later_run_is_fenced_and_repeated(backend: Backend) -> None:
    store = backend.store
    begin(store, limited(), again(2))
    turn(store, limited(1, heartbeat_timeout=5))
    silent = claim(store, run=2)

    backend.advance(6)
    sweep(store)

    assert refused(store.claim(silent.key, silent.owner, progress="1")).reason is Refusal.LOST
    assert (claim(store, run=2).attempt, record(store).steps[0].lost) == (2, 1)


# Heartbeats. ----------------------------------------------------------------------------------------------------------


def test_heartbeat_of_an_outlived_step_is_refused_and_takes_it_away(backend: Backend) -> None:
    store = backend.store
    begin(store, limited())
    begun = claim(store)
    turn(store, again(2))

    assert refused(store.claim(begun.key, begun.owner, progress="1")).reason is Refusal.FINISHED

    assert left(store) == []
    assert refused(store.claim(begun.key, begun.owner, progress="1")).reason is Refusal.FINISHED
    assert refused(store.claim(begun.key, call())).reason is Refusal.FINISHED
    backend.advance(100)
    assert "step" not in sweep(store).counts


@pytest.mark.parametrize("end", [again(2), "close"])
def test_heartbeat_of_somebody_else_leaves_an_outlived_step_to_its_owner(store: Store, end: Any) -> None:
    begin(store, limited())
    begun = claim(store, owner=call("p2"))
    if end == "close":
        close(store)
    else:
        turn(store, end)

    assert refused(store.claim(begun.key, call(), progress="1")).reason is Refusal.FINISHED
    assert refused(store.claim(begun.key, "", progress="1")).reason is Refusal.FINISHED

    kept = store.claim(begun.key, begun.owner)
    assert isinstance(kept, Claim)
    assert (kept.attempt, kept.progress) == (1, None)


def test_heartbeat_of_an_outlived_step_is_none_of_the_step_with_its_number(store: Store) -> None:
    begin(store, limited())
    old = claim(store)
    turn(store, again(2))
    turn(store, limited())
    new = claim(store, run=2, owner=old.owner)
    before = {entry: at for entry, at in snapshot(store).agenda.items() if entry[0] == "deadline"}

    refused(store.claim(old.key, old.owner, progress="1"))

    assert {entry: at for entry, at in snapshot(store).agenda.items() if entry[0] == "deadline"} == before
    kept = store.claim(new.key, new.owner)
    assert isinstance(kept, Claim)
    assert (kept.attempt, kept.progress) == (1, None)


def test_progress_is_found_by_an_attempt_that_outlives_its_run(store: Store) -> None:
    begin(store, limited())
    begun = claim(store)
    store.claim(begun.key, begun.owner, progress='{"row":7}')
    turn(store, again(2))

    store.postpone(begun.key, begun.owner, delay=0.0, error="x")

    assert claim(store).progress == '{"row":7}'


def test_heartbeat_for_a_run_that_is_not_there_is_refused(store: Store) -> None:
    begin(store, limited(), again(2))
    turn(store, limited())
    owner = claim(store, run=2).owner

    assert refused(store.claim(key(1, run=3), owner, progress="1")).reason is Refusal.UNKNOWN
    assert refused(store.claim(key(7, run=2), owner, progress="1")).reason is Refusal.UNKNOWN
    assert refused(store.claim(key(7, run=1), owner, progress="1")).reason is Refusal.FINISHED
    assert record(store).steps[0].progress is None


# Outcomes from outside. -----------------------------------------------------------------------------------------------


def test_step_that_waits_goes_with_its_run(backend: Backend) -> None:
    store = backend.store
    begin(store, limited(1, heartbeat_timeout=5))
    waiting = reach(store, "waiting")
    assert waiting is not None
    turn(store, again(2))
    turn(store, limited())
    before = logs(store)

    assert left(store) == []
    assert not store.finish(waiting.key, result(1, 0), token=None).recorded
    assert refused(store.claim(waiting.key, "", progress="1")).reason is Refusal.FINISHED
    assert refused(store.claim(waiting.key, call())).reason is Refusal.FINISHED
    assert logs(store) == before
    assert [entry.state for entry in record(store).steps] == [StepState.PENDING]


def test_outlived_attempt_that_leaves_its_outcome_to_others_ends_the_step(backend: Backend) -> None:
    store = backend.store
    begin(store, limited())
    begun = claim(store)
    turn(store, again(2))

    assert store.postpone(begun.key, begun.owner, delay=None, error="")

    assert left(store) == []
    backend.advance(100)
    assert "step" not in sweep(store).counts


def test_outcome_from_outside_is_recorded_in_the_run_that_it_names(store: Store) -> None:
    begin(store, step(1), again(2))
    turn(store, step(1))
    claim(store, run=2)

    assert not store.finish(key(1), result(1, 0), token=None).recorded
    assert not store.finish(key(1, run=3), result(1, 0), token=None).recorded
    assert store.finish(key(1, run=2), result(1, 0), token=None).recorded

    assert kinds(store).count("StepCompleted") == 1


def test_outcome_that_came_before_the_continuation_stands_in_the_old_log(store: Store) -> None:
    begin(store, step(1))
    waiting = reach(store, "waiting")
    assert waiting is not None
    assert store.finish(waiting.key, result(1, 0), token=None).recorded

    turn(store, again(2))

    assert [names.count("StepCompleted") for names in logs(store)] == [1, 0]
