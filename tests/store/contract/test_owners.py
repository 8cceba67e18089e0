"""`renew` and death: what a process held goes back to the agenda, at once where its death is known."""

from __future__ import annotations

import pytest

from durable_celery.errors import StaleLeaseError
from durable_celery.store.protocol import RunMessage, StepMessage, StepState, Store
from tests.store.backends import Backend
from tests.store.moves import begin, call, claim, end, key, new, only, record, result, step, sweep, take


def test_renew_makes_processes_known(store: Store) -> None:
    assert store.renew(["host-1", "host-2"]) == ("host-1", "host-2")
    assert store.renew([]) == ("host-1", "host-2")
    assert store.renew(["host-3"]) == ("host-1", "host-2", "host-3")


def test_take_and_claim_make_a_process_known(store: Store) -> None:
    begin(store, step(1), workflow_id="a")
    store.start(new("b"))
    take(store, "b", owner=call("taker"))
    claim(store, workflow_id="a", owner=call("claimer"))

    assert {"taker", "claimer"} <= set(store.renew([]))


def test_process_that_is_renewed_lives(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    begun = claim(store)
    for _ in range(5):
        backend.advance(8)
        store.renew(["p1"])
        sweep(store)

    assert store.finish(begun.key, result(1), token=begun.token).recorded


def test_dead_process_is_forgotten_by_the_sweep(backend: Backend) -> None:
    store = backend.store
    store.renew(["host-1"])
    backend.advance(10)

    swept = sweep(store)

    assert swept.counts["owner"] >= 1
    assert store.renew([]) == ()


def test_what_a_dead_process_held_is_sent_again(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1), step(2))
    claim(store, 1)
    claim(store, 2)
    take(store)
    backend.advance(10)

    messages = [*sweep(store).messages, *sweep(store).messages]

    assert sorted(message.key.number for message in messages if isinstance(message, StepMessage)) == [1, 2]
    assert [message.workflow_id for message in messages if isinstance(message, RunMessage)] == ["w"]
    assert [(entry.state, entry.lost, entry.attempt) for entry in record(store).steps] == [
        (StepState.PENDING, 1, 1),
        (StepState.PENDING, 1, 1),
    ]
    run = record(store)
    assert (run.owner, run.failures) == (None, 1)


def test_process_that_is_gone_loses_all_at_once(store: Store) -> None:
    begin(store, step(1))
    claim(store)

    store.renew([], gone=["p1"])

    messages = [*sweep(store).messages, *sweep(store).messages]
    assert [message.attempt for message in messages if isinstance(message, StepMessage)] == [2]
    assert store.renew([]) == ()


def test_unknown_process_may_be_gone(store: Store) -> None:
    store.renew(["p2"], gone=["p1"])

    assert store.renew([]) == ("p2",)


def test_other_processes_keep_what_they_hold(store: Store) -> None:
    begin(store, step(1), step(2))
    claim(store, 1, owner=call("p1"))
    begun = claim(store, 2, owner=call("p2"))

    store.renew([], gone=["p1"])
    sweep(store)

    assert [entry.state for entry in record(store).steps] == [StepState.PENDING, StepState.CLAIMED]
    assert store.finish(begun.key, result(2), token=begun.token).recorded


def test_process_that_is_renewed_after_it_expired_has_lost_all_that_it_held(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    taken, begun = take(store), claim(store)
    backend.advance(10)

    store.renew(["p1"])

    assert only(record(store).steps).state is StepState.PENDING
    assert not store.postpone(begun.key, begun.owner, delay=0.0, error="x")
    with pytest.raises(StaleLeaseError):
        store.commit(taken.lease, [end()], read=2, waiting="", hold=False)
    assert "p1" in store.renew([])


def test_process_that_slept_through_its_time_and_takes_something_is_alive_again(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1), step(2))
    claim(store, 1)
    backend.advance(10)

    begun = claim(store, 2)
    sweep(store)

    assert [entry.state for entry in record(store).steps] == [StepState.PENDING, StepState.CLAIMED]
    assert store.finish(begun.key, result(2), token=begun.token).recorded


def test_outcome_of_an_expired_claim_that_nobody_took_over_counts(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    begun = claim(store)
    backend.advance(10)

    assert store.finish(begun.key, result(1), token=begun.token).recorded


def test_run_whose_turn_kills_its_process_does_not_spin(backend: Backend) -> None:
    store = backend.store
    begin(store)
    waits: list[int] = []
    for life in range(9):
        take(store, owner=call(f"life-{life}"))
        store.renew([], gone=[f"life-{life}"])
        waited = 0
        while not (swept := sweep(store)).messages:
            if swept.next_in:
                backend.advance(1)
                waited += 1
        waits.append(waited)

    assert waits[0] == 0
    assert waits[1:] == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60], abs=1)
    assert record(store).failures == 9


def test_commit_forgets_the_losses_of_the_turns_before(store: Store) -> None:
    begin(store)
    take(store, owner=call("mortal"))
    store.renew([], gone=["mortal"])
    sweep(store)

    taken = take(store)
    assert taken.run.failures == 1
    store.commit(taken.lease, [], read=1, waiting="", hold=False)

    assert record(store).failures == 0


def test_lost_steps_are_counted_apart_from_attempts_that_failed(store: Store) -> None:
    begin(store, step(1))
    for life in ("a", "b"):
        claim(store, owner=call(life))
        store.renew([], gone=[life])
        sweep(store)
    begun = claim(store)
    store.postpone(begun.key, begun.owner, delay=0.0, error="x")

    last = claim(store)

    assert (last.attempt, last.lost) == (4, 2)


def test_owner_text_without_a_call_is_a_process(store: Store) -> None:
    begin(store, step(1))
    claim(store, owner="plain")

    store.renew([], gone=["plain"])
    sweep(store)

    assert only(record(store).steps).state is StepState.PENDING


def test_process_names_may_look_like_anything(store: Store) -> None:
    name = "celery@host:1|2/3%4*5?[x]-ü"
    begin(store, step(1))
    claim(store, owner=f"{name}#1")

    assert name in store.renew([name])
    store.renew([], gone=[name])
    sweep(store)

    assert only(record(store).steps).lost == 1
    assert store.claim(key(1), f"{name}#2") is not None


def test_renew_tells_of_the_processes_of_the_same_host(backend: Backend) -> None:
    store = backend.store
    store.renew(["h1:1:2.3", "h1:2:3.4"])
    begin(store, step(1))
    claim(store, owner="h1:2:5.6#call")
    store.renew(["h2:1:2.3", "h10:1:1.1", "h_:1:1.1"])

    assert store.renew(["h1:1:2.3"]) == ("h1:1:2.3", "h1:2:3.4", "h1:2:5.6")
    assert store.renew(["h_:1:1.1"]) == ("h_:1:1.1",)
    assert store.renew(["h2:1:2.3"], gone=["h1:2:3.4"]) == ("h1:1:2.3", "h1:2:3.4", "h1:2:5.6", "h2:1:2.3")
    assert len(store.renew([])) == len(store.renew(["no host"])) - 1 == 7

    sweep(store)
    assert store.renew(["h1:1:2.3"]) == ("h1:1:2.3", "h1:2:5.6")


def test_sweep_tells_how_many_processes_there_are(store: Store) -> None:
    assert store.sweep().processes == 0
    store.renew(["h1:1:2.3", "h1:2:3.4", "h2:1:2.3"])
    assert store.sweep().processes == 3
    store.renew([], gone=["h1:2:3.4"])
    while store.sweep().more:
        pass
    assert store.sweep().processes == 2
