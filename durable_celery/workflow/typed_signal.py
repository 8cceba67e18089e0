"""Signals with a name and a type, known to both sides: what a workflow waits for, and what may be sent to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Generic, TypeVar, overload

from durable_celery.codec import Codec, Shape, check_own_name
from durable_celery.errors import InvalidRequestError, InvalidSignalError

__all__ = ["Signal", "declared", "signal_for"]

T = TypeVar("T")


class Signal(Generic[T]):
    """A signal with its type. Made once, at the top of a module, and used by who sends and by who waits.

    The type is a dataclass, a pydantic model, or one of JSON's (``int``, ``str``, ``dict``, None, ``list[str]``, ...).
    A value is held against it before it is sent, and is built again where it is waited for.
    """

    @overload
    def __init__(self: Signal[None], name: str, type: None) -> None: ...
    @overload
    def __init__(self, name: str, type: type[T]) -> None: ...
    @overload
    def __init__(self: Signal[Any], name: str, type: object = ...) -> None: ...
    def __init__(self, name: str, type: Any = Any) -> None:  # noqa: A002 - what it is
        """Name a signal.

        Args:
            name: as it is sent; 1 to 255 printable characters.
            type: of its value; anything, if it is not given.

        Raises:
            InvalidRequestError: the name cannot be one, or values of this type cannot be recorded.
        """
        self.name = check_own_name(name, "the name of a signal")
        self.shape = Shape(type)

    def __repr__(self) -> str:
        return f"Signal({self.name!r}, {self.shape})"

    def dumps(self, value: object, codec: Codec) -> str:
        """Return the JSON text of a value (client).

        Raises:
            PayloadError: it is not, and does not build, what the signal takes.
        """
        return self.shape.dumps(value, codec, f"the value of signal {self.name!r}")

    def received(self, form: object) -> T:
        """Build a value that came (workflow).

        Raises:
            InvalidSignalError: it is not what the signal takes; who sent it did not check.
        """
        try:
            value: T = self.shape.received(form)
        except Exception as error:
            raise InvalidSignalError(
                f"signal {self.name!r} came with a value that is not of type {self.shape}: {error}"
            ) from error
        return value


def declared(signals: Iterable[Signal[Any] | str]) -> Mapping[str, Signal[Any]]:
    """Return what a workflow says that it takes, by name.

    Raises:
        InvalidRequestError: two have one name.
    """
    found: dict[str, Signal[Any]] = {}
    for given in signals:
        signal = Signal(given) if isinstance(given, str) else given
        if signal.name in found:
            raise InvalidRequestError(f"two signals of one workflow are called {signal.name!r}")
        found[signal.name] = signal
    return found


def signal_for(name: str, takes: Mapping[str, Signal[Any]], workflow: str) -> Signal[Any]:
    """Return the signal of a name among those that a workflow takes.

    Raises:
        InvalidRequestError: it takes no such signal; the message names those that it takes.
    """
    if name in takes:
        return takes[name]
    near = get_close_matches(name, takes, n=1)
    meant = f"; was {near[0]!r} meant?" if near else ""
    raise InvalidRequestError(f"workflow {workflow} takes no signal {name!r}, but {', '.join(map(repr, takes))}{meant}")
