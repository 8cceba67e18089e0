"""`take`, `release` and `deliver`: who may write, and what becomes of the right."""

from __future__ import annotations

import pytest

from durable_celery.errors import StaleLeaseError
from durable_celery.store.protocol import Refusal, Refused, RunStatus, Store, Turn
from tests.store.backends import Backend
from tests.store.moves import (
    begin,
    call,
    close,
    deliver,
    end,
    new,
    record,
    refused,
    run_messages,
    signal,
    sweep,
    take,
    turn,
)


def test_take_gives_the_lease_and_the_events(store: Store) -> None:
    store.start(new())

    taken = store.take("w", "p1#a", known=0)

    assert isinstance(taken, Turn)
    assert (taken.lease.workflow_id, taken.lease.owner, taken.lease.token) == ("w", "p1#a", 1)
    assert (taken.run.owner, taken.run.token, taken.run.length) == ("p1#a", 1, 1)
    assert taken.events == tuple(store.history("w"))
    assert taken.now >= taken.events[-1].at


def test_take_gives_only_what_is_not_known(store: Store) -> None:
    begin(store)
    signal(store)

    taken = take(store, known=1)

    assert [item.seq for item in taken.events] == [2]
    assert taken.run.length == 2


def test_take_gives_a_page_of_a_long_history(store: Store) -> None:
    begin(store)
    for number in range(250):
        signal(store, signal_key=str(number))

    taken = take(store)

    assert taken.run.length == 251
    assert [item.seq for item in taken.events] == list(range(1, len(taken.events) + 1))
    assert len(taken.events) == 200


def test_each_take_has_a_newer_token(store: Store) -> None:
    store.start(new())
    first = take(store)
    store.release("w", first.lease.owner, delay=0.0)

    assert take(store).lease.token == first.lease.token + 1


def test_take_is_refused_while_a_live_owner_has_the_lease(store: Store) -> None:
    store.start(new())
    taken = take(store)

    assert store.take("w", call(), known=0) == Refused(reason=Refusal.HELD)
    assert store.take("w", call("p2"), known=0) == Refused(reason=Refusal.HELD)
    assert record(store).owner == taken.lease.owner


def test_take_that_is_asked_again_gets_the_same_lease(store: Store) -> None:
    store.start(new())

    first = store.take("w", "p1#a", known=0)
    again = store.take("w", "p1#a", known=0)

    assert isinstance(first, Turn)
    assert isinstance(again, Turn)
    assert (again.lease, again.events) == (first.lease, first.events)


def test_take_of_no_run_is_refused(store: Store) -> None:
    assert refused(store.take("w", call(), known=0)).reason is Refusal.UNKNOWN


def test_lease_of_a_dead_owner_is_taken_over_and_its_token_is_stale(backend: Backend) -> None:
    store = backend.store
    store.start(new())
    old = take(store, owner="p1#a")
    backend.advance(10)

    young = take(store, owner="p2#b")

    assert young.lease.token > old.lease.token
    with pytest.raises(StaleLeaseError):
        store.commit(old.lease, [end()], read=1, waiting="", hold=False)
    assert record(store).status is RunStatus.PENDING


def test_lease_that_the_same_owner_took_twice_is_stale_under_its_first_token(store: Store) -> None:
    store.start(new())
    old = take(store, owner="p1#a")
    store.release("w", "p1#a", delay=0.0)
    young = take(store, owner="p1#a")

    assert young.lease.token > old.lease.token
    with pytest.raises(StaleLeaseError):
        store.commit(old.lease, [end()], read=1, waiting="", hold=False)


def test_take_clears_the_wake_mark(backend: Backend) -> None:
    store = backend.store
    store.start(new())
    taken = take(store)
    store.commit(taken.lease, [], read=1, waiting="", hold=False)

    backend.advance(3600)
    assert run_messages(store) == []


def test_held_run_is_not_sent_again(backend: Backend) -> None:
    store = backend.store
    store.start(new())
    take(store)
    for _ in range(3):
        backend.advance(6)
        store.renew(["p1"])

    assert run_messages(store) == []


def test_released_run_is_woken_after_the_delay(backend: Backend) -> None:
    store = backend.store
    store.start(new())
    taken = take(store)

    store.release("w", taken.lease.owner, delay=5.0)

    assert record(store).owner is None
    backend.advance(1)
    assert run_messages(store) == []
    backend.advance(4)
    assert run_messages(store) == ["w"]


def test_release_with_a_reason_blocks_the_run_until_the_next_commit(store: Store) -> None:
    begin(store)
    taken = take(store)

    store.release("w", taken.lease.owner, delay=1.0, reason="step 3 is new")

    blocked = record(store)
    assert (blocked.status, blocked.reason, blocked.failures) == (RunStatus.BLOCKED, "step 3 is new", 1)
    turn(store)
    freed = record(store)
    assert (freed.status, freed.reason, freed.failures) == (RunStatus.RUNNING, "", 0)


def test_release_counts_failures_in_a_row(store: Store) -> None:
    begin(store)
    for failures in (1, 2, 3):
        taken = take(store)
        store.release("w", taken.lease.owner, delay=0.0)
        assert record(store).failures == failures


def test_release_without_a_reason_does_not_block(store: Store) -> None:
    begin(store)
    taken = take(store)

    store.release("w", taken.lease.owner, delay=0.0)

    assert record(store).status is RunStatus.RUNNING


def test_release_by_another_is_ignored(store: Store) -> None:
    begin(store)
    taken = take(store)

    store.release("w", call(), delay=0.0, reason="x")
    store.release("nobody", taken.lease.owner, delay=0.0)

    assert (record(store).owner, record(store).status) == (taken.lease.owner, RunStatus.RUNNING)


def test_release_after_the_lease_went_on_is_ignored(store: Store) -> None:
    begin(store)
    old = take(store)
    store.release("w", old.lease.owner, delay=0.0)
    young = take(store)

    store.release("w", old.lease.owner, delay=0.0)

    assert record(store).owner == young.lease.owner


def test_closed_run_gives_its_lease_for_the_delivery(store: Store) -> None:
    begin(store)
    close(store)

    taken = take(store)

    assert taken.run.status is RunStatus.COMPLETED
    assert taken.events[-1] == store.history("w")[-1]


def test_release_of_a_closed_run_leaves_its_status(backend: Backend) -> None:
    store = backend.store
    begin(store)
    close(store)
    taken = take(store)

    store.release("w", taken.lease.owner, delay=2.0, reason="the result backend is away")

    assert record(store).status is RunStatus.COMPLETED
    backend.advance(2)
    assert run_messages(store) == ["w"]


def test_deliver_ends_the_messages(backend: Backend) -> None:
    store = backend.store
    begin(store)
    close(store)
    deliver(store)

    run = record(store)
    assert (run.delivered, run.owner) == (True, None)
    backend.advance(3600)
    assert sweep(store).messages == ()


def test_delivered_run_is_refused_as_finished(store: Store) -> None:
    begin(store)
    close(store)
    deliver(store)

    assert store.take("w", call(), known=0) == Refused(reason=Refusal.FINISHED)


def test_deliver_by_another_is_ignored(store: Store) -> None:
    begin(store)
    close(store)
    old = take(store)
    store.release("w", old.lease.owner, delay=0.0)
    take(store)

    store.deliver(old.lease)

    assert not record(store).delivered


def test_deliver_of_an_open_run_is_ignored(store: Store) -> None:
    begin(store)
    taken = take(store)

    store.deliver(taken.lease)

    assert (record(store).delivered, record(store).owner) == (False, taken.lease.owner)


def test_delivered_run_is_deleted_after_its_retention(backend: Backend) -> None:
    store = backend.store
    begin(store)
    signal(store)
    close(store)
    deliver(store)
    backend.advance(7 * 86400 - 1)
    assert sweep(store).counts.get("retention", 0) == 0

    backend.advance(1)

    assert sweep(store).counts["retention"] == 1
    assert store.get("w") is None
    assert store.history("w") == []
    assert store.runs().runs == ()
    assert refused(store.take("w", call(), known=0)).reason is Refusal.UNKNOWN


def test_closed_run_that_is_not_delivered_is_kept(backend: Backend) -> None:
    store = backend.store
    begin(store)
    close(store)
    backend.advance(30 * 86400)

    sweep(store)

    assert record(store).status is RunStatus.COMPLETED


def test_id_may_be_used_again_after_the_retention(backend: Backend) -> None:
    store = backend.store
    begin(store)
    signal(store)
    close(store)
    deliver(store)
    backend.advance(7 * 86400)
    sweep(store)

    assert store.start(new(digest="other")).created
    assert signal(store).added
    assert record(store).token == 0
