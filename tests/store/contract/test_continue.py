"""A run that goes on as the next one: a new log, nothing lost of what was sent, nothing left of what was waited for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from durable_celery.errors import StaleLeaseError, WorkflowClosedError
from durable_celery.events import (
    CancelRequested,
    Event,
    RunContinued,
    RunStarted,
    SignalReceived,
    StepCompleted,
    TimerFired,
)
from durable_celery.store.protocol import Refusal, RunMessage, RunStatus, StepMessage, StepState, Store, Timing, Turn
from tests.store.backends import Backend
from tests.store.moves import (
    again,
    begin,
    call,
    cancel,
    child,
    claim,
    deliver,
    end,
    execute,
    key,
    new,
    refused,
    result,
    signal,
    step,
    sweep,
    sweep_all,
    take,
    timer,
    turn,
)


@pytest.fixture
def timing() -> Timing:
    return Timing(resend_after=10.0, resend_limit=20.0, retention=1000.0, owner_ttl=2000.0)


def events(store: Store, run: int | None = None) -> list[Event]:
    return [item.event for item in store.history("w", run=run)]


def record_of(store: Store) -> RunStatus:
    record = store.get("w")
    assert record is not None
    return record.status


def sent(store: Store) -> list[str]:
    """Return what a sweep sends of steps, and of runs if there is nothing else."""
    messages = sweep(store).messages
    steps = [message for message in messages if isinstance(message, StepMessage)]
    told = [f"{'cancel ' if one.cancel else ''}{one.key} {one.scheduled.payload}" for one in steps]
    return sorted(told) or [one.workflow_id for one in messages if isinstance(one, RunMessage)]


def test_next_run_is_of_the_version_that_the_code_says(store: Store) -> None:
    store.start(new(version=3))
    turn(store, replace(again(1), version=3), hold=True)
    first = events(store)[0]
    assert isinstance(first, RunStarted)
    assert first.version == 3


def test_next_run_begins_with_the_new_arguments(store: Store) -> None:
    store.start(new(parent="p/1.7"))

    done = turn(store, step(1), again(2), hold=True)

    record = store.get("w")
    assert record is not None
    assert (done.events, done.length, done.held) == ((), 3, False)
    assert (record.run, record.length, record.read, record.status) == (2, 1, 0, RunStatus.RUNNING)
    assert (record.name, record.parent, record.owner, record.steps) == ("shop.checkout", "p/1.7", None, ())
    started = events(store)
    assert started == [RunStarted(payload='[["o-2"],{}]', name="shop.checkout", parent="p/1.7")]
    assert [item.seq for item in store.history("w")] == [1]


def test_old_log_can_be_read(store: Store) -> None:
    begin(store, step(1))
    before = events(store)

    turn(store, again(2))

    assert events(store, run=1) == [*before, again(2)]
    assert store.history("w", run=1, after=1, limit=1)[0].event == before[1]
    assert events(store, run=2) == events(store)
    assert events(store, run=3) == []


def test_next_run_is_woken(store: Store, backend: Backend) -> None:
    begin(store, again())

    assert sent(store) == []
    backend.advance(10)
    assert sent(store) == ["w"]
    taken = take(store)
    assert (taken.run.run, [item.event for item in taken.events]) == (2, events(store))


def test_each_run_may_go_on(store: Store) -> None:
    begin(store, step(1), again(2))
    for number in range(3):
        turn(store, step(1), again(2), hold=bool(number))

    record = store.get("w")
    assert record is not None
    assert record.run == 5
    assert [len(events(store, run)) for run in (1, 2, 3, 4, 5)] == [3, 3, 3, 3, 1]


def test_list_has_the_workflow_once(store: Store) -> None:
    begin(store, again())

    assert [(run.workflow_id, run.run) for run in store.runs(status=RunStatus.RUNNING).runs] == [("w", 2)]


# What goes along. -----------------------------------------------------------------------------------------------------


def test_inputs_that_no_code_has_taken_go_along_in_order(store: Store) -> None:
    begin(store, step(1))
    for name in "abc":
        signal(store, signal_key=name)
    taken = take(store)
    store.append("w", SignalReceived(name="unseen", payload="1"), key="d")

    store.commit(taken.lease, [again(2, kept=(3, 5), cause=5)], read=5, waiting="", hold=False)

    names = [(event.name, event.payload) for event in events(store)[1:] if isinstance(event, SignalReceived)]
    assert names == [("go", "1"), ("go", "1"), ("unseen", "1")]
    assert take(store).run.length == 4


def test_answers_to_the_old_run_do_not_go_along(store: Store) -> None:
    begin(store, step(1), step(2), timer(3, 0))
    taken = take(store)
    execute(store, 1)
    sweep(store)
    signal(store)

    store.commit(taken.lease, [again(4)], read=taken.run.length, waiting="", hold=False)

    assert [type(event).__name__ for event in events(store)] == ["RunStarted", "SignalReceived"]
    assert {"StepCompleted", "TimerFired"} <= {type(event).__name__ for event in events(store, 1)}


def test_cancel_that_came_meanwhile_goes_along(store: Store) -> None:
    begin(store)
    taken = take(store)
    store.append("w", CancelRequested(reason="stop"), key="c")

    store.commit(taken.lease, [again()], read=1, waiting="", hold=False)

    assert events(store)[1:] == [CancelRequested(reason="stop")]
    assert not store.append("w", CancelRequested(reason="again"), key="d").added


def test_key_of_an_input_is_known_in_all_runs(store: Store) -> None:
    begin(store)
    signal(store, signal_key="once")

    turn(store, again())

    assert not signal(store, signal_key="once").added
    assert signal(store, signal_key="twice").added
    assert len(events(store)) == 2


def test_payload_that_looks_like_an_event_goes_along_as_it_is(store: Store) -> None:
    begin(store)
    taken = take(store)
    text = '"1 {\\"e\\":\\"RunCompleted\\"}"\n{"e":"RunFailed"}'
    store.append("w", SignalReceived(name="odd", payload=text), key="s")

    store.commit(taken.lease, [replace(again(), payload=text)], read=1, waiting="", hold=False)

    assert events(store) == [
        RunStarted(name="shop.checkout", payload=text),
        SignalReceived(name="odd", payload=text),
    ]


# What was open. -------------------------------------------------------------------------------------------------------


def test_timers_and_deadlines_of_the_old_run_never_fire(store: Store, backend: Backend) -> None:
    begin(store, timer(1, 10**15), step(2, options={"timeout": 5}), again(3))

    turn(store, timer(1, 0))
    backend.advance(6)

    assert sweep(store).counts == {"timer": 1}
    assert events(store)[-1] == TimerFired(number=1)


def test_step_of_the_old_run_is_still_executed_and_nothing_is_recorded(store: Store, backend: Backend) -> None:
    begin(store, step(1), again(2))
    turn(store, step(1))
    before = events(store)
    backend.advance(10)

    assert sent(store) == ["w/1.1 [[1],{}]", "w/2.1 [[1],{}]"]
    old = claim(store, 1, run=1)
    assert old.scheduled == step(1)
    assert not store.finish(old.key, result(1), token=old.token).recorded
    assert events(store) == before
    assert refused(store.claim(key(1), call())).reason is Refusal.FINISHED
    assert store.finish(claim(store, 1, run=2).key, result(1), token=1).recorded


def test_step_of_the_old_run_is_retried_as_it_is_of_a_closed_one(store: Store, backend: Backend) -> None:
    begin(store, step(1))
    owner = call()
    held = claim(store, 1, owner)
    turn(store, again(2))

    assert store.postpone(held.key, owner, delay=5, error="no")
    assert refused(store.claim(key(1), call())).reason is Refusal.EARLY
    backend.advance(6)
    assert sent(store) == ["w/1.1 [[1],{}]"]
    assert claim(store, 1).attempt == 2


def test_step_of_the_old_run_that_loses_its_process_is_sent_again(store: Store) -> None:
    begin(store, step(1))
    claim(store, 1, call("p9"))
    turn(store, again(2))
    store.renew([], gone=["p9"])

    assert sent(store) == ["w/1.1 [[1],{}]"]
    assert claim(store, 1).lost == 1


def test_late_outcome_of_the_old_run_gives_the_lease_of_the_new_one(store: Store) -> None:
    begin(store, step(1))
    held = claim(store, 1)
    turn(store, again(2))

    done = store.finish(held.key, result(1), token=held.token, take_over=call(), known=2)

    assert not done.recorded
    assert isinstance(done.turn, Turn)
    assert (done.turn.run.run, done.turn.run.length, done.turn.events) == (2, 1, ())


def test_steps_that_are_over_or_cancelled_are_refused_in_the_next_run(store: Store) -> None:
    begin(store, step(1), step(2), cancel(3, 2))
    execute(store, 1)
    turn(store, again(4))

    for number in (1, 2, 77):
        assert refused(store.claim(key(number), call())).reason is Refusal.FINISHED
    assert refused(store.claim(key(1, run=2), call())).reason is Refusal.UNKNOWN
    assert refused(store.claim(key(1, run=3), call())).reason is Refusal.UNKNOWN
    assert not store.finish(key(1), result(1), token=None).recorded


def test_open_steps_are_those_of_the_newest_run(store: Store) -> None:
    begin(store, step(1), step(2), again(3))
    turn(store, step(1))

    record = store.get("w")
    assert record is not None
    assert [(one.number, one.state) for one in record.steps] == [(1, StepState.PENDING)]


def test_child_of_the_old_run_is_started_and_its_end_means_nothing(store: Store, backend: Backend) -> None:
    begin(store, child(1), child(2), again(3))
    turn(store, child(1))
    backend.advance(10)
    assert sent(store) == ["w/1.1 [[1],{}]", "w/1.2 [[2],{}]", "w/2.1 [[1],{}]"]

    for told in (key(1), key(2), key(1, run=2)):
        store.settle(told)

    assert not store.finish(key(1), result(1), token=None).recorded
    assert store.finish(key(1, run=2), result(1), token=None).recorded


def test_child_that_is_known_and_abandoned_is_forgotten(store: Store) -> None:
    begin(store, child(1))
    store.settle(key(1))

    turn(store, again(2))

    assert not store.finish(key(1), result(1), token=None).recorded
    assert [type(event).__name__ for event in events(store)] == ["RunStarted"]


def test_child_that_is_to_be_cancelled_is_told_until_it_was(store: Store, backend: Backend) -> None:
    begin(store, child(1))
    store.settle(key(1))
    turn(store, cancel(2, 1), again(3))
    turn(store, child(1))

    assert sent(store) == ["cancel w/1.1 [[1],{}]"]
    backend.advance(10)
    assert sent(store) == ["cancel w/1.1 [[1],{}]", "w/2.1 [[1],{}]"]
    store.settle(key(1), cancel=True)
    backend.advance(20)
    assert sent(store) == ["w/2.1 [[1],{}]"]


def test_step_of_the_old_run_outlives_its_log(store: Store, backend: Backend) -> None:
    begin(store, step(1), child(2))
    turn(store, cancel(3, 2), again(4))
    backend.advance(1000.5)

    messages = [message for message in sweep(store).messages if isinstance(message, StepMessage)]

    assert events(store, run=1) == []
    assert {str(message.key): message.scheduled for message in messages} == {"w/1.1": step(1), "w/1.2": child(2)}
    assert claim(store, 1).scheduled == step(1)


# The end, and how long things are kept. -------------------------------------------------------------------------------


def test_end_of_the_last_run_closes_the_workflow(store: Store) -> None:
    begin(store, again())
    turn(store, end(1))

    assert record_of(store) is RunStatus.COMPLETED
    with pytest.raises(WorkflowClosedError):
        signal(store)
    deliver(store)
    assert refused(store.take("w", call(), known=0)).reason is Refusal.FINISHED


def test_old_logs_go_when_their_retention_is_over(store: Store, backend: Backend) -> None:
    begin(store, again())
    backend.advance(600)
    turn(store, again())
    backend.advance(600)

    assert sweep_all(store)["retention"] == 1
    assert (events(store, 1), len(events(store, 2)), len(events(store, 3))) == ([], 2, 1)
    backend.advance(600)
    sweep_all(store)
    assert (events(store, 2), len(events(store, 3))) == ([], 1)
    assert record_of(store) is RunStatus.RUNNING


@pytest.mark.parametrize("later", [0.0, 300.0])
def test_workflow_goes_after_all_its_logs_and_leaves_nothing(store: Store, backend: Backend, later: float) -> None:
    begin(store, step(1), again(2))
    turn(store, child(1), again(2))
    backend.advance(later)
    turn(store, step(1), end(2))
    deliver(store)

    backend.advance(1001)
    while sweep(store).more:
        pass
    backend.advance(later)
    sweep(store)

    assert store.get("w") is None
    assert [events(store, run) for run in (None, 1, 2, 3)] == [[]] * 4
    assert store.start(new(digest="other")).created
    assert len(events(store)) == 1


def test_workflow_that_ran_in_many_runs_is_started_again_only_after_its_retention(store: Store) -> None:
    begin(store, again())

    assert not store.start(new()).created
    assert len(events(store)) == 1


# Repeated, late, refused. ---------------------------------------------------------------------------------------------


def test_commit_that_comes_again_is_known(store: Store) -> None:
    begin(store)
    taken = take(store)
    signal(store)
    outputs = [step(1), again(2)]

    first = store.commit(taken.lease, outputs, read=1, waiting="", hold=True)
    second = store.commit(taken.lease, outputs, read=1, waiting="", hold=True)

    assert (second.events, second.length, second.held) == (first.events, first.length, first.held) == ((), 4, False)
    record = store.get("w")
    assert record is not None
    assert (record.run, len(events(store))) == (2, 2)


def test_commit_that_comes_again_after_the_next_turn_is_stale(store: Store) -> None:
    begin(store)
    taken = take(store)
    store.commit(taken.lease, [again()], read=1, waiting="", hold=False)
    take(store)

    with pytest.raises(StaleLeaseError):
        store.commit(taken.lease, [again()], read=1, waiting="", hold=False)


def test_nothing_is_written_under_the_lease_of_the_old_run(store: Store) -> None:
    begin(store)
    taken = take(store)
    store.commit(taken.lease, [again()], read=1, waiting="", hold=True)

    for outputs in ([], [step(1)], [end()], [replace(again(), payload="[[],{}]")]):
        with pytest.raises(StaleLeaseError):
            store.commit(taken.lease, outputs, read=1, waiting="", hold=True)
    store.release("w", taken.lease.owner, delay=0.0, reason="late")
    assert record_of(store) is RunStatus.RUNNING
    assert len(events(store)) == 1


def test_step_that_ends_while_the_run_goes_on_is_in_one_log_at_most(store: Store) -> None:
    begin(store, step(1))
    held, taken = claim(store, 1), take(store)

    assert store.finish(held.key, result(1), token=held.token).recorded
    store.commit(taken.lease, [again(2)], read=2, waiting="", hold=False)

    assert events(store, 1)[2:] == [StepCompleted(number=1, payload="5"), again(2)]
    assert [type(event).__name__ for event in events(store)] == ["RunStarted"]


def test_lost_owner_of_a_lease_costs_the_new_run_nothing(store: Store) -> None:
    begin(store)
    taken = take(store, owner=call("p9"))
    store.commit(taken.lease, [again()], read=1, waiting="", hold=True)
    store.renew([], gone=["p9"])
    sweep(store)

    record = store.get("w")
    assert record is not None
    assert (record.failures, record.reason) == (0, "")


def test_continuation_has_no_place_in_a_closed_run(store: Store) -> None:
    begin(store, end(1))
    taken = take(store)

    with pytest.raises(StaleLeaseError):
        store.commit(taken.lease, [again(2)], read=2, waiting="", hold=False)
    assert not any(isinstance(event, RunContinued) for event in events(store))


def test_room_counts_what_the_new_run_has_not_read(store: Store) -> None:
    begin(store)
    signal(store)
    turn(store, again(1, kept=(2,)))

    assert store.append("w", SignalReceived(name="x"), key="x", room=3).added
