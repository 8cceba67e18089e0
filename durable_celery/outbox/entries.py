"""What is in an outbox, and the two ports to it: for who adds, and for who relays."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from durable_celery.events import SignalReceived
from durable_celery.store.protocol import NewRun

__all__ = ["Entry", "Later", "Outbox", "Parked", "Shelf", "Verdict", "signal_entry", "start_entry"]

START, SIGNAL = "start", "signal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A start or a signal that waits to be relayed."""

    kind: str
    workflow_id: str
    #: JSON text: what there is to be started, or signalled. Payloads in it are sealed.
    body: str
    #: When it was added (ms since 1970, on the clock of who added it).
    at: int = field(default_factory=lambda: round(time.time() * 1000))
    #: How often it was tried in vain.
    tries: int = 0

    def new_run(self) -> NewRun:
        """Return what a start starts; its digest is still to be made."""
        form = json.loads(self.body)
        now = time.time()
        start_at, expires_at = form.pop("start_at"), form.pop("expires_at")
        return NewRun(
            workflow_id=self.workflow_id,
            digest="",
            delay=max(0.0, start_at - now) if start_at else 0.0,
            expires=None if expires_at is None else max(0.0, expires_at - now),
            **form,
        )

    def signal(self) -> tuple[SignalReceived, str]:
        """Return the input that a signal is, and its key."""
        form = json.loads(self.body)
        return SignalReceived(name=form["name"], payload=form["payload"]), form["key"]


def start_entry(new: NewRun) -> Entry:
    """Return the entry of a start. Delays count from now."""
    now = time.time()
    form = {
        "name": new.name,
        "version": new.version,
        "payload": new.payload,
        "envelope": new.envelope,
        "start_at": now + new.delay if new.delay else None,
        "expires_at": None if new.expires is None else now + new.expires,
    }
    return Entry(kind=START, workflow_id=new.workflow_id, body=json.dumps(form))


def signal_entry(workflow_id: str, event: SignalReceived, key: str) -> Entry:
    """Return the entry of a signal."""
    form = {"name": event.name, "payload": event.payload, "key": key}
    return Entry(kind=SIGNAL, workflow_id=workflow_id, body=json.dumps(form))


class Later(NamedTuple):
    """An entry is to be tried again."""

    seconds: float
    why: str


class Parked(NamedTuple):
    """An entry cannot be relayed: it stays where people can see it."""

    why: str


#: What became of an entry; None: it was relayed, and goes.
Verdict = Later | Parked | None


class Outbox(Protocol):
    """An open transaction in a user's database."""

    def add(self, entry: Entry) -> None:
        """Add a row."""
        ...


class Shelf(Protocol):
    """The outbox of a database, for who relays."""

    def check(self) -> None:
        """Look whether the table is there.

        Raises:
            ConfigurationError: it is not.
            StoreUnavailableError: the database does not answer.
        """
        ...

    def hand_out(self, take: Callable[[Entry], Verdict], limit: int) -> int:
        """Give entries that are due, oldest first, to ``take``, and do what it says; return how many there were.

        It is one transaction; entries that another relay has in hand are passed over, where the database can do that.

        Raises:
            StoreUnavailableError: the database does not answer; what was taken is handed out again.
        """
        ...
