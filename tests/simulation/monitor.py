"""The invariants of a system that lives, checked at each store call as far as they follow from what was appended.

What is here is incremental: each event is looked at once, when it appears. Whatever needs the whole state (ghosts in
the agenda, replays) is checked by :mod:`tests.simulation.rest` at the end, and from scratch, so that the two ways may
catch each other's errors. Numbers (I1, I2, ...) are those of the project's list of invariants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from durable_celery.events import (
    CancelRequested,
    CommandCancelled,
    Event,
    Recorded,
    RunCancelled,
    RunCompleted,
    RunContinued,
    RunFailed,
    RunStarted,
    SignalReceived,
    StepCompleted,
    StepFailed,
    StepScheduled,
    TimerFired,
    TimerStarted,
)
from durable_celery.store.protocol import Lease, NewRun, RunRecord, RunStatus, StepKey
from durable_celery.testing.watch import Call

#: Steps that may be scheduled after a cancel: they clean up.
CLEAN_UP = "undo"
#: One run as a store has it: the id and the number, the history, and the record, of the newest run of an id.
Row = tuple[str, int, Sequence[Recorded], RunRecord | None]


class Track:
    """What was seen of one run."""

    __slots__ = ("asked", "cancelled", "ended", "items", "last", "outcomes", "scheduled", "seen", "signals", "timers")

    def __init__(self) -> None:
        self.seen = 0
        self.last: Recorded | None = None
        #: All events, as they were when they appeared.
        self.items: list[Recorded] = []
        self.scheduled: set[int] = set()
        self.outcomes: set[int] = set()
        self.cancelled: set[int] = set()
        #: Number of a running timer -> due; 0 is the gate.
        self.timers: dict[int, int] = {}
        #: Names of the signals that were received, in order.
        self.signals: list[str] = []
        #: Seq of the request to cancel.
        self.asked = 0
        self.ended = False


class Monitor:
    """Looks at what each call has changed."""

    def __init__(self) -> None:
        #: What was found wrong.
        self.found: list[str] = []
        self.tracks: dict[tuple[str, int], Track] = {}
        #: How many events were looked at.
        self.events = 0

    def look(self, rows: Iterable[Row], agenda: Mapping[tuple[str, str, int], int], call: Call | None) -> None:
        """Look at all runs; ``call`` is what was done since the last look, if it was one call."""
        for name, run, log, record in rows:
            track = self.tracks.get((name, run))
            if track is None:
                track = self.tracks[name, run] = Track()
            if len(log) != track.seen or (log and log[-1] is not track.last):
                self._follow(name, track, log)
                if call is not None:
                    self._isolated(name, call)
            if record is None:
                if not track.ended:
                    self.found.append(f"I9: another run follows run {run} of {name}, which has not ended")
                continue
            if record.status is RunStatus.BLOCKED:
                self.found.append(f"I8: {name} is blocked: {record.reason}")
            has_work = not record.delivered if record.status.is_closed else record.length > record.read
            if (
                has_work
                and record.owner is None
                and ("run", name, 0) not in agenda
                and ("timer", name, 0) not in agenda
            ):
                self.found.append(
                    f"I6: {name} is {record.status}, read {record.read} of {record.length}: nobody wakes it"
                )

    def _follow(self, name: str, track: Track, log: Sequence[Recorded]) -> None:
        if len(log) < track.seen or (track.seen and log[track.seen - 1] != track.last):
            self.found.append(f"I1: {name}: history changed at or before event {track.seen}")
            return
        for item in log[track.seen :]:
            self._see(name, track, item)
        track.seen, track.last = len(log), log[-1]

    def _see(self, name: str, track: Track, item: Recorded) -> None:
        self.events += 1
        event = item.event
        if item.seq != (track.last.seq + 1 if track.last else 1) or (track.last and item.at < track.last.at):
            self.found.append(f"I1: {name}: event {item.seq} at {item.at} follows {track.last}")
        track.last = item
        track.items.append(item)
        if track.ended:
            self.found.append(f"I9: {name}: event {item.seq} {type(event).__name__} after the end")
        watcher = _WATCHERS.get(type(event))
        problem = watcher(track, item, event) if watcher is not None else None
        if problem:
            self.found.append(f"{problem}: event {item.seq} of {name}")

    def _isolated(self, name: str, call: Call) -> None:
        """I14: a call that names a run changes no other run's history."""
        target = target_of(call)
        if target is not None and target != name:
            self.found.append(f"I14: call {call.number}, {call.verb} of {target}, changed the history of {name}")


def target_of(call: Call) -> str | None:
    """Return the id of the run that a call names, if it names one."""
    if call.verb in {"renew", "sweep", "hasten"}:
        return None
    match call.args[0]:
        case str(name):
            return name
        case Lease(workflow_id=name) | StepKey(workflow_id=name) | NewRun(workflow_id=name):
            return name
        case _:
            return None


# What each kind of event may not be, in the place where it appears. --------------------------------------------------


def _started(track: Track, item: Recorded, event: RunStarted) -> str | None:
    if event.start_at is not None:
        track.timers[0] = event.start_at
    elif event.expires_at is not None:
        track.timers[0] = item.at
    return None if item.seq == 1 else "I1: a second start"


def _scheduled(track: Track, item: Recorded, event: StepScheduled) -> str | None:
    if event.number in track.scheduled:
        return f"I3: step {event.number} is scheduled twice"
    track.scheduled.add(event.number)
    if track.asked and event.cause >= track.asked and event.task != CLEAN_UP:
        return (
            f"I13: step {event.number} ({event.task}) is scheduled after the cancel that event {track.asked} asked for"
        )
    return None


def _outcome(track: Track, item: Recorded, event: StepCompleted | StepFailed) -> str | None:
    number = event.number
    if number in track.outcomes:
        return f"I2: a second outcome of step {number}"
    track.outcomes.add(number)
    if number not in track.scheduled:
        return f"I3: an outcome of step {number}, which was not scheduled"
    return f"I3: an outcome of step {number}, which was cancelled" if number in track.cancelled else None


def _timer(track: Track, item: Recorded, event: TimerStarted) -> str | None:
    track.timers[event.number] = event.due_at
    return None


def _fired(track: Track, item: Recorded, event: TimerFired) -> str | None:
    due = track.timers.pop(event.number, None)
    if due is None:
        return f"I11: timer {event.number} fired, and does not run"
    return f"I11: timer {event.number} fired at {item.at}, due {due}" if item.at < due else None


def _cancelled(track: Track, item: Recorded, event: CommandCancelled) -> str | None:
    track.cancelled.add(event.target)
    track.timers.pop(event.target, None)
    return None


def _asked(track: Track, item: Recorded, event: CancelRequested) -> str | None:
    if track.asked:
        return "I13: a second cancel"
    track.asked = item.seq
    return None


def _signal(track: Track, item: Recorded, event: SignalReceived) -> str | None:
    if event.name in track.signals:
        return f"I10: signal {event.name} a second time"
    track.signals.append(event.name)
    return None


def _ended(track: Track, item: Recorded, event: Event) -> str | None:
    track.ended = True
    return None


def _continued(track: Track, item: Recorded, event: RunContinued) -> str | None:
    track.ended = True
    if track.asked and event.cause >= track.asked:
        return f"I13: a new run begins after the cancel that event {track.asked} asked for"
    return None


_WATCHERS: dict[type[Event], Callable[[Track, Recorded, Any], str | None]] = {
    RunStarted: _started,
    StepScheduled: _scheduled,
    StepCompleted: _outcome,
    StepFailed: _outcome,
    TimerStarted: _timer,
    TimerFired: _fired,
    CommandCancelled: _cancelled,
    CancelRequested: _asked,
    SignalReceived: _signal,
    RunCompleted: _ended,
    RunFailed: _ended,
    RunCancelled: _ended,
    RunContinued: _continued,
}
