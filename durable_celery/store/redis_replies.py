"""What the Lua scripts answer, turned into the protocol's records; and what they are told about events.

Pure functions over texts and lists: nothing here talks to a server. Each script's header names the shape of its answer.
"""

from __future__ import annotations

import json
from itertools import chain
from typing import TYPE_CHECKING, Any

from durable_celery.events import (
    CARRIED,
    LETTERS,
    CancelRequested,
    CommandCancelled,
    Event,
    Recorded,
    RunCancelled,
    RunCompleted,
    RunContinued,
    RunFailed,
    StepScheduled,
    TimerFired,
    TimerStarted,
    decode,
    encode,
)
from durable_celery.store.limits import Limits
from durable_celery.store.protocol import (
    Finishing,
    Lease,
    Mail,
    PendingStep,
    RunMessage,
    RunRecord,
    RunStatus,
    StepKey,
    StepMessage,
    StepState,
    Turn,
    View,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "Head",
    "commit_words",
    "events_of",
    "input_kind",
    "milliseconds",
    "open_steps",
    "printable",
    "read_message",
    "read_record",
    "read_turn",
    "read_view",
    "scheduled_step",
]

_CLOSING: dict[type[Event], RunStatus] = {
    RunCompleted: RunStatus.COMPLETED,
    RunFailed: RunStatus.FAILED,
    RunCancelled: RunStatus.CANCELLED,
}
_CARRIED = f" {' '.join(name for kind in CARRIED for name in (LETTERS[kind], kind.__name__))} "


class Head:
    """What never changes about a run: index 0 of its log."""

    __slots__ = ("created_at", "digest", "envelope", "name", "parent")

    def __init__(self, text: str) -> None:
        created_at, self.digest, self.name, parent, self.envelope = text.split("\n", 4)
        self.created_at, self.parent = int(created_at), parent or None


def milliseconds(seconds: float) -> int:
    """Return a duration as the scripts take it."""
    return round(seconds * 1000)


def printable(text: str) -> str:
    """Return a text without lone surrogates, which have no UTF-8: messages of errors about file names may have them."""
    return text.encode("utf-8", "backslashreplace").decode()


def events_of(lines: Sequence[str], after: int) -> tuple[Recorded, ...]:
    """Return the events of consecutive lines of a log, the first of which has the seq ``after + 1``."""
    return tuple(decode(seq, line) for seq, line in enumerate(lines, after + 1))


def read_record(reply: Sequence[Any], steps: tuple[PendingStep, ...] = ()) -> RunRecord:
    """Return the record from ``[id, JSON of what changes, head, length]``."""
    workflow_id, text, head_text, length = reply
    state, head = json.loads(text), Head(head_text)
    return RunRecord(
        workflow_id=workflow_id,
        name=head.name,
        status=RunStatus(state["status"]),
        created_at=head.created_at,
        run=state.get("run", 1),
        closed_at=state.get("closed"),
        length=length,
        read=state.get("read", 0),
        token=state.get("token", 0),
        owner=state.get("owner"),
        waiting=state.get("waiting", ""),
        reason=state.get("reason", ""),
        failures=state.get("failures", 0),
        parent=head.parent,
        envelope=head.envelope,
        delivered="delivered" in state,
        steps=steps,
    )


def read_turn(reply: Sequence[Any], owner: str, known: int) -> Turn:
    """Return the turn from ``[record, lines, now]``."""
    run = read_record(reply[0])
    lease = Lease(workflow_id=run.workflow_id, token=run.token, owner=owner)
    return Turn(lease=lease, run=run, events=events_of(reply[1], known), now=reply[2])


def read_view(reply: Sequence[Any], known: int) -> View:
    """Return the view from ``[record, lines, now]``."""
    return View(run=read_record(reply[0]), events=events_of(reply[1], known), now=reply[2])


def read_message(reply: Sequence[Any]) -> RunMessage | StepMessage:
    """Return the message from ``['run', id, head, first, sends]``, ``['step', id, head, run, number, line, told]``."""
    head = Head(reply[2])
    if reply[0] == "run":
        return RunMessage(
            workflow_id=reply[1],
            name=head.name,
            envelope=head.envelope,
            created_at=head.created_at,
            first=bool(reply[3]),
            sends=reply[4],
        )
    _, workflow_id, _, run, number, line, (attempt, retries, override, cancel, sends) = reply
    return StepMessage(
        key=StepKey(workflow_id=workflow_id, run=run, number=int(number)),
        scheduled=scheduled_step(line),
        workflow=head.name,
        envelope=head.envelope,
        attempt=attempt,
        retries=retries,
        override=override,
        cancel=bool(cancel),
        sends=sends,
    )


def scheduled_step(line: str) -> StepScheduled:
    """Return the scheduled event of a step from its line in the log.

    Raises:
        ValueError: the line is something else; the log was changed by other hands.
    """
    event = decode(0, line).event
    if not isinstance(event, StepScheduled):
        raise ValueError(f"a step's entry points at {type(event).__name__}, not at StepScheduled: {line[:80]!r}")  # noqa: TRY004 - broken data, not a wrong argument
    return event


def open_steps(flat: Sequence[str], run: int) -> tuple[PendingStep, ...]:
    """Return the open steps of a run from ``[place, text, ...]``, in the order of their numbers."""
    table: dict[int, str] = {}
    for place, text in zip(flat[::2], flat[1::2], strict=True):
        before, dot, number = place.rpartition(".")
        if text.startswith("{") and (int(before) if dot else 1) == run:
            table[int(number)] = text
    return tuple(_open_step(number, json.loads(text)) for number, text in sorted(table.items()))


def _open_step(number: int, entry: dict[str, Any]) -> PendingStep:
    return PendingStep(
        number=number,
        state=StepState(entry["state"]),
        attempt=entry.get("attempt", 0),
        lost=entry.get("lost", 0),
        owner=entry.get("owner"),
        error=entry.get("error"),
        due_at=entry.get("due"),
        progress=entry.get("progress"),
    )


def input_kind(event: Event) -> str:
    """Return what ``append`` must know of an input: ``cancel``, the number of a timer, or nothing."""
    match event:
        case CancelRequested():
            return "cancel"
        case TimerFired(number=number):
            return str(number)
        case _:
            return ""


def commit_words(
    lease: Lease,
    outputs: Sequence[Event],
    *,
    read: int,
    waiting: str,
    hold: bool,
    begin: int | None = None,
    finishing: Finishing | None = None,
    mail: Sequence[Mail] = (),
) -> tuple[str | int, ...]:
    """Return what the script ``commit`` is told after the run's id."""
    return (
        lease.token,
        lease.owner,
        read,
        printable(waiting),
        int(hold),
        "" if begin is None else begin,
        len(mail),
        *chain.from_iterable(mail),
        *(_finishing_words(finishing) if finishing else ()),
        *_output_words(outputs),
    )


def _finishing_words(finishing: Finishing) -> tuple[str | int, ...]:
    """Return the five words for an outcome that ``commit`` records before the outputs."""
    return "finish", finishing.key.number, finishing.token, finishing.at, encode(finishing.outcome)


def _output_words(outputs: Sequence[Event]) -> Iterator[str | int]:
    """Return the five words for each output that ``commit`` is told: what follows, number, two more, text."""
    for event in outputs:
        yield from _follows(event)
        yield encode(event)


def _follows(event: Event) -> tuple[str, int, str | int, str]:
    number: int = getattr(event, "number", 0)
    match event:
        case StepScheduled(kind=kind, options=options):
            limits = Limits.of(options)
            word = "child" if kind == "workflow" else "step"
            return word, number, json.dumps(limits.to_json(), separators=(",", ":")) if limits else "", ""
        case TimerStarted(due_at=due_at):
            return "timer", number, due_at, ""
        case CommandCancelled(target=target):
            return "cancel", number, target, ""
        case RunCompleted() | RunFailed() | RunCancelled():
            return "close", number, _CLOSING[type(event)].value, ""
        case RunContinued():
            return "continue", number, _CARRIED, ""
        case _:
            return "", number, "", ""
