"""Hearing of the ends of runs, so that who waits for one need not ask again and again (PostgreSQL's NOTIFY).

The write that closes a run notifies the channel ``<namespace>_ends``, with the workflow id, in the same statement. Each
process in which somebody waits has one connection that listens, for as long as somebody does and a little longer.

A notification is only a hint: whoever waits also looks by itself, seldom while the connection hears, and as often as
with any other store while it does not. Behind a pooler that gives each transaction another connection ``LISTEN`` seems
to work, and nothing comes: so a connection is believed only when it has heard what was told it on another one.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
import weakref
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sqlalchemy import Engine

__all__ = ["Ear", "Ears", "channel_of"]

_log = logging.getLogger(__name__)
#: Seconds that the connection is kept when nobody waits any more, and until it is tried again when it was lost.
_IDLE, _RETRY = 10.0, 1.0
#: Seconds that the thread listens before it looks whether anybody still waits.
_TICK = 1.0
#: Seconds in which a new connection must hear, and until the next try with one that did not.
_DEAF_AFTER, _DEAF_FOR = 2.0, 60.0


def channel_of(namespace: str) -> str:
    """Return the channel on which the ends of a namespace's runs are told."""
    return f"{namespace}_ends"


class Ear:
    """Somebody who waits for the end of a run."""

    def __init__(self, ears: Ears) -> None:
        self._ears, self.event = ears, threading.Event()

    @property
    def listens(self) -> bool:
        """Whether an end would be heard of."""
        return self._ears.is_listening

    def rest(self, seconds: float) -> None:
        """Wait until something is heard, for so many seconds at most."""
        self.event.wait(seconds)
        self.event.clear()


class Ears:
    """All who wait in this process, and the thread that listens for them."""

    def __init__(self, engine: Callable[[], Engine], namespace: str) -> None:
        self._engine, self._channel = engine, channel_of(namespace)
        self.reset()
        _ALL.add(self)

    def reset(self) -> None:
        """Begin anew: a child of a fork has neither the thread nor the connection."""
        self._lock = threading.Lock()
        self._waiting: defaultdict[str, set[Ear]] = defaultdict(set)
        self._thread: threading.Thread | None = None
        #: Whether an end would be heard of.
        self.is_listening = False

    @contextmanager
    def ear(self, workflow_id: str) -> Generator[Ear]:
        """Give an ear for the end of a run."""
        ear = Ear(self)
        with self._lock:
            self._waiting[workflow_id].add(ear)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="durable-hearing", daemon=True)
                self._thread.start()
        try:
            yield ear
        finally:
            with self._lock:
                self._waiting[workflow_id].discard(ear)
                if not self._waiting[workflow_id]:
                    del self._waiting[workflow_id]

    def _run(self) -> None:
        """Listen, again after each failure, until nobody has waited for some time."""
        while True:
            pause = 0.0
            try:
                if not self._listen():
                    pause = _DEAF_FOR
            except Exception as error:  # noqa: BLE001 - whatever the driver raises: those who wait look by themselves
                _log.info("nobody hears of ends for now, they are asked for: %s", error)
                pause = _RETRY
            finally:
                self.is_listening = False
            until = time.monotonic() + pause
            while True:
                with self._lock:
                    if not self._waiting:
                        self._thread = None
                        return
                if (left := until - time.monotonic()) <= 0:
                    break
                time.sleep(min(left, _TICK))

    def _listen(self) -> bool:
        """Listen until nobody has waited for some time; False if nothing can be heard."""
        with self._engine().connect() as pooled:
            # Not the pool's any more: it is closed at the end, with all that it listens to.
            pooled.detach()
            driver: Any = pooled.connection.dbapi_connection
            driver.autocommit = True
            driver.execute(f'LISTEN "{self._channel}"')
            if not self._hears(driver):
                _log.info("LISTEN has no effect here (a pooler?): ends of runs are asked for")
                return False
            self.is_listening = True
            # What has ended before is not told.
            self._tell(None)
            idle_since = time.monotonic()
            while time.monotonic() - idle_since < _IDLE:
                for note in driver.notifies(timeout=_TICK):
                    self._tell(note.payload)
                if self._waiting:
                    idle_since = time.monotonic()
        return True

    def _hears(self, driver: Any) -> bool:
        """Tell whether the connection hears what another one tells."""
        probe = f"probe {uuid.uuid4()}"
        with self._engine().begin() as connection:
            connection.execute(select(func.pg_notify(self._channel, probe)))
        until = time.monotonic() + _DEAF_AFTER
        while (left := until - time.monotonic()) > 0:
            if any(note.payload == probe for note in driver.notifies(timeout=left, stop_after=1)):
                return True
        return False

    def _tell(self, workflow_id: str | None) -> None:
        """Wake who waits for a run, or all."""
        with self._lock:
            sets = list(self._waiting.values()) if workflow_id is None else [self._waiting.get(workflow_id, set())]
            ears = [ear for each in sets for ear in each]
        for ear in ears:
            ear.event.set()


#: Those of this process.
_ALL: weakref.WeakSet[Ears] = weakref.WeakSet()


def _reset_all() -> None:
    for ears in list(_ALL):
        ears.reset()


os.register_at_fork(after_in_child=_reset_all)
