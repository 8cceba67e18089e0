"""Suspended executions, kept for the next turn in this process.

The log is append-only, so an execution at seq n is a valid prefix for ever: it is fed only what came after n.
Greenlets belong to the operating-system thread that made them, so each thread has a cache of its own
(``get_native_id`` is the real thread under gevent too). An execution that is in use is not in the cache, and one that
may have gone wrong never returns to it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import get_native_id
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from durable_celery.events import Recorded
    from durable_celery.store.protocol import RunRecord
    from durable_celery.workflow import Execution

__all__ = ["ExecutionCache", "Parked", "Rest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """Where a run stood when its last turn in this process was over, or a later one of which this process was told."""

    run: RunRecord
    #: That turn's.
    token: int
    #: The store's clock then, in ms since 1970, and this process's monotonic one, in seconds.
    now: int
    since: float
    #: How long the code of the last turn here took, in seconds, local steps included.
    took: float


@dataclass(frozen=True, slots=True)
class Parked:
    """A suspended execution, and where its run stood then, which others may have moved since."""

    execution: Execution
    rest: Rest
    #: The events that lie between the two, where it is known that others have moved it.
    missed: tuple[Recorded, ...] = ()


class ExecutionCache:
    """The ``size`` most recently used executions of each thread."""

    def __init__(self, size: int) -> None:
        """Make an empty cache; a size of 0 keeps nothing, so that each turn replays from the start."""
        self.size = size
        self._threads: dict[int, OrderedDict[str, Parked]] = {}

    def checkout(self, workflow_id: str) -> Parked | None:
        """Take an execution out of this thread's cache."""
        return self._mine().pop(workflow_id, None)

    def look(self, workflow_id: str) -> Parked | None:
        """Return an execution that stays in this thread's cache."""
        return self._mine().get(workflow_id)

    def put(self, workflow_id: str, parked: Parked) -> None:
        """Keep an execution that stands exactly where the log stands; the least recently used one may be evicted."""
        mine = self._mine()
        if other := mine.pop(workflow_id, None):
            # Two turns of one run met in this thread (greenlets of a pool share it).
            other.execution.evict()
        mine[workflow_id] = parked
        while len(mine) > self.size:
            mine.popitem(last=False)[1].execution.evict()

    def clear(self) -> None:
        """Evict all executions of this thread."""
        for parked in self._mine().values():
            parked.execution.evict()
        self._mine().clear()

    def _mine(self) -> OrderedDict[str, Parked]:
        return self._threads.setdefault(get_native_id(), OrderedDict())
