"""Hearing of the ends of runs, so that who waits for one need not ask again and again.

The write that closes a run tells its workflow id on a channel of the namespace, in the same script or statement: Redis'
PUBLISH, PostgreSQL's NOTIFY. Each process in which somebody waits has one connection that listens, for as long as
somebody does and a little longer.

What is told is only a hint: whoever waits also looks by itself, seldom while the connection hears, and as often as
with any other store while it does not.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from contextlib import AbstractContextManager

    #: Returns the ids that are told within so many seconds; None for any that may have been.
    Told = Callable[[float], Iterable[str | None]]

__all__ = ["Ear", "Ears"]

_log = logging.getLogger(__name__)
#: Seconds that the connection is kept when nobody waits any more, and until it is tried again when it was lost.
_IDLE, _RETRY = 10.0, 1.0
#: Seconds that the thread listens before it looks whether anybody still waits.
_TICK = 1.0
#: Seconds until the next try where nothing can be heard.
_DEAF_FOR = 60.0


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
    """All who wait in this process, and the thread that listens for them.

    Args:
        listen: opens a connection that listens; it gives None where nothing can be heard.
    """

    def __init__(self, listen: Callable[[], AbstractContextManager[Told | None]]) -> None:
        self._open = listen
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
        with self._open() as told:
            if told is None:
                return False
            self.is_listening = True
            # What has ended before is not told.
            self._tell(None)
            idle_since = time.monotonic()
            while time.monotonic() - idle_since < _IDLE:
                for workflow_id in told(_TICK):
                    self._tell(workflow_id)
                if self._waiting:
                    idle_since = time.monotonic()
        return True

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
