"""The history of a run: frozen records of past facts, and their versioned JSON form.

Two kinds of events stand in one append-only list. *Inputs* come from outside the code, and anyone may append them.
*Outputs* are the record of commands that the code issued; only the turn that holds the run's lease writes them. Each
output names its command ``number`` and its ``cause``: the seq of the input that the code was applying when it issued
the command. So a replay can tell to the command where code and history part, whatever the batches were.

A stored event is one line ``<at> <header>`` with an optional second line, the payload: ``at`` is the store's clock in
milliseconds since 1970, the header is compact JSON, the payload is text from the codec and is not looked into here. In
the header an event is named by its letter in :data:`LETTERS`.
Histories of every release are kept under ``tests/histories`` and must stay readable: change :data:`FORMAT` and
translate, never reinterpret.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from durable_celery.records import record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "CARRIED",
    "FORMAT",
    "LETTERS",
    "CancelRequested",
    "CommandCancelled",
    "Event",
    "LocalStepCompleted",
    "LocalStepFailed",
    "Output",
    "PatchMarked",
    "Recorded",
    "RunCancelled",
    "RunCompleted",
    "RunContinued",
    "RunFailed",
    "RunStarted",
    "SignalReceived",
    "StepCompleted",
    "StepFailed",
    "StepScheduled",
    "TerminalEvent",
    "TimerFired",
    "TimerStarted",
    "decode",
    "encode",
    "history_from_json",
    "history_to_json",
]

#: Version of the JSON form; recorded in each run's first event, where it is not the first one.
FORMAT = 1
_FIRST_FORMAT = 1


@record(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events."""

    #: Encoded value that belongs to the event (arguments, result, failure), or None.
    payload: str | None = None


@record(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """Input: somebody asked for the run, or the run before it went on as this one. Always the first event.

    Payload: ``[args, kwargs]``.
    """

    #: Name of the durable task.
    name: str
    #: Version of the form of this history.
    format: int = FORMAT
    #: When the code may begin (ms since 1970, store clock), or None for at once. TimerFired(0) opens this gate.
    start_at: int | None = None
    #: When the start loses its meaning (ms since 1970), or None. Such a run is gated too.
    expires_at: int | None = None
    #: Step key of the parent's step that waits for this run, or None.
    parent: str | None = None
    #: Version of the code that the run stays on.
    version: int = 1


@record(frozen=True, slots=True, kw_only=True)
class StepCompleted(Event):
    """Input: a step returned. Payload: its result."""

    number: int
    #: Which attempt it was; 0 where somebody outside told the outcome.
    attempt: int = 1


@record(frozen=True, slots=True, kw_only=True)
class StepFailed(Event):
    """Input: a step failed for good. Payload: the failure (see ``codec.Failure``)."""

    number: int
    #: As for :class:`StepCompleted`.
    attempt: int = 1


@record(frozen=True, slots=True, kw_only=True)
class TimerFired(Event):
    """Input: a timer's time came. Number 0 is the gate of a delayed start."""

    number: int


@record(frozen=True, slots=True, kw_only=True)
class SignalReceived(Event):
    """Input: somebody sent a signal. Payload: its value."""

    name: str


@record(frozen=True, slots=True, kw_only=True)
class CancelRequested(Event):
    """Input: somebody asked the run to stop."""

    reason: str = ""


@record(frozen=True, slots=True, kw_only=True)
class Output(Event):
    """Base of the records of commands."""

    #: The command's number in its run, from 1.
    number: int
    #: Seq of the input that was being applied when the code issued the command.
    cause: int


@record(frozen=True, slots=True, kw_only=True)
class StepScheduled(Output):
    """Output: a Celery task (or a durable task, as a child run) is to be executed. Payload: ``[args, kwargs]``."""

    task: str
    #: Digest of the arguments, see ``codec.digest``.
    digest: str
    kind: Literal["task", "workflow"] = "task"
    #: Options of the call: ``queue``, ``priority``, ``retry`` (RetryPolicy), ``at_most_once``, ``label``; in seconds
    #: ``timeout``, ``start_timeout``, ``attempt_timeout``, ``heartbeat_timeout``; of a child run ``version``,
    #: ``parent_close`` and ``workflow_id``; ``message`` (more options of ``apply_async``).
    options: Mapping[str, Any] | None = None


@record(frozen=True, slots=True, kw_only=True)
class TimerStarted(Output):
    """Output: the run wants to be woken at ``due_at`` (ms since 1970)."""

    due_at: int


@record(frozen=True, slots=True, kw_only=True)
class LocalStepCompleted(Output):
    """Output: a local step returned. Payload: its result."""

    name: str
    digest: str


@record(frozen=True, slots=True, kw_only=True)
class LocalStepFailed(Output):
    """Output: a local step raised. Payload: the failure."""

    name: str
    digest: str


@record(frozen=True, slots=True, kw_only=True)
class PatchMarked(Output):
    """Output: the code took the new side of ``patched(patch_id)``."""

    patch_id: str
    #: Whether ``deprecate_patch`` left it: code that no longer has the call passes over it.
    is_deprecated: bool = False


@record(frozen=True, slots=True, kw_only=True)
class CommandCancelled(Output):
    """Output: the code no longer wants the step or timer with number ``target``."""

    target: int


@record(frozen=True, slots=True, kw_only=True)
class RunCompleted(Output):
    """Output, terminal: the code returned. Payload: the result."""


@record(frozen=True, slots=True, kw_only=True)
class RunFailed(Output):
    """Output, terminal: the code raised. Payload: the failure."""


@record(frozen=True, slots=True, kw_only=True)
class RunCancelled(Output):
    """Output, terminal: the code ended by its cancellation. Payload: the failure that says so."""


@record(frozen=True, slots=True, kw_only=True)
class RunContinued(Output):
    """Output: the run ends, and the next run of the same workflow begins. Payload: the next run's ``[args, kwargs]``.

    The last event of its history. It ends no workflow, so it is no terminal event.
    """

    #: Version of the form of the next run's history.
    format: int = FORMAT
    #: Version of the code, for the next run as for this one.
    version: int = 1
    #: Seqs of the inputs that were applied, and that no code has taken: the next run gets them (see ``CARRIED``).
    kept: Sequence[int] = ()

    def __post_init__(self) -> None:
        """Take a list as well, as JSON has it."""
        object.__setattr__(self, "kept", tuple(self.kept))


#: The events that end a workflow; the last one of a closed history.
TerminalEvent = RunCompleted | RunFailed | RunCancelled

#: Inputs that are meant for the workflow, and not for one of its runs. When a run continues as the next one, those that
#: its code has not taken go along, in their order; all other inputs were answers to commands of the old run.
CARRIED: tuple[type[Event], ...] = (SignalReceived, CancelRequested)


@record(frozen=True, slots=True, kw_only=True)
class Recorded:
    """An event in its place."""

    #: Position in the history, from 1, without gaps.
    seq: int
    #: The store's clock when it was appended, milliseconds since 1970.
    at: int
    event: Event


class _Form:
    """How one class of events is written: which fields, under which keys, with which defaults."""

    #: Fields that occur in nearly every event have one-letter keys, because a history's size is what users pay for.
    KEYS: ClassVar[dict[str, str]] = {"number": "n", "cause": "c", "digest": "d", "attempt": "a"}

    def __init__(self, kind: type[Event]) -> None:
        self.kind = kind
        #: What a field is that is not written, where the class itself has something newer.
        self.unwritten: dict[str, Any] = {f.name: _FIRST_FORMAT for f in fields(kind) if f.name == "format"}
        self.fields = [
            (f.name, self.KEYS.get(f.name, f.name), self.unwritten.get(f.name, _default_of(f)))
            for f in fields(kind)
            if f.name != "payload"
        ]

    def header(self, event: Event) -> dict[str, Any]:
        form: dict[str, Any] = {"e": LETTERS[self.kind]}
        for name, key, default in self.fields:
            value = getattr(event, name)
            if value != default:
                form[key] = value
        return form

    def build(self, header: Mapping[str, Any], payload: str | None) -> Event:
        given = {name: header[key] for name, key, _ in self.fields if key in header}
        return self.make({**given, "payload": payload})

    def make(self, given: Mapping[str, Any]) -> Event:
        """Make an event of the fields that are written."""
        return self.kind(**{**self.unwritten, **given})


def _default_of(one: Field[Any]) -> Any:
    return None if one.default is MISSING else one.default


#: How each class of events is named in a stored header: a history's size is what users pay for.
LETTERS: dict[type[Event], str] = {
    RunStarted: "R",
    StepCompleted: "C",
    StepFailed: "F",
    TimerFired: "Z",
    SignalReceived: "I",
    CancelRequested: "Q",
    StepScheduled: "S",
    TimerStarted: "T",
    LocalStepCompleted: "L",
    LocalStepFailed: "M",
    PatchMarked: "P",
    CommandCancelled: "X",
    RunCompleted: "D",
    RunFailed: "E",
    RunCancelled: "A",
    RunContinued: "N",
}
_OF_KIND: dict[type[Event], _Form] = {kind: _Form(kind) for kind in LETTERS}
#: By letter, and by the name that exported histories have, and stored ones had at first.
_FORMS: dict[str, _Form] = {
    name: _OF_KIND[kind] for kind, letter in LETTERS.items() for name in (letter, kind.__name__)
}


def encode(event: Event) -> str:
    """Return the stored text of an event, without its time."""
    header = json.dumps(_OF_KIND[type(event)].header(event), separators=(",", ":"))
    return header if event.payload is None else f"{header}\n{event.payload}"


def decode(seq: int, line: str) -> Recorded:
    """Rebuild an event from its stored line ``<at> <text>``.

    Raises:
        ValueError: the line is no event of a known form, with its position in the message.
    """
    try:
        at, text = line.split(" ", 1)
        header_text, separator, payload = text.partition("\n")
        header = json.loads(header_text)
        event = _FORMS[header["e"]].build(header, payload if separator else None)
        return Recorded(seq=seq, at=int(at), event=event)
    except (KeyError, TypeError, ValueError) as error:
        # Without the payload, which is nobody's business who reads logs.
        head = line.partition("\n")[0][:80]
        msg = f"event {seq} cannot be read: {head!r}"
        raise ValueError(msg) from error


def history_to_json(workflow_id: str, history: Iterable[Recorded], run: int = 1) -> dict[str, Any]:
    """Return the exported form of a history: what is kept in files and printed by the command line.

    ``run`` says which execution of the workflow id it is of; it is left out where that is the first.
    """
    events = []
    for item in history:
        form = _OF_KIND[type(item.event)]
        header = form.unwritten | form.header(item.event)
        del header["e"]
        names = {key: name for name, key in _Form.KEYS.items()}
        entry = {"seq": item.seq, "at": item.at, "event": type(item.event).__name__}
        entry |= {names.get(key, key): value for key, value in header.items()}
        events.append(entry if item.event.payload is None else {**entry, "payload": item.event.payload})
    which = {"run": run} if run > 1 else {}
    return {"format": FORMAT, "workflow_id": workflow_id, **which, "events": events}


def history_from_json(form: Mapping[str, Any]) -> list[Recorded]:
    """Rebuild a history from :func:`history_to_json`.

    Raises:
        ValueError: the form is of a version that this release does not know.
    """
    if form.get("format") != FORMAT:
        msg = f"history has form {form.get('format')!r}; this release reads form {FORMAT}"
        raise ValueError(msg)
    history = []
    for entry in form["events"]:
        given = {key: value for key, value in entry.items() if key not in {"seq", "at", "event"}}
        event = _FORMS[entry["event"]].make(given)
        history.append(Recorded(seq=entry["seq"], at=entry["at"], event=event))
    return history
