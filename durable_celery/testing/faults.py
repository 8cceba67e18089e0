"""Faults at a counted place: the n-th call of a worker to the store, or the n-th message."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from durable_celery.dispatch import HEADER
from durable_celery.errors import StoreUnavailableError
from durable_celery.store.protocol import StepKey
from durable_celery.testing.watch import Crash, Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from durable_celery.testing.broker import Message
    from durable_celery.testing.system import System
    from durable_celery.testing.watch import Call

__all__ = ["CLEAN", "COLD", "Carriage", "Case", "Hand", "cases_of"]


class Carriage(StrEnum):
    """What can go wrong with a message."""

    LOST = "lost"
    TWICE = "twice"
    LATE = "late"


#: How late a late message comes, in seconds of the test's clock: long after it was sent again.
_LATE = 30.0
#: What a worker does to the store, in words; other verbs only look.
_VERBS = {
    "start": "starts a child run",
    "append": "adds an input to a run",
    "take": "takes a turn of the run",
    "commit": "records what the workflow decided",
    "release": "gives the run back",
    "deliver": "notes that the end was delivered",
    "claim": "claims an attempt of a step",
    "finish": "records the outcome of a step",
    "postpone": "puts a step off until its retry",
    "settle": "notes that a child run was told",
}
_STORE = {
    Kind.CRASH_BEFORE: "the worker dies before it {}",
    Kind.CRASH_AFTER: "the worker dies right after it {}",
    Kind.LOST_REPLY: "the store does it, and reports a failure, when the worker {}",
    Kind.UNREACHED: "the store does not answer when the worker {}",
}
_MESSAGES = {
    Carriage.LOST: "the message {} is lost",
    Carriage.TWICE: "the message {} comes twice",
    Carriage.LATE: f"the message {{}} comes {_LATE:g} seconds late",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One fault: what goes wrong, and at the how manieth place of its kind, from 1."""

    kind: Kind | Carriage | None = None
    number: int = 0

    def tell(self, clean: Hand) -> str:
        """Say it in words, with the place as the run without faults came by it."""
        if isinstance(self.kind, Kind):
            return _STORE[self.kind].format(clean.calls[self.number - 1])
        if self.kind is not None:
            return _MESSAGES[self.kind].format(clean.messages[self.number - 1])
        return "none"


#: A run without a fault, and one that is replayed from the start at each turn.
CLEAN, COLD = Case(), Case(number=-1)


def cases_of(clean: Hand) -> list[Case]:
    """Return every fault at every place that a run without faults came by."""
    calls = [Case(kind, number) for number in range(1, len(clean.calls) + 1) for kind in Kind]
    return calls + [Case(kind, number) for number in range(1, len(clean.messages) + 1) for kind in Carriage]


class Hand:
    """Lets one thing go wrong, and notes all places where something could have. A hook of the store's watch."""

    system: System

    def __init__(self, case: Case) -> None:
        """Wait for the place of a case."""
        self.case = case
        #: Whether it has gone wrong.
        self.has_struck = False
        #: What the worker did at each call to the store, and what each message was, in words.
        self.calls: list[str] = []
        self.messages: list[str] = []

    def before(self, call: Call) -> None:
        """See :meth:`~durable_celery.testing.watch.Hook.before`."""
        if call.verb in _VERBS:
            self.calls.append(self._words(call))
            self._strike(call, {Kind.UNREACHED, Kind.CRASH_BEFORE})

    def after(self, call: Call) -> None:
        """See :meth:`~durable_celery.testing.watch.Hook.after`."""
        if call.verb in _VERBS:
            self._strike(call, {Kind.LOST_REPLY, Kind.CRASH_AFTER})

    def carry(self, message: Message) -> Sequence[tuple[Message, float]]:
        """Return what becomes of a message; one that is not of this library's is nobody's to repeat, and arrives."""
        header = message.headers.get(HEADER)
        if not header:
            return ((message, 0.0),)
        step = header.get("step") if isinstance(header, dict) else None
        self.messages.append(f"of step {step} ({message.task})" if step else f"of the run ({message.task})")
        if len(self.messages) != self.case.number or not isinstance(self.case.kind, Carriage):
            return ((message, 0.0),)
        self.has_struck = True
        match self.case.kind:
            case Carriage.LOST:
                return ()
            case Carriage.TWICE:
                return ((message, 0.0), (message, 0.0))
            case Carriage.LATE:
                return ((message, _LATE),)

    def _strike(self, call: Call, kinds: set[Kind]) -> None:
        if len(self.calls) != self.case.number or self.case.kind not in kinds:
            return
        self.has_struck = True
        if self.case.kind in {Kind.UNREACHED, Kind.LOST_REPLY}:
            raise StoreUnavailableError(f"the test lets the store fail when the worker {self.calls[-1]}")
        call.caller.is_alive = False
        raise Crash

    def _words(self, call: Call) -> str:
        """Say what the worker is about to do, with the task where it is about a step."""
        words, key, more = _VERBS[call.verb], call.args[0], ""
        if (finishing := call.options.get("finishing")) is not None:
            words, key, more = _VERBS["finish"], finishing.key, ", and what the workflow decided then"
        if not isinstance(key, StepKey):
            return words
        log = self.system.calls.log
        name = next((one.task for one in reversed(log) if one.key == str(key)), "")
        return f"{words}: number {key.number}" + (f", {name}" if name else "") + more
