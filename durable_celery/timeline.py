"""The history of a run as a timeline for people: one line per event, with times relative to the start.

A pure function of the history. The command line and the demo print it; for programs there is
:func:`durable_celery.events.history_to_json`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from durable_celery.codec import Codec, Place, place_of, summary
from durable_celery.errors import DurableError
from durable_celery.events import (
    CancelRequested,
    CommandCancelled,
    LocalStepCompleted,
    LocalStepFailed,
    PatchMarked,
    RunCancelled,
    RunCompleted,
    RunContinued,
    RunStarted,
    SignalReceived,
    StepCompleted,
    StepFailed,
    StepScheduled,
    TimerFired,
    TimerStarted,
)
from durable_celery.workflow.story import instant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from durable_celery.events import Event, Recorded

__all__ = ["call", "duration", "failure", "timeline", "value"]

#: Longest payload in a line, in characters.
SHORT = 60
_NOWHERE = Place("", "")
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def timeline(
    workflow_id: str, history: Sequence[Recorded], *, run: int = 1, codec: Codec | None = None, limit: int = SHORT
) -> str:
    """Return a history as text, without a final line break.

    Args:
        workflow_id: the run's id, for the heading.
        history: its events, from the first one.
        run: which execution of the workflow id it is of.
        codec: reads the payloads.
        limit: longest payload, in characters; 0 shows all of each.
    """
    teller = _Teller(workflow_id, run, codec or Codec(), limit)
    rows = [(item.seq, item.at, *teller.tell(item)) for item in history]
    if not rows:
        return f"{workflow_id} has no history"
    start = rows[0][1]
    times = [f"+{duration((at - start) / 1000)}" for _, at, _, _ in rows]
    wide = [max(map(len, column)) for column in ([str(row[0]) for row in rows], times, [row[2] for row in rows])]
    lines = [
        f"  {seq:>{wide[0]}}  {time:>{wide[1]}}  {what:<{wide[2]}}  {text}".rstrip()
        for time, (seq, _, what, text) in zip(times, rows, strict=True)
    ]
    which = f", run {run}" if run > 1 else ""
    return "\n".join([f"{workflow_id}{which}, started {instant(start):%Y-%m-%d %H:%M:%S} UTC", "", *lines])


def duration(seconds: float) -> str:
    """Return a length of time in words of fitting size: ``0.012 s``, ``4 m 05 s``, ``3 h 20 m``, ``12 d 04 h``."""
    whole = round(seconds)
    if round(seconds, 3) < _MINUTE:
        return f"{seconds:.3f} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} m {whole % _MINUTE:02} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02} m"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR:02} h"


def value(payload: str | None, codec: Codec, limit: int = SHORT, place: Place = _NOWHERE) -> str:
    """Return a recorded value as Python writes it, cut to ``limit`` characters (0: not cut)."""
    try:
        text = repr(codec.decode(payload, place))
    except (DurableError, TypeError, ValueError):
        text = payload or ""  # what cannot be read is shown as it is: this is where people look for the cause
    return _cut(text, limit)


def call(name: str, payload: str | None, codec: Codec, limit: int = SHORT, place: Place = _NOWHERE) -> str:
    """Return a name with recorded arguments as they would be written in a call."""
    try:
        args, kwargs = codec.decode(payload, place) or ((), {})
        words = [*map(repr, args), *(f"{key}={item!r}" for key, item in kwargs.items())]
    except (DurableError, TypeError, ValueError):
        words = [payload or ""]
    return f"{name}({_cut(', '.join(words), limit)})"


def failure(payload: str | None, codec: Codec, limit: int = SHORT, place: Place = _NOWHERE) -> str:
    """Return a recorded failure as class and message."""
    try:
        form: dict[str, Any] = codec.decode(payload, place) or {}
        kind = form["type"].removeprefix("builtins.").removeprefix("durable_celery.errors.")
        return f"{kind}: {_cut(form['message'], limit)}"
    except (DurableError, KeyError, TypeError, ValueError):
        return _cut(payload or "", limit)


def _cut(text: str, limit: int) -> str:
    return summary(text, limit) if limit else text


class _Teller:
    """Tells events in their order; remembers commands, because an outcome only has the command's number."""

    def __init__(self, workflow_id: str, run: int, codec: Codec, limit: int) -> None:
        self.workflow_id, self.run, self.codec, self.limit = workflow_id, run, codec, limit
        #: Of each step and timer: its word, its name, when it began.
        self.commands: dict[int, tuple[str, str, int]] = {0: ("start", "", 0)}

    def tell(self, item: Recorded) -> tuple[str, str]:
        """Return what an event is about, and what happened."""
        event = item.event
        match event:
            case RunStarted():
                text = self._call(event.name, event) + self._conditions(event, item)
                return "started", text
            case SignalReceived():
                return "signal", f"{event.name} = {self._value(event)}"
            case CancelRequested():
                reason = self.codec.legible(event.reason, self._place(event))
                return "cancel", f"requested: {reason}" if reason else "requested"
            case StepScheduled() | TimerStarted():
                return self._begin(event, item)
            case StepCompleted() | StepFailed() | TimerFired() | CommandCancelled():
                return self._end(event, item)
            case _:
                return self._own(event)

    def _call(self, name: str, event: Event) -> str:
        return call(name, event.payload, self.codec, self.limit, self._place(event))

    def _value(self, event: Event) -> str:
        return value(event.payload, self.codec, self.limit, self._place(event))

    def _failure(self, event: Event) -> str:
        return failure(event.payload, self.codec, self.limit, self._place(event))

    def _place(self, event: Event) -> Place:
        return place_of(event, self.workflow_id, self.run)

    def _conditions(self, event: RunStarted, item: Recorded) -> str:
        words = []
        if event.start_at is not None:
            words.append(f"begins after {duration((event.start_at - item.at) / 1000)}")
        if event.expires_at is not None:
            words.append(f"expires after {duration((event.expires_at - item.at) / 1000)}")
        if event.parent:
            words.append(f"as child {event.parent}")
        return "".join(f", {word}" for word in words)

    def _begin(self, event: StepScheduled | TimerStarted, item: Recorded) -> tuple[str, str]:
        if isinstance(event, TimerStarted):
            self.commands[event.number] = ("timer", "", item.at)
            wait = max(0, event.due_at - item.at) / 1000
            return f"timer {event.number}", f"set for {duration(wait)}"
        word = "child" if event.kind == "workflow" else "step"
        name = (event.options or {}).get("label") or event.task
        self.commands[event.number] = (word, name, item.at)
        return f"{word} {event.number}", self._call(name, event)

    def _end(
        self, event: StepCompleted | StepFailed | TimerFired | CommandCancelled, item: Recorded
    ) -> tuple[str, str]:
        number = event.target if isinstance(event, CommandCancelled) else event.number
        word, name, began = self.commands.get(number, ("command", "", item.at))
        what = f"{word} {number}" if number else word
        match event:
            case TimerFired():
                return what, "fired" if number else "its time has come"
            case CommandCancelled():
                return what, f"{name} not wanted any more".strip()
            case _:
                notes = [f"after {duration((item.at - began) / 1000)}"]
                if event.attempt != 1:
                    notes.append(f"attempt {event.attempt}" if event.attempt else "told from outside")
                return what, f"{name} {self._outcome(event)}  ({', '.join(notes)})"

    def _outcome(self, event: Event) -> str:
        if isinstance(event, StepFailed | LocalStepFailed):
            return f"failed: {self._failure(event)}"
        return f"-> {self._value(event)}"

    def _own(self, event: Event) -> tuple[str, str]:
        """Tell what the code did by itself, and how it ended."""
        match event:
            case PatchMarked():
                return f"patch {event.number}", event.patch_id
            case LocalStepCompleted() | LocalStepFailed():
                return f"local {event.number}", f"{event.name} {self._outcome(event)}"
            case RunContinued():
                return "continued", self._call(f"as run {self.run + 1} with ", event)
            case RunCompleted():
                return "completed", f"-> {self._value(event)}"
            case _:
                word = "cancelled" if isinstance(event, RunCancelled) else "failed"
                return word, self._failure(event)
