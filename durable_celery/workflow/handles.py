"""Handles: what a workflow holds of something that it started and has not waited for.

A handle is an :class:`asyncio.Future`: await it, put it into ``asyncio.wait``, ``gather`` or ``as_completed``. In a
``def`` workflow ``result()`` waits for it. To cancel a handle is to cancel what it stands for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from durable_celery.errors import DurableError
from durable_celery.workflow.loop import WorkflowFuture, WorkflowLoop

__all__ = ["Handle", "RaceResult", "StepHandle", "drop_all"]

T = TypeVar("T")


class RaceResult(NamedTuple):
    """The arm that was first, and its result."""

    name: str
    value: Any


class Owner(Protocol):
    """What a handle needs of the run that it belongs to."""

    loop: WorkflowLoop

    @property
    def at_rest(self) -> bool:
        """Whether no code may run any more."""
        ...

    def check(self) -> None:
        """Refuse a verb that is not called by running workflow code."""
        ...

    def wait(self, awaitable: Awaitable[T]) -> T:
        """Block the calling ``def`` code until the awaitable is done."""
        ...


class Handle(WorkflowFuture[T]):
    """Stands for a step, timer, signal or branch that may still be going on."""

    #: Puts a signal that was received, but is not wanted, back into its queue.
    give_back: Callable[[], None] | None = None
    withdraw: Callable[[], bool] | None

    def __init__(self, owner: Owner, withdraw: Callable[[], bool] | None = None) -> None:
        """Make a handle; ``withdraw`` cancels what it stands for and tells whether that ends the handle at once."""
        super().__init__(owner.loop)
        self._owner = owner
        self.withdraw = withdraw

    def result(self) -> T:
        """Return the result, or raise the failure; in a ``def`` workflow wait for it.

        Raises:
            DurableError: it is not done, and this is an ``async def`` workflow, which awaits the handle instead.
        """
        if not self.done():
            return self._owner.wait(self)
        return super().result()

    def cancel(self, msg: object = None) -> bool:
        """Cancel what the handle stands for; False if it is done already."""
        if self.done():
            return False
        if self._owner.at_rest:
            return super().cancel(msg)
        self._owner.check()
        if self.withdraw is None or self.withdraw():
            return super().cancel(msg)
        return True

    def drop(self) -> None:
        """Cancel what is no longer wanted; if it is a signal that has come, leave it for another wait."""
        if not self.cancel() and self.give_back is not None and not self.cancelled():
            self.give_back()

    def fail(self, error: BaseException) -> None:
        """End the handle with a failure. That nobody asks for it is no news: it stands in the history."""
        if isinstance(error, StopIteration):
            # Python keeps this one for itself: it cannot leave a future.
            error = DurableError(f"StopIteration: {error}")
        self.set_exception(error)
        self._log_traceback = False


class StepHandle(Handle[T]):
    """Stands for a step: a Celery task, or a child run, called by the workflow."""

    def __init__(self, owner: Owner, withdraw: Callable[[], bool], *, number: int, key: str, task: str) -> None:
        super().__init__(owner, withdraw)
        #: Number of the step in its run.
        self.number = number
        #: Idempotency key: ``<workflow_id>/<run>.<number>``.
        self.key = key
        #: Name of the Celery task.
        self.task = task
        #: What people see in place of that.
        self.label = task
        #: What becomes of it, if it is a child run, when the code has ended; see ``tasks.ParentClose``.
        self.parent_close: str | None = None
        #: Id of the run, if it is a child run.
        self.workflow_id: str | None = None


async def drop_all(futures: Sequence[asyncio.Future[Any]]) -> None:
    """Cancel what is no longer wanted; wait for what has cleaning up to do."""
    for future in futures:
        if isinstance(future, Handle):
            future.drop()
        else:
            future.cancel()
    busy = [future for future in futures if not future.done()]
    if busy:
        await asyncio.wait(busy)
