"""What stands around the engine in a world: tasks, the clock, the broker, and a store that one can look into."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from durable_celery.store.protocol import RunMessage, StepMessage, Store
from durable_celery.workflow import Handlers

__all__ = ["CLIENT", "EPOCH", "TICK", "Clock", "Message", "OpenStore", "Publisher", "Task"]

Message = RunMessage | StepMessage

#: Where the clock begins, in ms since 1970.
EPOCH = 1_800_000_000_000
#: Longest step of the clock while the system runs by itself: below ``owner_ttl``, so that a leaked lease stays leaked.
TICK = 3.0
#: Who calls a store on behalf of clients.
CLIENT = "client"


class OpenStore(Store, Protocol):
    """A store that lets tests look inside; the memory store is one."""

    @property
    def run_table(self) -> Mapping[str, Any]:
        """Workflow ids of all runs, in the order of their start."""
        ...

    @property
    def agenda(self) -> Mapping[tuple[str, str, int], int]:
        """What falls due when: (kind, id, number) -> ms since 1970."""
        ...

    @property
    def held(self) -> Mapping[str, Any]:
        """What each process has in hand."""
        ...


class Task:
    """A function of the test that looks like a Celery task, or like a durable task."""

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        is_durable: bool = False,
        version: int = 1,
        handlers: Handlers | None = None,
    ) -> None:
        """Give a function the name under which histories and messages know it, and what it answers."""
        self.name, self.function, self.is_durable, self.version = name, function, is_durable, version
        self.handlers = handlers or Handlers()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.function(*args, **kwargs)


class Clock:
    """Milliseconds since 1970, moved by hand."""

    def __init__(self) -> None:
        """Begin at the epoch of all tests."""
        self.now = EPOCH

    def __call__(self) -> int:
        """Return the time."""
        return self.now

    def seconds(self) -> float:
        """Return the time in seconds."""
        return self.now / 1000

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += round(seconds * 1000)


class Publisher:
    """The engine's dispatcher: it puts messages into the world's list."""

    def __init__(self, broker: deque[Message]) -> None:
        """Publish into ``broker``."""
        self.broker = broker

    def publish(self, messages: Sequence[Message]) -> int:
        """See :meth:`~durable_celery.engine.Dispatcher.publish`."""
        self.broker.extend(messages)
        return len(messages)

    def child_envelope(self, message: StepMessage) -> str:
        """See :meth:`~durable_celery.engine.Dispatcher.child_envelope`."""
        return message.envelope
