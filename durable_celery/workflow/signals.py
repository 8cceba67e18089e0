"""Signals of one run: those that came before anybody waited, and the handles that wait, first come first served.

Invariant: each signal goes to exactly one waiter, and one that was given to a wait that ended otherwise goes back to
its place. A signal counts as taken when the code has its value; what is not taken goes along to the next run. The
library's own signals have listeners instead, who hear all of them; without one they are not kept.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeVar

from durable_celery.codec import CallbackToken, check_own_name
from durable_celery.errors import InvalidSignalError
from durable_celery.workflow.handles import Handle, Owner
from durable_celery.workflow.typed_signal import Signal

__all__ = ["SignalHandle", "Signals"]

T = TypeVar("T")


class Letter(NamedTuple):
    """A signal as it came."""

    seq: int
    form: Any


class SignalHandle(Handle[T]):
    """Stands for the next signal of a name; its result is of the signal's type."""

    #: What was given to it, once it is done.
    letter: Letter

    def __init__(self, owner: Owner, signals: Signals, signal: Signal[T] | str) -> None:
        """Wait among the signals of a run.

        Raises:
            InvalidRequestError: the name is none that a user may send.
        """
        self.signal = signal if isinstance(signal, Signal) else None
        #: What it waits for.
        self.name = signal.name if isinstance(signal, Signal) else check_own_name(signal, "the name of a signal")
        super().__init__(owner, partial(signals.leave, self))
        self.give_back = partial(signals.give_back, self)
        self._take = partial(signals.take, self)
        signals.wait(self)

    def receive(self, letter: Letter) -> None:
        """End the wait with what came. Where it is of another type, the wait fails, and the signal is used up."""
        self.letter = letter
        try:
            value = letter.form if self.signal is None else self.signal.received(letter.form)
        except InvalidSignalError as error:
            self.fail(error)
        else:
            self.set_result(value)

    def result(self) -> T:
        """Return the signal's value; in a ``def`` workflow wait for it.

        Raises:
            InvalidSignalError: what came is of another type.
        """
        try:
            value = super().result()
        except InvalidSignalError:
            self._take()
            raise
        self._take()
        return value

    def __await__(self) -> Generator[Any, None, T]:
        try:
            value = yield from super().__await__()
        except InvalidSignalError:
            self._take()
            raise
        self._take()
        return value


class Signals:
    """The letter boxes of a run, one for each name."""

    def __init__(self) -> None:
        self._kept: defaultdict[str, deque[Letter]] = defaultdict(deque)
        self._waiting: defaultdict[str, deque[SignalHandle[Any]]] = defaultdict(deque)
        # What was given to a handle whose value the code has not asked for, in order.
        self._given: dict[SignalHandle[Any], None] = {}
        self._listeners: dict[str, Callable[[Any], None]] = {}

    def receive(self, name: str, form: Any, seq: int) -> None:
        """Give a signal to who has waited longest, or keep it."""
        if name.startswith(CallbackToken.MAKER):
            # Nobody can send one before its token was made, so without a listener it comes too late.
            self._listeners.get(name, _ignore)(form)
        elif self._waiting[name]:
            self._give(Letter(seq, form), self._waiting[name].popleft())
        else:
            self._kept[name].append(Letter(seq, form))

    def wait(self, handle: SignalHandle[Any]) -> None:
        """Let a handle wait for the next signal that nobody else got."""
        if self._kept[handle.name]:
            self._give(self._kept[handle.name].popleft(), handle)
        else:
            self._waiting[handle.name].append(handle)

    def leave(self, handle: SignalHandle[Any]) -> bool:
        """Take a handle that is being cancelled out of the queue; always true, its wait ends at once."""
        # Futures compare by identity, so this finds the handle itself.
        self._waiting[handle.name].remove(handle)
        return True

    def take(self, handle: SignalHandle[Any]) -> None:
        """Note that the code has the value of a handle, if it was given any."""
        self._given.pop(handle, None)

    def give_back(self, handle: SignalHandle[Any]) -> None:
        """Put a signal that was received, but not wanted, back before those that came later."""
        self.take(handle)
        if self._waiting[handle.name]:
            self._give(handle.letter, self._waiting[handle.name].popleft())
        else:
            self._kept[handle.name].appendleft(handle.letter)

    def untaken(self) -> Iterator[int]:
        """Yield the seq of each signal that the code has not taken."""
        for letters in self._kept.values():
            yield from (letter.seq for letter in letters)
        yield from (handle.letter.seq for handle in self._given)

    def listen(self, name: str, listener: Callable[[Any], None]) -> None:
        """Let a part of the library hear each signal of one of its own names."""
        self._listeners[name] = listener

    def hush(self, name: str) -> None:
        """Let nobody hear the signals of a name any more."""
        self._listeners.pop(name, None)

    def names(self) -> Iterator[str]:
        """Yield the name that each waiting handle waits for."""
        for name, waiting in self._waiting.items():
            for _ in waiting:
                yield name

    def _give(self, letter: Letter, handle: SignalHandle[Any]) -> None:
        self._given[handle] = None
        handle.receive(letter)


def _ignore(_: Any) -> None:
    """Hear nothing."""
