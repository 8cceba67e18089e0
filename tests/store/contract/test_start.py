"""`start`: a run is created once, with its first event and its first message."""

from __future__ import annotations

import pytest

from durable_celery.errors import WorkflowConflictError
from durable_celery.events import RunStarted, TimerFired
from durable_celery.store.protocol import RunMessage, RunStatus, Started, Store
from tests.store.backends import Backend
from tests.store.moves import begin, close, kinds, new, only, record, run_messages, sweep, take, turn


def test_start_writes_the_record_and_the_first_event(store: Store) -> None:
    answer = store.start(new(parent="up/1.3", envelope='{"queue":"q"}', version=3))

    assert answer.created
    run = record(store)
    assert (run.name, run.status, run.run, run.length, run.read) == ("shop.checkout", RunStatus.PENDING, 1, 1, 0)
    assert (run.token, run.owner, run.waiting, run.reason, run.failures) == (0, None, "", "", 0)
    assert (run.parent, run.envelope, run.delivered, run.closed_at, run.steps) == (
        "up/1.3",
        '{"queue":"q"}',
        False,
        None,
        (),
    )
    first = only(tuple(store.history("w")))
    assert first.seq == 1
    assert first.at == run.created_at
    assert first.event == RunStarted(payload='[["o-1"],{}]', name="shop.checkout", parent="up/1.3", version=3)


def test_start_gives_the_message_to_publish(store: Store) -> None:
    message = store.start(new(envelope='{"queue":"q"}')).message

    assert message == RunMessage(
        workflow_id="w",
        name="shop.checkout",
        envelope='{"queue":"q"}',
        created_at=record(store).created_at,
        first=True,
    )


def test_payload_of_a_start_may_have_lines_and_any_text(store: Store) -> None:
    payload = '[["a\\nb", "ü\U0001f600", "\\u0000"],\n{}]'

    store.start(new(payload=payload))

    assert store.history("w")[0].event.payload == payload


def test_second_start_with_the_same_arguments_finds_the_run(store: Store) -> None:
    store.start(new())

    answer = store.start(new())

    assert not answer.created
    assert kinds(store) == ["RunStarted"]


def test_second_start_by_newer_code_finds_the_run_on_its_version(store: Store) -> None:
    store.start(new(version=1))

    answer = store.start(new(version=2))

    assert not answer.created
    assert only(tuple(store.history("w"))).event == RunStarted(payload='[["o-1"],{}]', name="shop.checkout")


def test_second_start_gives_the_message_again_until_a_turn_was_committed(store: Store) -> None:
    first = store.start(new()).message

    assert store.start(new()).message == first
    turn(store)
    assert store.start(new()).message is None


def test_start_of_a_closed_run_finds_it(store: Store) -> None:
    begin(store)
    close(store)

    answer = store.start(new())

    assert (answer.created, answer.message) == (False, None)
    assert record(store).status is RunStatus.COMPLETED


@pytest.mark.parametrize("changes", [{"digest": "d2"}, {"name": "shop.refund"}])
def test_start_under_a_taken_id_is_refused_and_writes_nothing(store: Store, changes: dict[str, str]) -> None:
    store.start(new())
    before = record(store)

    with pytest.raises(WorkflowConflictError) as caught:
        store.start(new(**changes))

    assert caught.value.workflow_id == "w"
    assert "shop.checkout" in caught.value.existing
    assert all(value in caught.value.asked for value in changes.values())
    assert record(store) == before


def test_delayed_run_gets_no_message_before_its_time(backend: Backend) -> None:
    store = backend.store

    answer = store.start(new(delay=60.0))

    assert (answer.created, answer.message) == (True, None)
    started = store.history("w")[0]
    assert isinstance(started.event, RunStarted)
    assert started.event.start_at == started.at + 60_000
    backend.advance(50)
    assert run_messages(store) == []


def test_delayed_run_is_woken_by_timer_zero(backend: Backend) -> None:
    store = backend.store
    store.start(new(delay=60.0))
    backend.advance(60)

    assert run_messages(store) == ["w"]

    assert store.history("w")[1].event == TimerFired(number=0)
    backend.advance(6)
    assert run_messages(store) == [], "it was told already"


def test_second_start_of_a_delayed_run_gives_no_message(store: Store) -> None:
    store.start(new(delay=60.0))

    answer = store.start(new(delay=60.0))

    assert (answer.created, answer.message) == (False, None)


def test_run_that_expires_gets_its_message_at_once(store: Store) -> None:
    answer = store.start(new(expires=30.0))

    assert answer.message is not None
    started = store.history("w")[0]
    assert isinstance(started.event, RunStarted)
    assert (started.event.start_at, started.event.expires_at) == (None, started.at + 30_000)


def test_delay_and_expiry_may_come_together(store: Store) -> None:
    store.start(new(delay=10.0, expires=30.0))

    started = store.history("w")[0]

    assert isinstance(started.event, RunStarted)
    assert (started.event.start_at, started.event.expires_at) == (started.at + 10_000, started.at + 30_000)


def test_delayed_run_stays_pending_while_its_gate_is_closed(backend: Backend) -> None:
    store = backend.store
    store.start(new(delay=60.0))

    turn(store)
    assert record(store).status is RunStatus.PENDING
    backend.advance(60)
    run_messages(store)
    turn(store)
    assert record(store).status is RunStatus.RUNNING


def test_first_message_says_so_until_a_turn_was_taken(backend: Backend) -> None:
    store = backend.store
    message = store.start(new()).message
    assert message is not None
    assert message.first
    backend.advance(10)
    again = only(sweep(store).messages)
    assert isinstance(again, RunMessage)
    assert again.first

    taken = take(store)
    store.release("w", taken.lease.owner, delay=0.0)

    later = only(sweep(store).messages)
    assert isinstance(later, RunMessage)
    assert not later.first


def test_lost_first_message_is_sent_again(backend: Backend) -> None:
    store = backend.store
    store.start(new())
    backend.advance(6)
    assert run_messages(store) == []

    backend.advance(4)

    assert run_messages(store) == ["w"]


def test_start_that_is_not_to_be_sent_falls_due_at_once(store: Store) -> None:
    started = store.start(new(unsent=True))

    assert (started.created, started.message) == (True, None)
    assert run_messages(store) == ["w"]
    assert run_messages(store) == []
    turn(store)


def test_many_starts_are_answered_each_in_its_place(store: Store) -> None:
    store.start(new("old"))
    store.start(new("other", digest="d2"))

    answers = store.start_all([new(name, unsent=True) for name in ("a", "old", "other", "a", "b")])

    found = [answer if isinstance(answer, WorkflowConflictError) else answer.created for answer in answers]
    assert [found[0], found[1], found[3], found[4]] == [True, False, False, True]
    assert isinstance(found[2], WorkflowConflictError)
    assert found[2].workflow_id == "other"
    assert sorted(run_messages(store)) == ["a", "b"]
    assert store.start_all([]) == []


def test_very_many_starts_are_all_there(store: Store) -> None:
    names = [f"w-{number}" for number in range(300)]

    assert all(isinstance(answer, Started) for answer in store.start_all([new(name, unsent=True) for name in names]))

    assert {run.workflow_id for run in store.runs(limit=1000).runs} == set(names)
