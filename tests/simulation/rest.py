"""What must be true when nothing will happen any more: the whole state, looked at from scratch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from durable_celery.errors import NonDeterminismError
from durable_celery.events import (
    CancelRequested,
    CommandCancelled,
    Recorded,
    RunStarted,
    SignalReceived,
    StepScheduled,
)
from durable_celery.policy import RetryPolicy
from durable_celery.store.protocol import RunRecord, RunStatus
from durable_celery.workflow import replay
from tests.simulation.programs import fits, owed
from tests.store.invariants import Snapshot, carried, snapshot, violations_of

if TYPE_CHECKING:
    from tests.simulation.chaos import Chaos


def violations(chaos: Chaos) -> list[str]:
    """Return all that is wrong with a history that has come to its rest."""
    state = snapshot(chaos.world.store)
    return [
        *violations_of(state),
        *_unchanged(chaos, state),
        *_outcome(chaos, state),
        *_effects(chaos, state),
        *_all_ended(chaos, state),
        *_converged(chaos, state),
        *_signals(chaos, state),
        *_attempts(chaos, state),
        *_children(state),
        *_replays(chaos, state),
    ]


def _unchanged(chaos: Chaos, state: Snapshot) -> Iterator[str]:
    """I1: each history is, to the event, what was seen while it came to be."""
    for name, run, history in _all(state):
        if history != chaos.monitor.tracks[name, run].items:
            yield f"I1: the history of {name}, run {run}, is not what it was"


def _all(state: Snapshot) -> Iterator[tuple[str, int, list[Recorded]]]:
    """Yield each run: its workflow id, its number, its history; the runs of one workflow in their order."""
    for name, record in state.records.items():
        for run in range(1, record.run):
            yield name, run, state.past[name, run]
        yield name, record.run, state.histories[name]


def _outcome(chaos: Chaos, state: Snapshot) -> Iterator[str]:
    """The outer run ends with what its program must return, or by a cancel that was asked for."""
    status, value = chaos.world.outcome()
    if status is RunStatus.COMPLETED:
        if not fits(chaos.tree, value):
            yield f"the program returned {value!r}"
    elif status is not RunStatus.CANCELLED:
        yield f"the program {status}: {value!r}"
    elif not chaos.is_cancelled and not _is_expired(state):
        yield "I13: the run is cancelled, and nobody asked for it"


def _is_expired(state: Snapshot) -> bool:
    history = state.histories["w"]
    started = history[0].event
    expires_at = started.expires_at if isinstance(started, RunStarted) else None
    return expires_at is not None and history[-1].at >= expires_at


def _effects(chaos: Chaos, state: Snapshot) -> Iterator[str]:
    """Each effect was had under one idempotency key, and at least once where the program ran to its end."""
    effects = chaos.code.effects
    for token, keys in effects.items():
        if len(keys) > 1:
            yield f"I2: effect {token} was had under several keys: {dict(keys)}"
    if state.records["w"].status is RunStatus.COMPLETED:
        yield from (f"I5: effect {token} was never had" for token in owed(chaos.tree) if token not in effects)


def _all_ended(chaos: Chaos, state: Snapshot) -> Iterator[str]:
    """I5: each run that was acknowledged is there, each has ended, and its end was delivered."""
    delivered = Counter(name for name, _ in chaos.world.deliveries)
    if "w" not in state.records:
        yield "I5: w was acknowledged and is not there"
    for name, record in state.records.items():
        if not (record.status.is_closed and record.delivered and delivered[name]):
            yield f"I5: {name} is {record.status}, delivered {record.delivered}, {delivered[name]} times"


def _converged(chaos: Chaos, state: Snapshot) -> Iterator[str]:
    """I15: nothing is held, and nothing is due but the retention of what has ended."""
    if state.held:
        yield f"I15: held at rest: {state.held}"
    if due := [entry for entry in state.agenda if entry[0] not in {"owner", "retention"}]:
        yield f"I15: due at rest: {due}"


def _signals(chaos: Chaos, state: Snapshot) -> Iterator[str]:
    """I10: each signal that was acknowledged is in the history once, in the order in which it was sent."""
    entered: list[str] = []
    passed_on = 0
    for name, _, history in _all(state):
        if name == "w":
            # What it got from the run before was counted there.
            own = [item.event for item in history[1 + passed_on :]]
            entered += [event.name for event in own if isinstance(event, SignalReceived)]
            passed_on = len(carried(history))
    sent = [name for _, name, _ in chaos.world.signals]
    if entered != sent:
        yield f"I10: w was sent {sent} and has {entered}"


def _attempts(chaos: Chaos, state: Snapshot) -> Iterator[str]:
    """I12: a step is executed no more often than it was claimed, and no more often than its policy allows."""
    world = chaos.world
    if not any(count > 1 for count in world.executions.values()):
        return
    for name, run, history in _all(state):
        for item in history:
            event = item.event
            if not isinstance(event, StepScheduled):
                continue
            key = f"{name}/{run}.{event.number}"
            executed, claimed = world.executions[key], world.watch.claims[key]
            form = (event.options or {}).get("retry")
            limit = RetryPolicy.from_json(form).maximum_attempts if form else world.lost_attempts
            if executed > min(claimed, limit or claimed):
                yield f"I12: {key} was executed {executed} times, claimed {claimed} times, its limit is {limit}"


def _children(state: Snapshot) -> Iterator[str]:
    """I13: each child whose parent does not want it any more has the request, or has ended."""
    for name, run, history in _all(state):
        kids = {e.number for e in (i.event for i in history) if isinstance(e, StepScheduled) and e.kind == "workflow"}
        if not kids:
            continue
        dropped = {e.target for e in (i.event for i in history) if isinstance(e, CommandCancelled)} & kids
        for number in dropped:
            kid = f"{name}/{run}.{number}"
            record = state.records.get(kid)
            if not (record and (record.status.is_closed or _is_asked(state, kid))):
                yield f"I13: child {kid} was cancelled and knows nothing of it"


def _is_asked(state: Snapshot, name: str) -> bool:
    return any(
        isinstance(item.event, CancelRequested) for other, _, log in _all(state) if other == name for item in log
    )


def _replays(chaos: Chaos, state: Snapshot) -> Iterator[str]:
    """I8: a cold replay of each history gives the commands that are recorded, and no other."""
    world = chaos.world
    for name, run, history in _all(state):
        yield from _replayed(chaos, state.records[name], run, history)
    world.running = world.processes[0]


def _replayed(chaos: Chaos, record: RunRecord, run: int, history: list[Recorded]) -> Iterator[str]:
    world, name = chaos.world, record.workflow_id
    try:
        execution = replay(world.definition(record.name), name, history, world.codec, run=run)
    except NonDeterminismError as error:
        yield f"I8: {error}"
        return
    if outputs := execution.take_outputs():
        yield f"I8: a cold replay of {name}, run {run}, goes on with {outputs}"
    execution.evict()
