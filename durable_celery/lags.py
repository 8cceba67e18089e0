"""How long messages wait in their queues, as a worker sees when they arrive.

A message that was published and has not begun is lost, or waits behind others; nobody can tell which. But a queue is
first in, first out: where those that arrive now have waited as long, it most likely waits as well, and to send it again
would make the queue longer, for nothing. So the agenda's repeats are held back while that is so.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from durable_celery.store.protocol import Timing

__all__ = ["Lags"]

#: How much longer than those that arrive a message may have waited and still be taken for one that waits.
_PATIENCE = 1.5
#: Seconds for which an arrival says something of its queue.
_FRESH = 10.0


class Lags:
    """What the arrivals in one worker tell of its queues. Safe for threads."""

    def __init__(self, timing: Timing) -> None:
        """Know the waits of the agenda."""
        self._timing = timing
        self._seen: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def note(self, queue: str, lag: float) -> None:
        """Note that a message came that had waited for so many seconds, by its publisher's clock."""
        with self._lock:
            self._seen[queue] = lag, time.monotonic()

    def explains(self, queue: str, sends: int) -> bool:
        """Tell whether a message may well wait still that was published so often, at the waits of the agenda.

        After ``resend_limit`` it is sent again in any case: clocks differ, and some queues have priorities.
        """
        with self._lock:
            lag, seen_at = self._seen.get(queue, (0.0, 0.0))
        if time.monotonic() - seen_at > _FRESH:
            return False
        timing = self._timing
        waited = sum(min(timing.resend_after * 2.0**number, timing.resend_limit) for number in range(min(sends, 30)))
        return waited < min(lag * _PATIENCE, timing.resend_limit)
