"""The usual moves of clients and workers against a store, so that a test says only what it is about."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from durable_celery.events import (
    CommandCancelled,
    Event,
    RunCompleted,
    RunContinued,
    SignalReceived,
    StepCompleted,
    StepScheduled,
    TimerStarted,
)
from durable_celery.store.protocol import (
    Appended,
    Claim,
    Committed,
    Finished,
    NewRun,
    Refused,
    RunMessage,
    RunRecord,
    StepKey,
    StepMessage,
    Store,
    Sweep,
    Turn,
)

T = TypeVar("T")

#: The process that acts in most tests.
PROCESS = "p1"
_calls = itertools.count(1)


def call(process: str = PROCESS) -> str:
    """Return a new owner text of a process."""
    return f"{process}#{next(_calls)}"


def key(number: int, workflow_id: str = "w", run: int = 1) -> StepKey:
    return StepKey(workflow_id=workflow_id, run=run, number=number)


def new(workflow_id: str = "w", **changes: Any) -> NewRun:
    given: dict[str, Any] = {"name": "shop.checkout", "payload": '[["o-1"],{}]', "digest": "d1"}
    return NewRun(workflow_id=workflow_id, **{**given, **changes})


def step(number: int, *, kind: Any = "task", cause: int = 1, options: Mapping[str, Any] | None = None) -> StepScheduled:
    return StepScheduled(
        payload=f"[[{number}],{{}}]",
        number=number,
        cause=cause,
        task="shop.charge",
        digest="d",
        kind=kind,
        options=options,
    )


def child(number: int, **changes: Any) -> StepScheduled:
    return step(number, kind="workflow", **changes)


def timer(number: int, due_at: int) -> TimerStarted:
    return TimerStarted(number=number, cause=1, due_at=due_at)


def cancel(number: int, target: int) -> CommandCancelled:
    return CommandCancelled(number=number, cause=1, target=target)


def end(number: int = 99) -> RunCompleted:
    return RunCompleted(payload='"done"', number=number, cause=1)


def again(number: int = 99, kept: tuple[int, ...] = (), cause: int = 99) -> RunContinued:
    """Continue as new; inputs up to ``cause`` were read, so that those of them that go along are ``kept``."""
    return RunContinued(payload='[["o-2"],{}]', number=number, cause=cause, kept=kept)


def result(number: int, attempt: int = 1, payload: str = "5") -> StepCompleted:
    return StepCompleted(payload=payload, number=number, attempt=attempt)


def signal(store: Store, workflow_id: str = "w", signal_key: str = "s-1") -> Appended:
    return store.append(workflow_id, SignalReceived(payload="1", name="go"), key=signal_key)


def take(store: Store, workflow_id: str = "w", owner: str | None = None, known: int = 0) -> Turn:
    answer = store.take(workflow_id, owner or call(), known=known)
    assert isinstance(answer, Turn), answer
    return answer


def turn(store: Store, *outputs: Event, workflow_id: str = "w", hold: bool = False) -> Committed:
    """Take the lease, read everything, commit the outputs."""
    taken = take(store, workflow_id)
    return store.commit(taken.lease, outputs, read=taken.run.length, waiting="", hold=hold)


def begin(store: Store, *outputs: Event, workflow_id: str = "w") -> None:
    """Start a run and commit its first turn."""
    store.start(new(workflow_id))
    turn(store, *outputs, workflow_id=workflow_id)


def claim(store: Store, number: int = 1, owner: str | None = None, workflow_id: str = "w", *, run: int = 1) -> Claim:
    answer = store.claim(key(number, workflow_id, run), owner or call())
    assert isinstance(answer, Claim), answer
    return answer


def execute(store: Store, number: int = 1, workflow_id: str = "w") -> Finished:
    """Claim a step and finish it."""
    begun = claim(store, number, workflow_id=workflow_id)
    return store.finish(begun.key, result(number, begun.attempt), token=begun.token)


def close(store: Store, workflow_id: str = "w") -> None:
    turn(store, end(), workflow_id=workflow_id)


def deliver(store: Store, workflow_id: str = "w") -> None:
    store.deliver(take(store, workflow_id).lease)


def refused(answer: Turn | Claim | Refused) -> Refused:
    assert isinstance(answer, Refused), answer
    return answer


def record(store: Store, workflow_id: str = "w") -> RunRecord:
    found = store.get(workflow_id)
    assert found is not None
    return found


def kinds(store: Store, workflow_id: str = "w") -> list[str]:
    """Return the names of the events of a history."""
    return [type(item.event).__name__ for item in store.history(workflow_id)]


def only(items: tuple[T, ...]) -> T:
    assert len(items) == 1, items
    return items[0]


def run_messages(store: Store) -> list[str]:
    """Sweep, and return the ids of the runs whose message is to be published."""
    return [message.workflow_id for message in sweep(store).messages if isinstance(message, RunMessage)]


def step_messages(store: Store) -> list[StepMessage]:
    """Sweep, and return the messages of steps that are to be published."""
    return [message for message in sweep(store).messages if isinstance(message, StepMessage)]


def sweep(store: Store, limit: int = 100) -> Sweep:
    """Sweep once, behind sweeps that do no more than free the dead; with the counts of all."""
    counts: Counter[str] = Counter()
    while (found := store.sweep(limit)).more and found.counts.keys() == {"owner"}:
        counts.update(found.counts)
    counts.update(found.counts)
    return replace(found, counts=counts)


def sweep_all(store: Store) -> Counter[str]:
    """Sweep until nothing more is due now; return what was settled."""
    counts = Counter[str]()
    while True:
        sweep = store.sweep()
        counts.update(sweep.counts)
        if not sweep.more:
            return counts
