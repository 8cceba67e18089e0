"""`hasten`: what a dead worker had fetched from the broker is sent again at once, and nothing else is."""

from __future__ import annotations

import pytest

from durable_celery.store.protocol import Turn
from tests.store.backends import Backend
from tests.store.moves import (
    begin,
    claim,
    close,
    deliver,
    new,
    run_messages,
    signal,
    step,
    step_messages,
    sweep,
    timer,
    turn,
)

FAR = 10**14


def test_a_published_step_is_sent_again_at_once_as_if_it_never_was(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    backend.advance(2)

    assert step_messages(store) == []
    store.hasten(10)
    assert [(message.attempt, message.sends) for message in step_messages(store)] == [(1, 0)]


def test_a_published_run_is_sent_again_at_once_as_if_it_never_was(backend: Backend) -> None:
    store = backend.store
    store.start(new())
    backend.advance(2)

    assert run_messages(store) == []
    store.hasten(10)
    assert [message.sends for message in sweep(store).messages] == [0]


def test_what_was_published_just_now_is_sent_again_after_a_second(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    store.start(new("other"))
    store.hasten(10)

    assert sweep(store).messages == ()
    backend.advance(1)
    found = [message for _ in range(2) for message in sweep(store).messages]
    assert sorted(type(message).__name__ for message in found) == ["RunMessage", "StepMessage"]
    assert [message.sends for message in found] == [0, 0]


def test_what_was_published_just_now_and_comes_is_not_sent_again(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    store.start(new("other"))
    store.hasten(10)
    claim(store, 1)
    store.take("other", "p1#other", known=0)

    backend.advance(1)
    assert sweep(store).messages == ()


def test_it_comes_once_for_many_who_ask(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    backend.advance(2)
    store.hasten(10)
    assert len(step_messages(store)) == 1

    store.hasten(10)
    assert step_messages(store) == []
    backend.advance(2)
    store.hasten(10)
    assert len(step_messages(store)) == 1


def test_what_is_in_hand_is_left_alone(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1), timer(2, FAR))
    claim(store, 1)
    store.start(new("other"))
    begun = store.take("other", "p1#other", known=0)
    backend.advance(2)
    store.hasten(10)

    assert sweep(store).messages == ()
    again = store.take("other", "p1#other", known=0)
    assert isinstance(begun, Turn)
    assert isinstance(again, Turn)
    assert again.lease == begun.lease


def test_a_retry_and_a_run_that_is_put_off_keep_their_time(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1))
    claimed = claim(store, 1)
    store.postpone(claimed.key, claimed.owner, delay=5.0, error="x")
    store.start(new("other"))
    store.take("other", "p1#other", known=0)
    store.release("other", "p1#other", delay=5.0)
    store.start(new("later", delay=5.0))
    backend.advance(2)
    store.hasten(10)

    assert sweep(store).messages == ()


def test_a_run_that_is_delivered_stays_for_its_retention(backend: Backend) -> None:
    store = backend.store
    begin(store)
    close(store)
    deliver(store)
    backend.advance(2)
    store.hasten(10)

    assert sweep(store).messages == ()
    assert store.get("w") is not None


@pytest.mark.parametrize(
    ("oldest", "newest", "found"), [(1, 0, [1]), (0, 1, [3]), (1, 1, [1, 3]), (2, 2, [1, 2, 3]), (0, 5, [1, 2, 3])]
)
def test_as_many_of_the_oldest_and_of_the_newest_as_are_asked_for(
    backend: Backend, oldest: int, newest: int, found: list[int]
) -> None:
    store = backend.store
    begin(store, step(1))
    for number in (2, 3):
        backend.advance(1)
        signal(store, signal_key=f"s-{number}")
        turn(store, step(number))
    backend.advance(2)
    store.hasten(oldest, newest)

    assert sorted(message.key.number for message in step_messages(store)) == found
