"""What to do while the store does not answer: wait and repeat, then go on in the background.

Every verb of a store may be repeated, so repeating is safe. A process that gives up may still hold a lease, because
only the reply was lost; its owner lease is renewed by the worker's main process and would keep that run for ever. So
what may be held is given back as soon as the store answers again.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, TypeVar

from durable_celery.errors import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Patience"]

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


class Patience:
    """Repeats verbs for up to ``seconds``; what is left then is done in a daemon thread when the store answers."""

    def __init__(
        self,
        seconds: float = 60.0,
        pause: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        background: bool = True,
    ) -> None:
        """Set how long to insist.

        Args:
            seconds: how long a verb is repeated before it gives up.
            pause: waits a number of seconds.
            monotonic: a clock, in seconds, that tells how long something took.
            background: whether a thread works off what waits; else the owner calls :meth:`work_off`, as a simulation
                does.
        """
        self.seconds, self.pause, self.monotonic, self.background = seconds, pause, monotonic, background
        self._at_work = False
        self._begin()

    def persist(self, verb: Callable[[], _Answer]) -> _Answer:
        """Return the verb's answer, asking again while the store is away.

        Raises:
            StoreUnavailableError: it stayed away for longer than the patience.
        """
        waited, wait = 0.0, 0.1
        while True:
            try:
                return verb()
            except StoreUnavailableError:
                if waited >= self.seconds:
                    raise
            self.pause(wait)
            waited, wait = waited + wait, min(wait * 2, 5.0)

    def later(self, verb: Callable[[], object], *, now: bool = False) -> None:
        """Do a verb in the background once the store answers; with ``now`` it is tried here first."""
        if now:
            try:
                verb()
            except StoreUnavailableError:
                _log.warning("the store is away; what is held of it is given back when it answers")
            else:
                return
        if self._pid != os.getpid():
            # After a fork: what waits is the parent's affair, and its lock may be taken for ever.
            self._begin()
        with self._lock:
            self._waiting.append(verb)
            if self.background and not self._at_work:
                self._at_work = True
                threading.Thread(target=self._work, name="durable-give-back", daemon=True).start()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits for the store."""
        return not self._waiting

    def work_off(self) -> bool:
        """Do what waits, in order, until nothing is left (True) or the store is away (False)."""
        while self._waiting:
            try:
                self._waiting[0]()
            except StoreUnavailableError:
                return False
            except Exception:  # noqa: BLE001 - see below
                # The loop must not die: a verb that can never succeed would keep all others waiting.
                _log.exception("a verb that waited for the store failed, and is given up")
            self._waiting.popleft()
        return True

    def _begin(self) -> None:
        self._pid, self._lock, self._at_work = os.getpid(), threading.Lock(), False
        self._waiting: deque[Callable[[], object]] = deque()

    def _work(self) -> None:
        while True:
            if not self.work_off():
                self.pause(1.0)
            with self._lock:
                if not self._waiting:
                    self._at_work = False
                    return
