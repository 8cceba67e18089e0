"""Suspended executions, kept for the next turn in this process.

The log is append-only, so an execution at seq n is a valid prefix for ever: it is fed only what came after n.
Greenlets belong to the operating-system thread that made them, so each thread has a cache of its own
(``get_native_id`` is the real thread under gevent too). An execution that is in use is not in the cache, and one that
may have gone wrong never returns to it.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import get_native_id
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from durable_celery.workflow import Execution

__all__ = ["ExecutionCache"]


class ExecutionCache:
    """The ``size`` most recently used executions of each thread."""

    def __init__(self, size: int) -> None:
        """Make an empty cache; a size of 0 keeps nothing, so that each turn replays from the start."""
        self.size = size
        self._threads: dict[int, OrderedDict[str, Execution]] = {}

    def checkout(self, workflow_id: str) -> Execution | None:
        """Take an execution out of this thread's cache."""
        return self._mine().pop(workflow_id, None)

    def put(self, workflow_id: str, execution: Execution) -> None:
        """Keep an execution that stands exactly where the log stands; the least recently used one may be evicted."""
        mine = self._mine()
        if other := mine.pop(workflow_id, None):
            # Two turns of one run met in this thread (greenlets of a pool share it).
            other.evict()
        mine[workflow_id] = execution
        while len(mine) > self.size:
            mine.popitem(last=False)[1].evict()

    def clear(self) -> None:
        """Evict all executions of this thread."""
        for execution in self._mine().values():
            execution.evict()
        self._mine().clear()

    def _mine(self) -> OrderedDict[str, Execution]:
        return self._threads.setdefault(get_native_id(), OrderedDict())
