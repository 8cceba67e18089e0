"""`sweep`: what is due is settled, each entry once per due time, and messages are repeated ever more rarely."""

from __future__ import annotations

import pytest

from durable_celery.store.protocol import RunMessage, StepMessage, Store, Sweep, Timing
from tests.store.backends import Backend
from tests.store.moves import (
    begin,
    claim,
    close,
    deliver,
    execute,
    key,
    new,
    only,
    record,
    run_messages,
    signal,
    step,
    step_messages,
    sweep,
    take,
    timer,
    turn,
)


def test_empty_store_has_nothing_to_do(store: Store) -> None:
    assert sweep(store) == Sweep(messages=(), more=False, next_in=None, counts={})


def test_sweep_tells_how_long_nothing_falls_due(backend: Backend) -> None:
    store = backend.store
    store.start(new(delay=50.0))

    assert sweep(store).next_in == pytest.approx(50, abs=2)
    backend.advance(45)
    assert sweep(store).next_in == pytest.approx(5, abs=2)


def test_life_of_a_process_is_an_entry(store: Store) -> None:
    store.renew(["p1"])

    assert sweep(store).next_in == pytest.approx(10, abs=2)


def test_each_send_doubles_the_wait_for_a_run_up_to_the_limit(backend: Backend) -> None:
    store = backend.store
    begin(store)
    signal(store)

    assert _sends(backend, seconds=920, grain=10) == [10, 30, 70, 150, 310, 610, 910]


def test_each_send_doubles_the_wait_for_a_step_up_to_the_limit(backend: Backend) -> None:
    begin(backend.store, step(1))

    assert _sends(backend, seconds=920, grain=10) == [10, 30, 70, 150, 310, 610, 910]


def test_progress_makes_the_waits_short_again(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    _sends(backend, seconds=150, grain=5)

    begun = claim(store)
    store.postpone(begun.key, begun.owner, delay=0.0, error="x")

    assert _sends(backend, seconds=80, grain=5) == [5, 15, 35, 75]


def test_turn_makes_the_waits_short_again(backend: Backend) -> None:
    store = backend.store
    begin(store)
    signal(store)
    _sends(backend, seconds=150, grain=5)

    turn(store)
    signal(store, signal_key="s-2")

    assert _sends(backend, seconds=80, grain=5) == [10, 30, 70]


def test_message_is_given_once_per_due_time(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    backend.advance(10)

    assert len(sweep(store).messages) == 1
    assert sweep(store).messages == ()


def test_step_message_says_all_that_a_publisher_needs(backend: Backend) -> None:
    store = backend.store
    store.start(new(envelope='{"queue":"q"}'))
    turn(store, step(1, options={"queue": "slow"}))
    backend.advance(10)

    assert step_messages(store) == [
        StepMessage(
            key=key(1),
            scheduled=step(1, options={"queue": "slow"}),
            workflow="shop.checkout",
            envelope='{"queue":"q"}',
            attempt=1,
            retries=0,
            override=None,
            cancel=False,
            sends=1,
        )
    ]


def test_run_message_says_all_that_a_publisher_needs(backend: Backend) -> None:
    store = backend.store
    store.start(new(envelope='{"queue":"q"}'))
    turn(store)
    signal(store)
    backend.advance(10)

    assert sweep(store).messages == (
        RunMessage(
            workflow_id="w",
            name="shop.checkout",
            envelope='{"queue":"q"}',
            created_at=record(store).created_at,
            sends=1,
            first=False,
        ),
    )


def test_sweep_counts_what_it_settled(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1), step(2, options={"timeout": 1}), timer(3, 0), workflow_id="a")
    begin(store, workflow_id="b")
    signal(store, "b")
    begin(store, workflow_id="c")
    close(store, "c")
    deliver(store, "c")
    begin(store, step(1), workflow_id="d")
    claim(store, workflow_id="d")
    backend.advance(8 * 86400)

    counts: dict[str, int] = {}
    for _ in range(3):
        for kind, number in sweep(store).counts.items():
            counts[kind] = counts.get(kind, 0) + number

    # A process has an entry on each shard.
    assert counts.pop("owner") >= 1
    assert counts == {
        "timer": 1,
        "deadline": 1,
        "step": 2,
        "run": 1,
        "retention": 1,
    }


def test_sweep_takes_no_more_than_its_limit(backend: Backend) -> None:
    store = backend.store
    for number in range(25):
        store.start(new(f"w-{number}"))
    backend.advance(10)

    sweeps = [sweep(store, 10) for _ in range(3)]

    assert [len(sweep.messages) for sweep in sweeps] == [10, 10, 5]
    assert [sweep.more for sweep in sweeps] == [True, True, False]
    assert sum(sum(sweep.counts.values()) for sweep in sweeps) == 25
    assert len({only((message,)) for sweep in sweeps for message in sweep.messages}) == 25


def test_a_timer_that_wakes_many_runs_gives_each_its_message(store: Store) -> None:
    for number in range(10):
        begin(store, timer(1, 0), timer(2, 0), workflow_id=f"w-{number}")

    assert sorted(run_messages(store)) == sorted(f"w-{number}" for number in range(10))


def test_timer_during_a_turn_gives_no_message(store: Store) -> None:
    begin(store, timer(1, 0))
    taken = take(store)

    assert run_messages(store) == []
    answer = store.commit(taken.lease, [], read=2, waiting="", hold=False)

    assert [type(item.event).__name__ for item in answer.events] == ["TimerFired"]


def test_lost_wake_of_a_finished_step_is_repeated(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    execute(store)
    backend.advance(10)

    assert run_messages(store) == ["w"]


@pytest.mark.parametrize("timing", [Timing(resend_after=1.0, resend_limit=3.0)])
def test_waits_are_those_of_the_timing(backend: Backend, timing: Timing) -> None:
    begin(backend.store, step(1))

    assert _sends(backend, seconds=12, grain=1) == [1, 3, 6, 9, 12]


def _sends(backend: Backend, *, seconds: int, grain: int) -> list[int]:
    """Let time pass, and return the seconds after which something was to be published."""
    sent: list[int] = []
    for second in range(grain, seconds + grain, grain):
        backend.advance(grain)
        sent += [second] * len(sweep(backend.store).messages)
    return sent


def test_a_message_tells_how_often_it_was_published_before(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    store.start(new("other"))

    told = []
    for wait in (25, 0, 25, 0):
        backend.advance(wait)
        told += [(type(message).__name__, message.sends) for message in sweep(store).messages]
    assert sorted(told) == [("RunMessage", 1), ("RunMessage", 2), ("StepMessage", 1), ("StepMessage", 2)]
