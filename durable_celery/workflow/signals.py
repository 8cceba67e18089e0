"""Signals of one run: those that came before anybody waited, and the handles that wait, first come first served.

Invariant: each signal goes to exactly one waiter, and one that was given to a wait that ended otherwise goes back to
its place.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Any

from durable_celery.workflow.handles import Handle

__all__ = ["Signals"]


class Signals:
    """The letter boxes of a run, one for each name."""

    def __init__(self) -> None:
        self._kept: defaultdict[str, deque[Any]] = defaultdict(deque)
        self._waiting: defaultdict[str, deque[Handle[Any]]] = defaultdict(deque)

    def receive(self, name: str, value: Any) -> None:
        """Give a signal to who has waited longest, or keep it."""
        if self._waiting[name]:
            self._waiting[name].popleft().set_result(value)
        else:
            self._kept[name].append(value)

    def wait(self, name: str, handle: Handle[Any]) -> None:
        """Let a handle wait for the next signal that nobody else got."""
        if self._kept[name]:
            handle.set_result(self._kept[name].popleft())
        else:
            self._waiting[name].append(handle)

    def leave(self, name: str, handle: Handle[Any]) -> bool:
        """Take a handle that is being cancelled out of the queue; always true, its wait ends at once."""
        # Futures compare by identity, so this finds the handle itself.
        self._waiting[name].remove(handle)
        return True

    def give_back(self, name: str, value: Any) -> None:
        """Put a signal that was received, but not taken, back before those that came later."""
        if self._waiting[name]:
            self._waiting[name].popleft().set_result(value)
        else:
            self._kept[name].appendleft(value)

    def names(self) -> Iterator[str]:
        """Yield the name that each waiting handle waits for."""
        for name, waiting in self._waiting.items():
            for _ in waiting:
                yield name
