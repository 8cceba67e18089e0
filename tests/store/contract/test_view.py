"""`claim` with `known`: suspended code hears what it has missed, where nothing of it is unread and nobody is at it."""

from __future__ import annotations

import pytest

from durable_celery.events import Event
from durable_celery.store.protocol import Claim, Finishing, Lease, Store, View
from tests.store.moves import (
    again,
    begin,
    call,
    cancel,
    claim,
    close,
    end,
    key,
    record,
    result,
    signal,
    step,
    take,
    timer,
    turn,
)

#: The length of the history of `moved_on`, and what one of two processes has seen of it.
LENGTH, KNOWN = 5, 2


def look(store: Store, number: int = 2, known: int = KNOWN, owner: str | None = None) -> View | None:
    answer = store.claim(key(number), owner or call(), known=known)
    assert isinstance(answer, Claim), answer
    return answer.view


def moved_on(store: Store, *outputs: Event) -> None:
    """Let one process commit step 1, and another one finish it and go on."""
    begin(store, step(1))
    claimed = claim(store, 1)
    store.finish(claimed.key, result(1), token=claimed.token)
    turn(store, *(outputs or (step(2), timer(3, 9_000_000_000_000))))


def test_what_came_after_the_known_position_is_told(store: Store) -> None:
    moved_on(store)
    view = look(store)

    assert view is not None
    assert view.events == tuple(store.history("w")[KNOWN:])
    assert (view.run.token, view.run.read, view.run.length, view.run.owner) == (2, LENGTH, LENGTH, None)
    assert view.now >= view.events[-1].at


def test_a_claim_that_comes_again_tells_it_again(store: Store) -> None:
    moved_on(store)
    owner = call()
    first, second = look(store, owner=owner), look(store, owner=owner)

    assert first is not None
    assert second is not None
    assert (first.run, first.events) == (second.run, second.events)


def test_who_does_not_ask_is_told_nothing(store: Store) -> None:
    moved_on(store)

    assert claim(store, 2).view is None


@pytest.mark.parametrize("known", [LENGTH, LENGTH + 1])
def test_who_has_seen_all_is_told_nothing(store: Store, known: int) -> None:
    moved_on(store)

    assert look(store, known=known) is None


def test_what_no_turn_has_read_is_not_told(store: Store) -> None:
    moved_on(store)
    signal(store)

    assert look(store) is None


def test_a_run_in_somebodys_hands_is_not_told(store: Store) -> None:
    moved_on(store)
    signal(store)
    turn(store, hold=True)
    assert record(store).owner is not None

    assert look(store) is None


def test_a_step_that_outlived_its_run_has_no_view(store: Store) -> None:
    moved_on(store, step(2), again(3, cause=4))
    owner = call()
    assert look(store, owner=owner) is None

    turn(store, end())
    assert look(store, owner=owner) is None


def test_a_step_of_a_closed_run_has_no_view(store: Store) -> None:
    moved_on(store)
    close(store)

    assert look(store) is None


def test_more_than_a_page_is_not_told(store: Store) -> None:
    moved_on(store)
    turn_on = [event for number in range(4, 252, 2) for event in (timer(number, 1), cancel(number + 1, number))]
    taken = take(store)
    store.commit(taken.lease, turn_on, read=taken.run.length, waiting="", hold=False)

    owner = call()
    assert look(store, known=LENGTH + 100, owner=owner) is not None
    assert look(store, known=LENGTH, owner=owner) is None


def test_the_view_is_enough_for_the_turn_that_follows(store: Store) -> None:
    """Its token and position are those that `commit` with `finishing` asks for."""
    moved_on(store, step(2))
    owner = call()
    answer = store.claim(key(2), owner, known=KNOWN)
    assert isinstance(answer, Claim)
    assert answer.view is not None
    view = answer.view
    lease = Lease(workflow_id="w", token=view.run.token + 1, owner=owner)
    finishing = Finishing(key=key(2), token=answer.token, outcome=result(2), at=view.now)
    committed = store.commit(lease, [step(3)], read=view.run.length + 1, waiting="", hold=False, finishing=finishing)

    assert committed.length == view.run.length + 2
