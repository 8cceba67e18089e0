"""Signals of one run: those that came before anybody waited, and the handles that wait, first come first served.

Invariant: each signal goes to exactly one waiter, and one that was given to a wait that ended otherwise goes back to
its place. The library's own signals have listeners instead, who hear all of them; without one they are not kept.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from durable_celery.codec import CallbackToken, check_own_name
from durable_celery.errors import InvalidSignalError
from durable_celery.workflow.handles import Handle, Owner
from durable_celery.workflow.typed_signal import Signal

__all__ = ["SignalHandle", "Signals"]

T = TypeVar("T")


class SignalHandle(Handle[T]):
    """Stands for the next signal of a name; its result is of the signal's type."""

    def __init__(self, owner: Owner, signals: Signals, signal: Signal[T] | str) -> None:
        """Wait among the signals of a run.

        Raises:
            InvalidRequestError: the name is none that a user may send.
        """
        self.signal = signal if isinstance(signal, Signal) else None
        #: What it waits for.
        self.name = signal.name if isinstance(signal, Signal) else check_own_name(signal, "the name of a signal")
        #: What came, as it was sent.
        self.form: Any = None
        super().__init__(owner, partial(signals.leave, self.name, self))
        self.give_back = lambda: signals.give_back(self.name, self.form)
        signals.wait(self.name, self)

    def receive(self, form: Any) -> None:
        """End the wait with what came. Where it is of another type, the wait fails, and the signal is used up."""
        self.form = form
        try:
            value = form if self.signal is None else self.signal.received(form)
        except InvalidSignalError as error:
            self.fail(error)
        else:
            self.set_result(value)


class Signals:
    """The letter boxes of a run, one for each name."""

    def __init__(self) -> None:
        self._kept: defaultdict[str, deque[Any]] = defaultdict(deque)
        self._waiting: defaultdict[str, deque[SignalHandle[Any]]] = defaultdict(deque)
        self._listeners: dict[str, Callable[[Any], None]] = {}

    def receive(self, name: str, value: Any) -> None:
        """Give a signal to who has waited longest, or keep it."""
        if name.startswith(CallbackToken.MAKER):
            # Nobody can send one before its token was made, so without a listener it comes too late.
            self._listeners.get(name, _ignore)(value)
        elif self._waiting[name]:
            self._waiting[name].popleft().receive(value)
        else:
            self._kept[name].append(value)

    def wait(self, name: str, handle: SignalHandle[Any]) -> None:
        """Let a handle wait for the next signal that nobody else got."""
        if self._kept[name]:
            handle.receive(self._kept[name].popleft())
        else:
            self._waiting[name].append(handle)

    def leave(self, name: str, handle: SignalHandle[Any]) -> bool:
        """Take a handle that is being cancelled out of the queue; always true, its wait ends at once."""
        # Futures compare by identity, so this finds the handle itself.
        self._waiting[name].remove(handle)
        return True

    def give_back(self, name: str, value: Any) -> None:
        """Put a signal that was received, but not taken, back before those that came later."""
        if self._waiting[name]:
            self._waiting[name].popleft().receive(value)
        else:
            self._kept[name].appendleft(value)

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


def _ignore(_: Any) -> None:
    """Hear nothing."""
