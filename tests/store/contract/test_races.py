"""Many at once, each over its own connections; what happened is read from the history."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from durable_celery.errors import StaleLeaseError, WorkflowClosedError, WorkflowConflictError
from durable_celery.events import CancelRequested, Event, SignalReceived, TimerFired
from durable_celery.policy import RetryPolicy
from durable_celery.store.protocol import (
    Claim,
    Committed,
    Finishing,
    Lease,
    Refusal,
    Refused,
    RunMessage,
    StepKey,
    Store,
    Timing,
    Turn,
)
from tests.store.backends import Backend
from tests.store.invariants import snapshot
from tests.store.moves import (
    again,
    begin,
    call,
    cancel,
    claim,
    end,
    execute,
    key,
    kinds,
    new,
    record,
    refused,
    result,
    signal,
    step,
    sweep,
    take,
    timer,
    turn,
)

Act = Callable[[Store], Any]

#: How many race at once.
THREADS = 6
#: How often two contenders meet.
ROUNDS = 12


@pytest.fixture
def timing() -> Timing:
    """Owners who live so long that a slow disk does not end them in the middle of a race."""
    return Timing(owner_ttl=120.0)


class Racers:
    """Threads that each have their own way to the store and start together."""

    def __init__(self, backend: Backend, count: int = THREADS) -> None:
        self.stores = [backend.another() for _ in range(count)]
        self.pool = ThreadPoolExecutor(count)

    def race(self, *acts: Act) -> list[Any]:
        """Do the acts at the same time, and return their answers in order."""
        barrier = threading.Barrier(len(acts))

        def run(store: Store, act: Act) -> Any:
            barrier.wait(10)
            return act(store)

        return list(self.pool.map(run, self.stores, acts))

    def share(self, acts: Sequence[Act]) -> list[Any]:
        """Do many acts, as many at once as there are threads."""

        def do(part: Sequence[Act], store: Store) -> list[Any]:
            return [act(store) for act in part]

        done = self.race(*(partial(do, acts[index :: len(self.stores)]) for index in range(len(self.stores))))
        return [answer for answers in done for answer in answers]


def taking(name: str) -> Act:
    return lambda other: other.take(name, call(), known=0)


def claiming(place: StepKey) -> Act:
    return lambda other: other.claim(place, call())


def committing(taken: Turn, *outputs: Event, read: int) -> Act:
    """Commit, and tell what came meanwhile; None if the lease is stale."""

    def act(other: Store) -> Committed | None:
        try:
            return other.commit(taken.lease, outputs, read=read, waiting="", hold=False)
        except StaleLeaseError:
            return None

    return act


def finishing(begun: Claim, payload: str = "5") -> Act:
    outcome = result(begun.key.number, payload=payload)
    return lambda other: other.finish(begun.key, outcome, token=begun.token)


def adding(name: str, event: Event, input_key: str) -> Act:
    """Append an input, and tell whether it was added; a closed run adds nothing."""

    def act(other: Store) -> bool:
        try:
            return other.append(name, event, key=input_key).added
        except WorkflowClosedError:
            return False

    return act


def sweeping(other: Store) -> object:
    return sweep(other)


@pytest.fixture
def racers(backend: Backend) -> Iterator[Racers]:
    made = Racers(backend)
    yield made
    made.pool.shutdown()


def test_many_starts_of_one_id_make_one_run(store: Store, racers: Racers) -> None:
    answers = racers.race(*[lambda other: other.start(new())] * THREADS)

    assert sum(answer.created for answer in answers) == 1
    assert kinds(store) == ["RunStarted"]


def test_starts_with_other_arguments_find_one_winner(racers: Racers) -> None:
    def start(digest: str) -> Callable[[Store], bool]:
        def act(other: Store) -> bool:
            try:
                return other.start(new(digest=digest)).created
            except WorkflowConflictError:
                return False

        return act

    assert sum(racers.race(*[start(str(number)) for number in range(THREADS)])) == 1


def test_many_takes_give_one_lease(store: Store, racers: Racers) -> None:
    for number in range(ROUNDS):
        name = f"w-{number}"
        store.start(new(name))

        answers = racers.race(*[taking(name)] * THREADS)

        assert sum(isinstance(answer, Turn) for answer in answers) == 1
        assert record(store, name).token == 1


def test_many_claims_give_one_attempt(store: Store, racers: Racers) -> None:
    begin(store, *map(step, range(1, ROUNDS + 1)))
    for number in range(1, ROUNDS + 1):
        answers = racers.race(*[claiming(key(number))] * THREADS)

        assert sum(isinstance(answer, Claim) for answer in answers) == 1
        assert {answer.reason for answer in answers if isinstance(answer, Refused)} == {Refusal.HELD}


def test_many_finishes_record_one_outcome(store: Store, racers: Racers) -> None:
    begin(store, step(1))
    begun = claim(store)

    answers = racers.race(*[finishing(begun, payload=str(number)) for number in range(THREADS)])

    assert sum(answer.recorded for answer in answers) == 1
    assert kinds(store).count("StepCompleted") == 1


def test_an_outcome_with_its_turn_and_an_input_do_not_overlook_each_other(store: Store, racers: Racers) -> None:
    for number in range(ROUNDS):
        name = f"w-{number}"
        begin(store, step(1), workflow_id=name)
        begun = claim(store, workflow_id=name)
        at = store.history(name)[-1].at
        outcome = Finishing(key=begun.key, token=begun.token, outcome=result(1), at=at)

        def go_on(other: Store, name: str = name, outcome: Finishing = outcome) -> Committed | None:
            lease = Lease(workflow_id=name, token=2, owner=call())
            try:
                return other.commit(lease, [step(2)], read=3, waiting="", hold=False, finishing=outcome)
            except StaleLeaseError:
                return None

        went_on, added = racers.race(go_on, adding(name, SignalReceived(payload="1", name="go"), "s-1"))

        assert added
        if went_on is None:
            assert kinds(store, name) == ["RunStarted", "StepScheduled", "SignalReceived"]
            assert store.finish(begun.key, result(1), token=begun.token).recorded
        else:
            assert kinds(store, name)[2:] == ["StepCompleted", "StepScheduled", "SignalReceived"]
            assert record(store, name).owner is None
        # Whoever came second has woken the run.
        assert take(store, name).run.length > record(store, name).read


def test_two_hundred_steps_that_finish_at_once_cause_few_messages(store: Store, racers: Racers) -> None:
    begin(store, *map(step, range(1, 201)))

    answers = racers.share([partial(execute, number=number) for number in range(1, 201)])

    assert all(answer.recorded for answer in answers)
    assert sum(answer.message is not None for answer in answers) == 1
    assert kinds(store).count("StepCompleted") == 200


def test_of_two_hundred_finishes_that_take_over_one_goes_on(store: Store, racers: Racers) -> None:
    begin(store, *map(step, range(1, 201)))

    def finish(number: int) -> Callable[[Store], bool]:
        def act(other: Store) -> bool:
            begun = claim(other, number)
            done = other.finish(begun.key, result(number), token=begun.token, take_over=call(), known=201)
            assert done.message is None
            return done.turn is not None

        return act

    assert sum(racers.share([finish(number) for number in range(1, 201)])) == 1
    assert kinds(store).count("StepCompleted") == 200


def test_input_that_races_with_a_commit_is_seen_by_the_turn_or_wakes_the_run(store: Store, racers: Racers) -> None:
    for number in range(ROUNDS * 4):
        name = f"w-{number}"
        begin(store, workflow_id=name)
        taken = take(store, name)

        answer, committed = racers.race(partial(signal, workflow_id=name), committing(taken, read=1))

        is_seen, is_told = bool(committed.events), answer.message is not None
        assert is_seen != is_told, "the turn learns of it, or a message is published: one of the two"


def test_finish_races_with_its_deadline(backend: Backend, racers: Racers) -> None:
    store = backend.store
    for number in range(ROUNDS):
        name = f"w-{number}"
        begin(store, step(1, options={"timeout": 5}), workflow_id=name)
        begun = claim(store, workflow_id=name)
        backend.advance(5)

        racers.race(sweeping, finishing(begun))

        outcomes = [kind for kind in kinds(store, name) if kind in {"StepCompleted", "StepFailed"}]
        assert len(outcomes) == 1
        store.renew(["p1"])


def test_finish_races_with_the_loss_of_its_owner(store: Store, racers: Racers) -> None:
    for number in range(ROUNDS):
        name = f"w-{number}"
        begin(store, step(1), workflow_id=name)
        begun = claim(store, workflow_id=name, owner=call(f"mortal-{number}"))
        store.renew([], gone=[f"mortal-{number}"])

        done, again = racers.race(finishing(begun), claiming(begun.key))

        assert done.recorded != isinstance(again, Claim), "the outcome counts, or another attempt begins"


def test_commit_races_with_the_loss_of_its_owner(store: Store, racers: Racers) -> None:
    for number in range(ROUNDS):
        name = f"w-{number}"
        begin(store, workflow_id=name)
        taken = take(store, name, owner=call("mortal"))
        store.renew([], gone=["mortal"])

        committed, young = racers.race(committing(taken, step(1), read=1), taking(name))

        assert isinstance(young, Turn)
        assert kinds(store, name) == ["RunStarted", *["StepScheduled"] * (committed is not None)]
        assert young.run.length == record(store, name).length, "who has the lease knows all that was written"


def test_cancel_races_with_the_end(store: Store, racers: Racers) -> None:
    for number in range(ROUNDS):
        name = f"w-{number}"
        begin(store, workflow_id=name)
        taken = take(store, name)

        added, _ = racers.race(adding(name, CancelRequested(), "c"), committing(taken, end(), read=1))

        middle = ["CancelRequested"] if added else []
        assert kinds(store, name) == ["RunStarted", *middle, "RunCompleted"]


def test_cancel_of_a_step_races_with_its_finish(store: Store, racers: Racers) -> None:
    for number in range(ROUNDS):
        name = f"w-{number}"
        begin(store, step(1), workflow_id=name)
        begun = claim(store, workflow_id=name)
        taken = take(store, name)

        done, _ = racers.race(finishing(begun), committing(taken, cancel(2, 1), read=2))

        events = kinds(store, name)
        assert ("StepCompleted" in events) == done.recorded
        if done.recorded:
            assert events.index("StepCompleted") < events.index("CommandCancelled")


def test_one_signal_from_many_clients_enters_once(store: Store, racers: Racers) -> None:
    begin(store)

    answers = racers.race(*[signal] * THREADS)

    assert sum(answer.added for answer in answers) == 1
    assert kinds(store).count("SignalReceived") == 1


def test_signals_of_one_sender_keep_their_order(store: Store, racers: Racers) -> None:
    begin(store)

    def send(sender: int) -> Callable[[Store], None]:
        def act(other: Store) -> None:
            for number in range(20):
                other.append("w", SignalReceived(payload=f"{number}", name=f"{sender}"), key=f"{sender}-{number}")

        return act

    racers.race(*[send(sender) for sender in range(THREADS)])

    received = [item.event for item in store.history("w") if isinstance(item.event, SignalReceived)]
    for sender in range(THREADS):
        assert [event.payload for event in received if event.name == str(sender)] == [str(n) for n in range(20)]


def test_many_sweeps_give_each_message_once(backend: Backend, racers: Racers) -> None:
    store = backend.store
    for number in range(40):
        begin(store, timer(1, 0), workflow_id=f"w-{number}")

    sweeps = racers.race(*[lambda other: [sweep(other, 10) for _ in range(5)]] * THREADS)

    messages = [message for parts in sweeps for sweep in parts for message in sweep.messages]
    names = [message.workflow_id for message in messages if isinstance(message, RunMessage)]
    assert sorted(names) == sorted(f"w-{number}" for number in range(40))
    for number in range(40):
        assert kinds(store, f"w-{number}") == ["RunStarted", "TimerStarted", "TimerFired"]


def test_gate_that_is_opened_by_hand_races_with_its_timer(backend: Backend, racers: Racers) -> None:
    store = backend.store
    for number in range(ROUNDS):
        name = f"w-{number}"
        store.start(new(name, delay=5.0))
        backend.advance(5)

        racers.race(sweeping, adding(name, TimerFired(number=0), "timer:0"))

        assert kinds(store, name) == ["RunStarted", "TimerFired"]


def test_workers_that_all_do_everything_lose_nothing(store: Store, racers: Racers) -> None:
    """Runs of five steps in sequence, each message handled twice, by whoever comes first."""
    names = [f"w-{number}" for number in range(8)]
    for name in names:
        store.start(new(name))

    def work(other: Store) -> None:
        for _ in range(20):
            for name in names:
                _go_on(other, name)

    racers.race(*[work] * THREADS)

    for name in names:
        expected = ["RunStarted", *["StepScheduled", "StepCompleted"] * 5, "RunCompleted"]
        assert kinds(store, name) == expected


def _go_on(store: Store, name: str) -> None:
    """Do whatever there is to do for a run, as far as nobody else does it."""
    taken = store.take(name, call(), known=0)
    while isinstance(taken, Turn):
        if taken.run.status.is_closed:
            store.deliver(taken.lease)
            return
        done = sum(type(item.event).__name__ == "StepCompleted" for item in taken.events)
        planned = sum(type(item.event).__name__ == "StepScheduled" for item in taken.events)
        outputs = [] if planned > done else [end()] if done == 5 else [step(done + 1)]
        committed = store.commit(taken.lease, outputs, read=taken.run.length, waiting="", hold=False)
        if not committed.held:
            break
        taken = store.take(name, taken.lease.owner, known=0)
    for number in range(1, 6):
        begun = store.claim(key(number, name), call())
        if isinstance(begun, Claim):
            store.finish(begun.key, result(number), token=begun.token)


def test_turns_of_many_take_effect_one_after_the_other(store: Store, racers: Racers) -> None:
    store.start(new())

    def act(other: Store) -> int:
        written = 0
        while written < 10:
            taken = other.take("w", call(), known=0)
            if isinstance(taken, Refused):
                continue
            known = taken.run.length
            other.commit(taken.lease, [step(known, cause=1)], read=known, waiting="", hold=False)
            written += 1
        return written

    assert sum(racers.race(*[act] * 3)) == 30

    numbers = [getattr(item.event, "number", 0) for item in store.history("w")[1:]]
    assert numbers == list(range(1, 31))
    turn(store, end())


# -- heartbeats and alarms ---------------------------------------------------------------------------------------------


def beating(begun: Claim, progress: str = "1") -> Act:
    return lambda other: other.claim(begun.key, begun.owner, progress=progress)


def test_a_heartbeat_and_the_outcome_leave_one_outcome_and_nothing_else(backend: Backend, racers: Racers) -> None:
    store = backend.store
    for number in range(ROUNDS):
        name = f"beat-{number}"
        begin(store, step(1, options={"heartbeat_timeout": 600}), workflow_id=name)
        begun = claim(store, workflow_id=name)

        beaten, done = racers.race(beating(begun), finishing(begun))

        assert done.recorded
        assert isinstance(beaten, Claim) or beaten.reason is Refusal.FINISHED
        assert record(store, name).steps == ()


def test_a_heartbeat_and_a_cancel_leave_no_step(backend: Backend, racers: Racers) -> None:
    store = backend.store
    for number in range(ROUNDS):
        name = f"cancel-{number}"
        begin(store, step(1, options={"attempt_timeout": 600}), workflow_id=name)
        begun = claim(store, workflow_id=name)
        taken = take(store, name)

        beaten, _ = racers.race(beating(begun), committing(taken, cancel(2, 1), read=taken.run.length))

        assert isinstance(beaten, Claim) or beaten.reason is Refusal.CANCELLED
        assert record(store, name).steps == ()


@pytest.mark.parametrize("tries", [1, 3])
def test_the_alarm_and_the_outcome_leave_one_of_them(backend: Backend, racers: Racers, tries: int) -> None:
    store = backend.store
    for number in range(ROUNDS):
        name = f"alarm-{number}"
        store.renew(["p1"])
        options = {"attempt_timeout": 5, "retry": RetryPolicy(maximum_attempts=tries).to_json()}
        begin(store, step(1, options=options), workflow_id=name)
        begun = claim(store, workflow_id=name)
        backend.advance(5)

        done, _ = racers.race(finishing(begun), sweep)

        outcomes = [kind for kind in kinds(store, name) if kind in {"StepCompleted", "StepFailed"}]
        if done.recorded:
            assert outcomes == ["StepCompleted"]
        else:
            assert outcomes == (["StepFailed"] if tries == 1 else [])
            assert len(record(store, name).steps) == (tries > 1)


def test_the_alarm_of_the_start_and_a_claim_leave_one_of_them(backend: Backend, racers: Racers) -> None:
    store = backend.store
    for number in range(ROUNDS):
        name = f"start-{number}"
        begin(store, step(1, options={"start_timeout": 5}), workflow_id=name)
        backend.advance(5)

        begun, _ = racers.race(claiming(key(1, name)), sweep)

        failed = kinds(store, name).count("StepFailed")
        assert failed == (0 if isinstance(begun, Claim) else 1)
        assert len(record(store, name).steps) == 1 - failed


def test_two_that_tell_an_outcome_from_outside_record_one(backend: Backend, racers: Racers) -> None:
    store = backend.store
    for number in range(ROUNDS):
        name = f"told-{number}"
        begin(store, step(1), workflow_id=name)
        begun = claim(store, workflow_id=name)

        def telling(payload: str, place: StepKey = begun.key) -> Act:
            return lambda other: other.finish(place, result(1, 0, payload), token=None).recorded

        def parking(other: Store, begun: Claim = begun) -> bool:
            return other.postpone(begun.key, begun.owner, delay=None, error="")

        first, second, _ = racers.race(telling("1"), telling("2"), parking)

        assert first + second == 1
        assert kinds(store, name).count("StepCompleted") == 1
        assert record(store, name).steps == ()


# -- what a step says while its run goes on as the next one ------------------------------------------------------------


def going_on(name: str) -> Act:
    return lambda other: turn(other, again(2), workflow_id=name)


def test_a_heartbeat_and_the_continuation_leave_no_alarm(backend: Backend, racers: Racers) -> None:
    store = backend.store
    for number in range(ROUNDS):
        name = f"beat-on-{number}"
        begin(store, step(1, options={"heartbeat_timeout": 600}), workflow_id=name)
        begun = claim(store, workflow_id=name)

        beaten, _ = racers.race(beating(begun), going_on(name))

        assert isinstance(beaten, Claim) or beaten.reason is Refusal.FINISHED
        assert refused(store.claim(begun.key, begun.owner, progress="2")).reason is Refusal.FINISHED
        assert ("deadline", name, 1) not in snapshot(store).agenda
        assert kinds(store, name) == ["RunStarted"]


def test_the_alarm_and_the_continuation_leave_nothing_in_the_new_log(backend: Backend, racers: Racers) -> None:
    store = backend.store
    for number in range(ROUNDS):
        name = f"alarm-on-{number}"
        store.renew(["p1"])
        begin(store, step(1, options={"attempt_timeout": 5}), workflow_id=name)
        claim(store, workflow_id=name)
        backend.advance(5)

        racers.race(sweeping, going_on(name))

        assert kinds(store, name) == ["RunStarted"]
        assert ("deadline", name, 1) not in snapshot(store).agenda


def test_an_outcome_from_outside_and_the_continuation_leave_it_in_the_old_log_or_nowhere(
    backend: Backend, racers: Racers
) -> None:
    store = backend.store
    for number in range(ROUNDS):
        name = f"told-on-{number}"
        begin(store, step(1), workflow_id=name)
        begun = claim(store, workflow_id=name)

        def telling(other: Store, place: StepKey = begun.key) -> bool:
            return other.finish(place, result(1, 0), token=None).recorded

        def parking(other: Store, begun: Claim = begun) -> bool:
            return other.postpone(begun.key, begun.owner, delay=None, error="")

        recorded, _, _ = racers.race(telling, parking, going_on(name))

        old = [type(item.event).__name__ for item in store.history(name, run=1)]
        assert old.count("StepCompleted") == recorded
        assert kinds(store, name) == ["RunStarted"]
        assert snapshot(store).left[name] == []


# -- runs that go on as the next one -----------------------------------------------------------------------------------


def test_whatever_races_with_a_continuation_is_in_the_old_run_or_in_the_new_one(store: Store, racers: Racers) -> None:
    for number in range(ROUNDS):
        name = f"again-{number}"
        begin(store, step(1), step(2), step(3), workflow_id=name)
        ending, parked = claim(store, 1, workflow_id=name), claim(store, 3, workflow_id=name)
        taken = take(store, name)

        def parking(other: Store, begun: Claim = parked) -> bool:
            return other.postpone(begun.key, begun.owner, delay=None, error="")

        went_on, done, begun, was_added, was_parked = racers.race(
            committing(taken, again(4), read=taken.run.length),
            finishing(ending),
            claiming(key(2, name)),
            adding(name, SignalReceived(name="go"), "go"),
            parking,
        )

        assert (went_on.held, was_added, was_parked) == (False, True, True)
        assert isinstance(begun, Claim)
        assert begun.scheduled == step(2)
        old, later = kinds_of_run(store, name, 1), kinds_of_run(store, name, 2)
        assert old.count("StepCompleted") == done.recorded
        assert (len(old), old[-1]) == (went_on.length, "RunContinued")
        assert later == ["RunStarted", "SignalReceived"]
        assert record(store, name).steps == ()
        assert refused(store.claim(parked.key, parked.owner, progress="")).reason is Refusal.FINISHED


def kinds_of_run(store: Store, name: str, run: int) -> list[str]:
    return [type(item.event).__name__ for item in store.history(name, run=run)]
