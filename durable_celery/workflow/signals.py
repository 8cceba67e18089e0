"""Signals of one run: those that came before anybody waited, and the handles that wait, first come first served.

Invariant: each signal goes to exactly one waiter, and one that was given to a wait that ended otherwise goes back to
its place. A signal counts as taken when the code has its value; what is not taken goes along to the next run.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Generator, Iterator
from functools import partial
from typing import Any, NamedTuple

from durable_celery.workflow.handles import Handle, Owner

__all__ = ["SignalHandle", "Signals"]


class Letter(NamedTuple):
    """A signal as it came."""

    seq: int
    value: Any


class SignalHandle(Handle[Any]):
    """Stands for the next signal of a name."""

    #: What was given to it, once it is done.
    letter: Letter

    def __init__(self, owner: Owner, signals: Signals, name: str) -> None:
        super().__init__(owner, partial(signals.leave, name, self))
        self.give_back = partial(signals.give_back, name, self)
        self._take = partial(signals.take, self)

    def result(self) -> Any:
        """Return the signal's value; in a ``def`` workflow wait for it."""
        value = super().result()
        self._take()
        return value

    def __await__(self) -> Generator[Any, None, Any]:
        value = yield from super().__await__()
        self._take()
        return value


class Signals:
    """The letter boxes of a run, one for each name."""

    def __init__(self) -> None:
        self._kept: defaultdict[str, deque[Letter]] = defaultdict(deque)
        self._waiting: defaultdict[str, deque[SignalHandle]] = defaultdict(deque)
        # What was given to a handle whose value the code has not asked for, in order.
        self._given: dict[SignalHandle, None] = {}

    def receive(self, name: str, value: Any, seq: int) -> None:
        """Give a signal to who has waited longest, or keep it."""
        letter = Letter(seq, value)
        if self._waiting[name]:
            self._give(letter, self._waiting[name].popleft())
        else:
            self._kept[name].append(letter)

    def wait(self, name: str, handle: SignalHandle) -> None:
        """Let a handle wait for the next signal that nobody else got."""
        if self._kept[name]:
            self._give(self._kept[name].popleft(), handle)
        else:
            self._waiting[name].append(handle)

    def leave(self, name: str, handle: SignalHandle) -> bool:
        """Take a handle that is being cancelled out of the queue; always true, its wait ends at once."""
        # Futures compare by identity, so this finds the handle itself.
        self._waiting[name].remove(handle)
        return True

    def take(self, handle: SignalHandle) -> None:
        """Note that the code has the value of a handle."""
        self._given.pop(handle, None)

    def give_back(self, name: str, handle: SignalHandle) -> None:
        """Put a signal that was received, but not wanted, back before those that came later."""
        self.take(handle)
        if self._waiting[name]:
            self._give(handle.letter, self._waiting[name].popleft())
        else:
            self._kept[name].appendleft(handle.letter)

    def untaken(self) -> Iterator[int]:
        """Yield the seq of each signal that the code has not taken."""
        for letters in self._kept.values():
            yield from (letter.seq for letter in letters)
        yield from (handle.letter.seq for handle in self._given)

    def names(self) -> Iterator[str]:
        """Yield the name that each waiting handle waits for."""
        for name, waiting in self._waiting.items():
            for _ in waiting:
                yield name

    def _give(self, letter: Letter, handle: SignalHandle) -> None:
        handle.letter = letter
        self._given[handle] = None
        handle.set_result(letter.value)
