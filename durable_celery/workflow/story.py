"""Commands in words: what a command is, what two of them differ in, and the story of a mismatch, for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from durable_celery.codec import Codec, summary
from durable_celery.errors import DurableError
from durable_celery.events import (
    CommandCancelled,
    LocalStepCompleted,
    LocalStepFailed,
    Output,
    PatchMarked,
    RunCancelled,
    RunCompleted,
    RunContinued,
    RunFailed,
    StepScheduled,
    TimerStarted,
)

__all__ = ["ADVICE", "Line", "describe", "difference", "instant", "tell"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WORDS: dict[type[Output], str] = {
    StepScheduled: "step",
    TimerStarted: "timer",
    LocalStepCompleted: "local step",
    LocalStepFailed: "local step",
    PatchMarked: "patched",
    CommandCancelled: "cancel",
    RunCompleted: "completed",
    RunFailed: "failed",
    RunCancelled: "cancelled",
    RunContinued: "continue as new",
}
_WIDTH = 58
#: What a story ends with.
ADVICE = """\
Nothing was repeated or lost. The run is blocked, and goes on by itself once code that fits is deployed. Either restore
the order of commands that this history was written with, or keep both sides in the code: the new one under
`if ctx.patched("name-of-the-change"):`, the old one under `else:`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a story: what history holds under a number, and what the code did."""

    number: int
    history: Output | None
    code: Output | None


def instant(milliseconds: int) -> datetime:
    """Return an instant of the log as an aware datetime."""
    return EPOCH + timedelta(milliseconds=milliseconds)


def difference(command: Output, record: Output) -> str | None:
    """Say in what a command differs from its record; None if they agree.

    Due times and payloads of terminal events are not compared: they are consequences, not decisions.
    """
    ours, theirs = _identity(command), _identity(record)
    for what, mine in ours.items():
        if mine != theirs.get(what):
            return f"{what}: history has {theirs.get(what)!r}, the code {mine!r}"
    return None


def _identity(command: Output) -> dict[str, Any]:
    """Return the parts of a command that a replay must repeat, the most telling first."""
    parts: dict[str, Any] = {"kind of command": _WORDS[type(command)]}
    match command:
        case StepScheduled():
            parts |= {"task": command.task, "kind of step": command.kind, "digest of the arguments": command.digest}
        case LocalStepCompleted() | LocalStepFailed():
            parts |= {"function": command.name, "digest of the arguments": command.digest}
        case PatchMarked():
            parts["patch"] = command.patch_id
        case CommandCancelled():
            parts["cancelled command"] = command.target
        case _:
            pass
    return parts | {"event that caused it": command.cause}


def describe(command: Output | None, codec: Codec) -> str:
    """Return a command in a few words."""
    word = "" if command is None else _WORDS[type(command)]
    match command:
        case StepScheduled():
            child = "child " if command.kind == "workflow" else ""
            return f"{child}{word} {command.task}{_call(command.payload, codec)} #{_short(command.digest)}"
        case LocalStepCompleted() | LocalStepFailed():
            return f"{word} {command.name} #{_short(command.digest)}"
        case TimerStarted():
            return f"{word} until {instant(command.due_at):%Y-%m-%d %H:%M:%S}"
        case PatchMarked():
            return f"{word}({command.patch_id!r})"
        case CommandCancelled():
            return f"{word} command {command.target}"
        case _:
            return word


def _short(digest: str) -> str:
    """Return the head of a digest, without the id of its key."""
    return digest.rpartition(":")[2][:8]


def _call(payload: str | None, codec: Codec) -> str:
    """Return recorded arguments as they would be written in a call, cut short; none of those that went through a codec.

    A story stands in logs.
    """
    if not codec.is_plain:
        return "(...)"
    try:
        args, kwargs = codec.decode(payload)
    except (DurableError, TypeError, ValueError):
        # Told in the middle of a failure: arguments that cannot be read must not hide it.
        return "(?)"
    words = [repr(value) for value in args] + [f"{key}={value!r}" for key, value in kwargs.items()]
    return f"({summary(', '.join(words), 32)})"


def tell(problem: str, lines: Sequence[Line], bad: int, codec: Codec) -> str:
    """Return the story of a mismatch: what, both sides next to each other, and what to do.

    The line with number ``bad`` is marked; what stands after it was not reached by the code.
    """
    rows = [f"  {'no.':>5}  {'history':<{_WIDTH}}  code"]
    for line in lines:
        history = describe(line.history, codec) or "(nothing)"
        code = describe(line.code, codec) or ("(nothing)" if line.number == bad else "")
        mark = ">" if line.number == bad else " "
        rows.append(f"{mark} {line.number:>5}  {history:<{_WIDTH}}  {code}".rstrip())
    return "\n".join([problem, "", *rows, "", ADVICE])
