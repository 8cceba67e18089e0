"""`append`: an input enters once per key, and wakes the run once."""

from __future__ import annotations

import pytest

from durable_celery.errors import WorkflowClosedError, WorkflowNotFoundError
from durable_celery.events import CancelRequested, SignalReceived, TimerFired
from durable_celery.store.protocol import Store
from tests.store.backends import Backend
from tests.store.moves import begin, call, close, deliver, kinds, new, run_messages, signal, sweep, take, turn


def test_input_is_added_with_its_payload(store: Store) -> None:
    begin(store)

    answer = store.append("w", SignalReceived(payload='"hé\\n"', name="paid"), key="k")

    assert answer.added
    assert store.history("w")[1].event == SignalReceived(payload='"hé\\n"', name="paid")


def test_input_that_wakes_a_run_gives_the_message(store: Store) -> None:
    begin(store)

    message = signal(store).message

    assert message is not None
    assert (message.workflow_id, message.first) == ("w", False)


def test_second_input_gives_no_message_while_the_run_is_woken(store: Store) -> None:
    begin(store)
    signal(store)

    assert signal(store, signal_key="s-2").message is None
    assert kinds(store).count("SignalReceived") == 2


def test_input_gives_no_message_while_a_live_owner_has_the_lease(store: Store) -> None:
    begin(store)
    take(store)

    assert signal(store).message is None


def test_input_after_the_death_of_the_owner_is_seen(backend: Backend) -> None:
    store = backend.store
    begin(store)
    take(store)
    backend.advance(10)

    answer = signal(store)

    assert [answer.message is not None, *run_messages(store)] in ([False, "w"], [True])


def test_input_with_a_known_key_is_not_added_but_gives_the_message_again(store: Store) -> None:
    begin(store)
    first = signal(store)

    again = signal(store)

    assert not again.added
    assert again.message == first.message
    assert kinds(store).count("SignalReceived") == 1


def test_known_key_gives_no_message_once_the_input_was_read(store: Store) -> None:
    begin(store)
    signal(store)
    turn(store)

    again = signal(store)

    assert (again.added, again.message) == (False, None)


def test_keys_of_different_runs_do_not_meet(store: Store) -> None:
    begin(store, workflow_id="a")
    begin(store, workflow_id="b")

    assert signal(store, "a", "k").added
    assert signal(store, "b", "k").added


def test_second_cancel_is_not_added_whatever_its_key(store: Store) -> None:
    begin(store)

    assert store.append("w", CancelRequested(reason="a"), key="c-1").added
    assert not store.append("w", CancelRequested(reason="b"), key="c-2").added

    assert kinds(store) == ["RunStarted", "CancelRequested"]


def test_gate_opens_once(store: Store) -> None:
    store.start(new(delay=60.0))

    assert store.append("w", TimerFired(number=0), key="timer:0").added
    assert not store.append("w", TimerFired(number=0), key="timer:0").added
    assert not store.append("w", TimerFired(number=0), key="another").added

    assert kinds(store) == ["RunStarted", "TimerFired"]


def test_gate_that_was_opened_by_hand_does_not_fire_again(backend: Backend) -> None:
    store = backend.store
    store.start(new(delay=60.0))
    store.append("w", TimerFired(number=0), key="timer:0")
    turn(store)

    backend.advance(60)
    sweep(store)

    assert kinds(store) == ["RunStarted", "TimerFired"]


def test_gate_that_fired_is_not_opened_by_hand(backend: Backend) -> None:
    store = backend.store
    store.start(new(delay=60.0))
    backend.advance(60)
    sweep(store)

    assert not store.append("w", TimerFired(number=0), key="timer:0").added


def test_gate_of_a_run_that_expires_is_opened_by_hand(store: Store) -> None:
    store.start(new(expires=60.0))

    assert store.append("w", TimerFired(number=0), key="timer:0").added
    assert not store.append("w", TimerFired(number=0), key="timer:0").added


def test_input_for_no_run_is_an_error(store: Store) -> None:
    with pytest.raises(WorkflowNotFoundError) as caught:
        signal(store)

    assert caught.value.workflow_id == "w"


@pytest.mark.parametrize("delivered", [False, True])
def test_input_for_a_closed_run_is_an_error(store: Store, delivered: bool) -> None:
    begin(store)
    close(store)
    if delivered:
        deliver(store)

    with pytest.raises(WorkflowClosedError) as caught:
        signal(store)

    assert (caught.value.workflow_id, caught.value.status) == ("w", "completed")
    assert kinds(store)[-1] == "RunCompleted"


@pytest.mark.parametrize("delivered", [False, True])
def test_input_that_was_accepted_before_the_end_is_no_error(store: Store, delivered: bool) -> None:
    begin(store)
    signal(store)
    close(store)
    if delivered:
        deliver(store)

    assert not signal(store).added


def test_cancel_of_a_delayed_run_wakes_it_before_its_time(store: Store) -> None:
    store.start(new(delay=60.0))

    assert store.append("w", CancelRequested(), key="c").message is not None


def test_input_during_the_wait_after_a_lost_turn_does_not_make_it_shorter(backend: Backend) -> None:
    store = backend.store
    begin(store)
    for _ in range(4):
        taken = take(store, owner=call("mortal"))
        store.release("w", taken.lease.owner, delay=30.0)

    assert signal(store).message is None
    assert run_messages(store) == []
    backend.advance(30)
    assert run_messages(store) == ["w"]
