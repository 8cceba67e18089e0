"""Places: where in which run a payload belongs.

A codec that authenticates binds a payload to its place, so that one that was moved to another run, or to another place
of its run, does not open. A place holds what is known both to who writes and to who reads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from durable_celery.events import (
    CancelRequested,
    Event,
    LocalStepCompleted,
    LocalStepFailed,
    RunCancelled,
    RunCompleted,
    RunContinued,
    RunFailed,
    RunStarted,
    SignalReceived,
    StepCompleted,
    StepFailed,
    StepScheduled,
)

__all__ = ["Place", "place_of"]

_KINDS: dict[type[Event], str] = {
    RunStarted: "start",
    StepScheduled: "call",
    StepCompleted: "outcome",
    StepFailed: "outcome",
    LocalStepCompleted: "outcome",
    LocalStepFailed: "outcome",
    SignalReceived: "signal",
    CancelRequested: "cancel",
    RunCompleted: "end",
    RunFailed: "end",
    RunCancelled: "end",
    RunContinued: "start",
}


@dataclass(frozen=True, slots=True)
class Place:
    """One place of one run."""

    workflow_id: str
    #: ``start``, ``call`` (a step's arguments), ``override`` (those of a retry), ``progress`` and ``outcome`` (of a
    #: step), ``end``, ``signal``, ``cancel``, ``error`` (of an attempt) or ``reason`` (why a run is blocked).
    kind: str
    #: Number of the command, or 0.
    number: int = 0
    #: Which execution of the workflow id; 0 for signals and cancels, whose sender does not know it, and for the end, of
    #: which a workflow has one.
    run: int = 1
    #: Name of the signal.
    name: str = ""

    def __str__(self) -> str:
        where = f"{self.workflow_id}/{self.run}.{self.number}" if self.number else self.workflow_id
        return f"{self.kind} {self.name!r} of {where}" if self.name else f"{self.kind} of {where}"

    def to_bytes(self) -> bytes:
        """Return a form that no other place has: the associated data of an encryption."""
        parts = [self.workflow_id, self.run, self.kind, self.number, self.name]
        return json.dumps(parts, separators=(",", ":")).encode()


def place_of(event: Event, workflow_id: str, run: int = 1) -> Place:
    """Return the place of an event's payload (of a cancel: of its reason)."""
    kind = _KINDS.get(type(event), type(event).__name__)
    if isinstance(event, SignalReceived | CancelRequested):
        return Place(workflow_id, kind, run=0, name=event.name if isinstance(event, SignalReceived) else "")
    if kind == "end":
        # It has a number too, but who writes it learns the number last.
        return Place(workflow_id, kind, run=0)
    if isinstance(event, RunContinued):
        # The store copies it: it is the payload of the next run's first event.
        return Place(workflow_id, kind, run=run + 1)
    return Place(workflow_id, kind, getattr(event, "number", 0), run)
