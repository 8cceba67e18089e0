"""What the engine needs from its surroundings, besides a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from durable_celery.engine.turn import Ending
    from durable_celery.store.protocol import Claim, RunMessage, StepMessage
    from durable_celery.workflow import Definition

__all__ = ["Ahead", "Dispatcher", "Workflows"]


class Dispatcher(Protocol):
    """Publishes messages. A message is only a hint: losing, repeating or delaying one costs time, never a run."""

    def publish(self, messages: Sequence[RunMessage | StepMessage]) -> int:
        """Publish what can be published and return how many were; an unreachable broker is logged, not raised."""
        ...

    def child_envelope(self, message: StepMessage) -> str:
        """Return the envelope of the child run that a step asks for: its queue and priority, its root and parent."""
        ...


class Ahead(Protocol):
    """Does at once, without a message, what a turn in this process has brought about."""

    def may(self, message: StepMessage, /) -> bool:
        """Whether a step would be executed here and now; nothing is promised yet."""
        ...

    def take(self, message: StepMessage, claim: Claim, /) -> None:
        """Take over a step that :meth:`may` has allowed, which is claimed. It must come to an end, whatever happens."""
        ...

    def may_deliver(self, message: RunMessage, /) -> bool:
        """Whether the end of a run would be delivered here and now, without its message; nothing is promised yet."""
        ...

    def deliver(self, ending: Ending, /) -> None:
        """Take over an end that :meth:`may_deliver` has allowed, with its lease. It is delivered or given back."""
        ...


class Workflows(Protocol):
    """Finds the code of a workflow."""

    def __call__(self, name: str, version: int, /) -> Definition:
        """Return the definition of a version of a durable task.

        Raises:
            WorkflowCodeError: this process does not have it.
        """
        ...
