"""Notes: what workflow code records of its own accord, for readers outside of the run.

A published value, an item of a stream and the outcome of an update are facts that the code has worked out by itself.
Each is recorded as a local step whose function is the code, under a name that no user's local step may have. So a
replay holds it against the code, a crash neither loses nor repeats it, and readers find it by its name.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from durable_celery.codec import RESERVED, check_name
from durable_celery.errors import InvalidRequestError
from durable_celery.events import LocalStepCompleted, LocalStepFailed

if TYPE_CHECKING:
    from durable_celery.events import Event
    from durable_celery.workflow.machine import Machine

__all__ = ["Note", "Stream", "check_local_name", "publish", "read_note"]


class Note(StrEnum):
    """What a note is about."""

    #: The newest value under a key.
    PUBLISHED = "publish"
    #: The next item of a stream.
    STREAM = "stream"
    #: The outcome of an update, by the update's key.
    UPDATED = "update"
    #: The refusal of an update, before anything was done, by the update's key.
    REFUSED = "refused"

    def name_of(self, key: str) -> str:
        """Return the recorded name of a note under a key."""
        return f"{RESERVED}{self}:{key}"


_NOTES = {str(note): note for note in Note}


def read_note(event: Event) -> tuple[Note, str] | None:
    """Return which note an event is, and its key; None if it is none."""
    if not isinstance(event, LocalStepCompleted | LocalStepFailed) or not event.name.startswith(RESERVED):
        return None
    kind, _, key = event.name.removeprefix(RESERVED).partition(":")
    return (_NOTES[kind], key) if kind in _NOTES else None


def check_local_name(name: str) -> str:
    """Return the name of a user's local step.

    Raises:
        InvalidRequestError: it is one of those that are kept for notes.
    """
    if name.startswith(RESERVED):
        raise InvalidRequestError(f"a local step cannot be called {name[:80]!r}: names with {RESERVED!r} are reserved")
    return name


def publish(machine: Machine, key: str, value: object) -> None:
    """Record the newest value under a key (workflow code)."""
    machine.check()
    check_name(key, "the key of a published value")
    _record(machine, Note.PUBLISHED.name_of(key), machine.codec.dumps(value, f"the value published as {key!r}"))


def _record(machine: Machine, name: str, text: str) -> None:
    machine.record(LocalStepCompleted, name, text, text)


class Stream:
    """An ordered list of values that the workflow adds to, and that clients follow while it grows."""

    def __init__(self, machine: Machine, name: str) -> None:
        self._machine, self.name = machine, check_name(name, "the name of a stream")

    def append(self, value: Any) -> None:
        """Add a value (workflow code). It is there for readers when the turn has been recorded.

        Raises:
            PayloadError: the value cannot be recorded.
        """
        self._machine.check()
        text = self._machine.codec.dumps(value, f"an item of stream {self.name!r}")
        _record(self._machine, Note.STREAM.name_of(self.name), text)
