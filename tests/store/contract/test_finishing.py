"""`commit` with `finishing`: an outcome and the turn that it brings on are one, if nothing else has happened."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from durable_celery.errors import StaleLeaseError
from durable_celery.events import Event, StepCompleted
from durable_celery.store.protocol import Claim, Committed, Finishing, Lease, Refusal, RunStatus, Store
from tests.store.backends import Backend
from tests.store.moves import (
    again,
    begin,
    call,
    cancel,
    claim,
    close,
    end,
    key,
    kinds,
    record,
    refused,
    result,
    run_messages,
    signal,
    step,
    sweep,
    take,
    timer,
    turn,
)

FAR = 9_000_000_000_000


def commit(
    store: Store,
    claimed: Claim,
    *outputs: Event,
    lease: Lease | None = None,
    at: int | None = None,
    hold: bool = False,
    begins: int | None = None,
) -> Committed:
    """Finish a step and commit what follows, as if nothing had happened since the last commit."""
    name = claimed.key.workflow_id
    run = record(store, name)
    lease = lease or Lease(workflow_id=name, token=run.token + 1, owner=call())
    finishing = Finishing(
        key=claimed.key,
        token=claimed.token,
        outcome=result(claimed.key.number, claimed.attempt),
        at=store.history(name)[-1].at if at is None else at,
    )
    return store.commit(lease, outputs, read=run.read + 1, waiting="x", hold=hold, begin=begins, finishing=finishing)


def claimed_step(store: Store) -> Claim:
    begin(store, step(1), timer(2, FAR))
    return claim(store, 1)


def test_the_outcome_stands_before_what_follows_from_it(store: Store) -> None:
    claimed = claimed_step(store)
    answer = commit(store, claimed, step(3))

    assert (answer.events, answer.length, answer.held, answer.begun) == ((), 5, False, False)
    assert kinds(store) == ["RunStarted", "StepScheduled", "TimerStarted", "StepCompleted", "StepScheduled"]
    assert store.history("w")[3].event == result(1)
    run = record(store)
    assert (run.token, run.owner, run.read, run.length, run.waiting) == (2, None, 5, 5, "x")
    assert [step.number for step in run.steps] == [3]
    assert sweep(store).messages == ()


def test_the_outcome_has_the_time_that_the_code_was_told(backend: Backend) -> None:
    store = backend.store
    claimed = claimed_step(store)
    at = store.history("w")[-1].at
    backend.advance(5)
    commit(store, claimed, step(3), at=at)

    assert store.history("w")[3].at == at
    assert store.history("w")[4].at >= at


def test_the_step_that_follows_may_begin_with_it(store: Store) -> None:
    claimed = claimed_step(store)
    owner = call()
    answer = commit(store, claimed, step(3), lease=Lease(workflow_id="w", token=2, owner=owner), begins=3)

    assert answer.begun
    assert claim(store, 3, owner).attempt == 1
    store.renew([], gone=["p1"])
    sweep(store)
    assert record(store).steps[0].lost == 1


def test_it_may_keep_the_lease(store: Store) -> None:
    claimed = claimed_step(store)
    lease = Lease(workflow_id="w", token=2, owner=call())
    assert commit(store, claimed, lease=lease, hold=True).held
    assert record(store).owner == lease.owner

    assert store.commit(lease, [step(3)], read=4, waiting="", hold=False).length == 5
    assert record(store).owner is None


def test_what_came_during_a_held_turn_is_told_by_the_next_commit(store: Store) -> None:
    claimed = claimed_step(store)
    lease = Lease(workflow_id="w", token=2, owner=call())
    commit(store, claimed, lease=lease, hold=True)
    signal(store)

    answer = store.commit(lease, [step(3)], read=4, waiting="", hold=False)
    assert [item.seq for item in answer.events] == [5]
    assert answer.held


def test_with_nothing_to_follow_the_run_waits(store: Store) -> None:
    claimed = claimed_step(store)
    answer = commit(store, claimed)

    assert (answer.length, answer.held) == (4, False)
    assert record(store).status is RunStatus.RUNNING
    assert sweep(store).messages == ()


def test_the_end_is_to_be_delivered(backend: Backend) -> None:
    store = backend.store
    answer = commit(store, claimed_step(store), end())

    assert (answer.held, record(store).status) == (False, RunStatus.COMPLETED)
    assert record(store).steps == ()
    backend.advance(10)
    assert run_messages(store) == ["w"]
    assert take(store).run.status is RunStatus.COMPLETED


def test_the_next_run_begins(store: Store) -> None:
    answer = commit(store, claimed_step(store), again(cause=4))

    assert (answer.length, answer.held) == (5, False)
    assert kinds(store) == ["RunStarted"]
    assert [type(item.event).__name__ for item in store.history("w", run=1)][3:] == ["StepCompleted", "RunContinued"]
    assert take(store).run.run == 2


def test_a_command_may_be_cancelled_by_it(store: Store) -> None:
    begin(store, step(1), step(2))
    commit(store, claim(store, 1), cancel(3, 2))

    assert kinds(store)[3:] == ["StepCompleted", "CommandCancelled"]
    assert refused(store.claim(key(2), call())).reason is Refusal.CANCELLED


def _signal(store: Store, _: Claim) -> None:
    signal(store)


def _read_signal(store: Store, _: Claim) -> None:
    signal(store)
    turn(store)


def _taken(store: Store, _: Claim) -> None:
    signal(store)
    take(store)


def _taken_in_vain(store: Store, _: Claim) -> None:
    store.release("w", take(store).lease.owner, delay=5.0)


def _finished(store: Store, claimed: Claim) -> None:
    store.finish(claimed.key, result(1), token=claimed.token)


def _lost(store: Store, _: Claim) -> None:
    store.renew([], gone=["p1"])
    sweep(store)


def _claimed_again(store: Store, claimed: Claim) -> None:
    _lost(store, claimed)
    claim(store, 1)


def _postponed(store: Store, claimed: Claim) -> None:
    store.postpone(claimed.key, claimed.owner, delay=0.0, error="x")


def _cancelled(store: Store, _: Claim) -> None:
    signal(store)
    turn(store, cancel(3, 1))


def _closed(store: Store, _: Claim) -> None:
    close(store)


def _continued(store: Store, _: Claim) -> None:
    turn(store, again())


@pytest.mark.parametrize(
    "happens",
    [
        _signal,
        _read_signal,
        _taken,
        _taken_in_vain,
        _finished,
        _lost,
        _claimed_again,
        _postponed,
        _cancelled,
        _closed,
        _continued,
    ],
    ids=lambda happens: happens.__name__.strip("_"),
)
def test_nothing_is_written_if_something_else_has_happened(
    store: Store, happens: Callable[[Store, Claim], None]
) -> None:
    claimed = claimed_step(store)
    read, at = record(store).read, store.history("w")[-1].at
    happens(store, claimed)
    before = (record(store), kinds(store))
    finishing = Finishing(key=claimed.key, token=claimed.token, outcome=result(1), at=at)

    with pytest.raises(StaleLeaseError):
        store.commit(
            Lease(workflow_id="w", token=2, owner=call()),
            [step(9)],
            read=read + 1,
            waiting="",
            hold=False,
            begin=9,
            finishing=finishing,
        )
    assert (record(store), kinds(store)) == before


def test_nothing_is_written_at_a_time_that_is_still_to_come(store: Store) -> None:
    claimed = claimed_step(store)
    with pytest.raises(StaleLeaseError):
        commit(store, claimed, step(3), at=FAR)

    assert kinds(store)[3:] == []
    assert commit(store, claimed, step(3)).length == 5


def test_a_run_that_is_not_there_has_no_lease_to_give(store: Store) -> None:
    finishing = Finishing(key=key(1, "none"), token=1, outcome=result(1), at=0)
    with pytest.raises(StaleLeaseError):
        store.commit(
            Lease(workflow_id="none", token=1, owner=call()), [], read=1, waiting="", hold=False, finishing=finishing
        )


def test_a_process_that_has_expired_writes_nothing(backend: Backend) -> None:
    store = backend.store
    claimed = claimed_step(store)
    backend.advance(11)
    with pytest.raises(StaleLeaseError):
        commit(store, claimed, step(3))

    assert kinds(store)[3:] == []


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize(
    "outputs", [(), (step(3),), (step(3), timer(4, FAR)), (end(),), (again(cause=4),)], ids=["0", "1", "2", "end", "on"]
)
def test_it_is_known_when_it_comes_again(store: Store, outputs: tuple[Event, ...], *, hold: bool) -> None:
    claimed = claimed_step(store)
    run, at = record(store), store.history("w")[-1].at
    lease = Lease(workflow_id="w", token=2, owner=call())
    finishing = Finishing(key=claimed.key, token=claimed.token, outcome=result(1), at=at)
    answers: list[tuple[object, ...]] = []
    states: list[tuple[object, ...]] = []
    for _ in range(2):
        answer = store.commit(lease, outputs, read=run.read + 1, waiting="x", hold=hold, finishing=finishing)
        answers.append((answer.events, answer.length, answer.held))
        states.append((record(store), store.history("w"), store.history("w", run=1)))

    assert answers[0] == answers[1]
    assert states[0] == states[1]


def test_another_outcome_under_its_token_is_not_it(store: Store) -> None:
    claimed = claimed_step(store)
    lease = Lease(workflow_id="w", token=2, owner=call())
    at = store.history("w")[-1].at
    commit(store, claimed, lease=lease)
    other = Finishing(key=claimed.key, token=1, outcome=StepCompleted(number=1, attempt=1, payload='"other"'), at=at)

    with pytest.raises(StaleLeaseError):
        store.commit(lease, [], read=4, waiting="", hold=False, finishing=other)
    assert kinds(store)[3:] == ["StepCompleted"]
