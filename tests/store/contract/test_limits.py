"""The time limits of a step: one alarm for all of them, and what is done when it rings."""

from __future__ import annotations

import json
from typing import Any

import pytest

from durable_celery.events import StepFailed
from durable_celery.policy import RetryPolicy
from durable_celery.store.protocol import Refusal, StepMessage, StepState, Store
from tests.store.backends import Backend
from tests.store.invariants import snapshot
from tests.store.moves import (
    begin,
    call,
    cancel,
    child,
    claim,
    close,
    execute,
    key,
    kinds,
    only,
    record,
    refused,
    result,
    run_messages,
    step,
    step_messages,
    sweep,
    turn,
)

TWICE = RetryPolicy(maximum_attempts=2).to_json()


def pass_time(backend: Backend, seconds: float) -> None:
    """Let time pass while the worker lives."""
    backend.store.renew(["p1"])
    for _ in range(int(seconds / 5)):
        backend.advance(5)
        backend.store.renew(["p1"])
    backend.advance(seconds % 5)
    backend.store.renew(["p1"])


def failure(store: Store) -> str:
    """Return the message of the failure that is the last event."""
    event = store.history("w")[-1].event
    assert isinstance(event, StepFailed), event
    form: dict[str, Any] = json.loads(event.payload or "")
    assert form["type"] == "durable_celery.errors.StepTimeoutError"
    assert form["args"] == [form["message"]]
    assert form["message"] in form["traceback"]
    return str(form["message"])


def alarms(store: Store) -> list[tuple[str, int]]:
    return [(name, number) for kind, name, number in snapshot(store).agenda if kind == "deadline"]


def test_step_without_limits_has_no_alarm(store: Store) -> None:
    begin(store, step(1, options={"queue": "q", "retry": TWICE, "at_most_once": True}))
    claim(store)

    assert alarms(store) == []


@pytest.mark.parametrize(("queue", "where"), [('"a\\b" %1', 'queue "a\\b" %1'), (None, "the queue of shop.charge")])
def test_step_that_nobody_begins_in_time_fails(backend: Backend, queue: str | None, where: str) -> None:
    store = backend.store
    options = {"start_timeout": 7.5} | ({"queue": queue} if queue else {})
    begin(store, step(1, options=options))

    pass_time(backend, 4)
    sweep(store)
    assert kinds(store)[-1] == "StepScheduled"
    pass_time(backend, 4)
    assert run_messages(store) == ["w"]

    words = f"no worker began the step within its start_timeout of 7.5 s: does one consume {where}?"
    assert failure(store) == words
    assert refused(store.claim(key(1), call())).reason is Refusal.FINISHED


def test_step_that_was_begun_in_time_does_not_fail_by_its_start(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1, options={"start_timeout": 5}))
    begun = claim(store)
    store.postpone(begun.key, begun.owner, delay=100.0, error="x")

    assert alarms(store) == []
    pass_time(backend, 20)
    sweep(store)
    assert kinds(store)[-1] == "StepScheduled"


def test_attempt_that_takes_too_long_fails_where_it_is_the_only_one(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1, options={"attempt_timeout": 15}))
    pass_time(backend, 100)
    sweep(store)
    begun = claim(store)

    pass_time(backend, 14)
    sweep(store)
    assert only(record(store).steps).state is StepState.CLAIMED
    pass_time(backend, 1)
    assert run_messages(store) == ["w"]

    assert failure(store) == "the attempt did not end within its attempt_timeout of 15 s, and no attempt is left"
    assert not store.finish(begun.key, result(1), token=begun.token).recorded


def test_attempt_that_takes_too_long_is_fenced_and_followed_by_another(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1, options={"attempt_timeout": 15, "retry": TWICE}))
    first = claim(store)

    pass_time(backend, 15)
    assert sweep(store).more
    message = only(tuple(step_messages(store)))

    assert message.attempt == 2
    entry = only(record(store).steps)
    assert (entry.state, entry.lost, entry.error) == (StepState.PENDING, 0, "the attempt did not end in time")
    assert not store.finish(first.key, result(1), token=first.token).recorded
    second = claim(store)
    assert (second.attempt, second.lost) == (2, 0)
    assert not store.finish(first.key, result(1), token=first.token).recorded
    assert not store.postpone(first.key, first.owner, delay=1.0, error="x")
    pass_time(backend, 15)
    sweep(store)
    assert failure(store).endswith("no attempt is left")


@pytest.mark.parametrize(
    "options",
    [{"retry": TWICE, "at_most_once": True}, {"retry": {**TWICE, "non_retryable": ["StepTimeoutError"]}}],
)
def test_attempt_that_may_not_be_repeated_after_a_timeout_is_the_last(backend: Backend, options: Any) -> None:
    store = backend.store
    begin(store, step(1, options={"attempt_timeout": 5, **options}))
    claim(store)

    pass_time(backend, 5)
    sweep(store)

    assert failure(store).endswith("no attempt is left")


def test_attempt_may_take_too_long_any_number_of_times_where_there_is_no_limit(backend: Backend) -> None:
    store = backend.store
    policy = RetryPolicy(maximum_attempts=0).to_json()
    begin(store, step(1, options={"attempt_timeout": 5, "retry": policy}))

    for attempt in range(1, 12):
        assert claim(store).attempt == attempt
        pass_time(backend, 5)
        sweep(store)
        assert only(tuple(step_messages(store))).attempt == attempt + 1


def test_attempt_that_ends_takes_its_limits_along(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1, options={"attempt_timeout": 5, "heartbeat_timeout": 5}))
    begun = claim(store)
    assert alarms(store) == [("w", 1)]

    store.postpone(begun.key, begun.owner, delay=60.0, error="x")
    assert alarms(store) == []
    pass_time(backend, 60)
    claim(store)
    assert alarms(store) == [("w", 1)]


def test_attempt_of_a_lost_process_takes_its_limits_along(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1, options={"attempt_timeout": 12}))
    claim(store, owner=call("mortal"))

    backend.advance(10)
    sweep(store)

    assert only(record(store).steps).lost == 1
    assert alarms(store) == []


def test_attempt_that_gives_no_heartbeat_is_taken_for_lost(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1, options={"heartbeat_timeout": 20}))
    silent = claim(store)

    pass_time(backend, 20)
    sweep(store)
    message = only(tuple(step_messages(store)))

    assert message.attempt == 2
    entry = only(record(store).steps)
    assert (entry.lost, entry.error) == (1, "the attempt gave no heartbeat in time")
    assert refused(store.claim(silent.key, silent.owner, progress="")).reason is Refusal.LOST
    assert not store.finish(silent.key, result(1), token=silent.token).recorded
    assert (claim(store).attempt, kinds(store)[-1]) == (2, "StepScheduled")


def test_heartbeat_puts_the_limit_off(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1, options={"heartbeat_timeout": 12}))
    begun = claim(store)

    for _ in range(4):
        pass_time(backend, 10)
        assert store.claim(begun.key, begun.owner, progress="") == begun
        sweep(store)

    assert only(record(store).steps).state is StepState.CLAIMED


def test_widest_limit_is_the_one_that_is_told(backend: Backend) -> None:
    store = backend.store
    options = {"timeout": 5, "start_timeout": 5, "attempt_timeout": 3, "heartbeat_timeout": 3}
    begin(store, step(1, options=options))

    backend.advance(5)
    sweep(store)

    assert failure(store) == "the step did not end within its timeout of 5 s"


def test_nearest_limit_rings_first(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1, options={"timeout": 30, "start_timeout": 20, "attempt_timeout": 10, "retry": TWICE}))
    claim(store)

    pass_time(backend, 10)
    sweep(store)
    assert only(record(store).steps).attempt == 1
    pass_time(backend, 20)
    sweep(store)
    assert failure(store) == "the step did not end within its timeout of 30 s"


def test_child_has_the_limit_of_the_whole(backend: Backend) -> None:
    store = backend.store
    begin(store, child(1, options={"timeout": 5}))
    store.settle(key(1))

    backend.advance(5)
    messages = sweep(store).messages + sweep(store).messages

    assert failure(store) == "the step did not end within its timeout of 5 s"
    assert [message.cancel for message in messages if isinstance(message, StepMessage)] == [True]


def test_outcome_that_comes_before_the_alarm_stands(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1, options={"timeout": 5, "attempt_timeout": 5, "heartbeat_timeout": 5}))
    execute(store)

    assert alarms(store) == []
    backend.advance(5)
    sweep(store)
    assert kinds(store).count("StepFailed") == 0


def test_cancel_takes_the_alarm_away(store: Store) -> None:
    begin(store, step(1, options={"attempt_timeout": 5}))
    claim(store)

    turn(store, cancel(2, 1))

    assert alarms(store) == []


def test_end_of_the_run_takes_the_alarm_away_for_good(backend: Backend) -> None:
    store = backend.store
    begin(store, step(1, options={"attempt_timeout": 5, "heartbeat_timeout": 5}))
    close(store)

    claim(store)

    assert alarms(store) == []
    backend.advance(60)
    assert store.renew([]) == ("p1",)
    sweep(store)
    assert alarms(store) == []
