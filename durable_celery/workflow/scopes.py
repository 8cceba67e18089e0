"""Scopes: blocks of workflow code that end early, because their time is up or because somebody says so.

A scope cancels the code that is in its block where that waits, as a cancel of the run does, and takes the cancellation
off at the end of the block. What was started in the block and is not waited for goes on.

Invariant: a scope never takes off a cancellation that is not its own: one of the run, of the branch that it stands in,
or of a scope around it goes through, also if it came while the code cleaned up for this one.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from durable_celery.errors import InvalidRequestError, WaitTimeoutError
from durable_celery.workflow.loop import WorkflowTask
from durable_celery.workflow.machine import Machine
from durable_celery.workflow.repairs import cancel_in

__all__ = ["AsyncCancelScope", "AsyncTimeoutScope", "CancelScope", "TimeoutScope"]


class _Scope:
    """What both forms have in common."""

    def __init__(self, machine: Machine, limit: float | None = None) -> None:
        machine.check()
        self._machine, self._limit = machine, limit
        self._task: WorkflowTask[object] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        #: Requests to cancel the block's task that came from elsewhere, when the block began.
        self._others = 0
        self._is_over = False
        self._cancelled = False
        self._delivered = False

    @property
    def cancelled(self) -> bool:
        """Whether the block was told to end, by ``cancel()`` or because its time was up."""
        return self._cancelled

    def cancel(self) -> bool:
        """Cancel the block where it waits, or when it next waits; False if it is over or has been cancelled already.

        A scope that is cancelled before its block begins cancels it when it first waits.
        """
        self._machine.check()
        return self._ask()

    def _ask(self) -> bool:
        if self._is_over or self._cancelled:
            return False
        self._cancelled = True
        if self._task is not None:
            self._machine.loop.call_soon(self._deliver)
        return True

    def _deliver(self) -> None:
        """Cancel the task, now that its code waits (loop)."""
        if self._task is not None and not self._is_over:
            self._delivered = True
            self._task.scope_cancels += 1
            self._task.cancel()

    def _enter(self) -> None:
        self._machine.check()
        task = asyncio.current_task()
        if self._task is not None or not isinstance(task, WorkflowTask):
            raise InvalidRequestError("a scope is for one `with` block: make another one")
        self._task = task
        self._others = task.cancelling() - task.scope_cancels
        task.scopes.append(self)
        if self._cancelled:
            self._machine.loop.call_soon(self._deliver)
        elif self._limit is not None:
            self._alarm = self._machine.loop.call_later(self._limit, self._ask)

    def _exit(self, error: BaseException | None) -> bool:
        """End the block; return whether its exception was this scope's own doing.

        Raises:
            WaitTimeoutError: the time of a scope with a limit was up.
            WorkflowCancelled: the run is being cancelled, and this scope ended the clean-up.
        """
        task = self._task
        assert task is not None  # noqa: S101 - the block has begun
        self._is_over = True
        task.scopes.remove(self)
        if self._machine.at_rest or isinstance(error, GeneratorExit):
            # Nobody goes on from here: the code is being ended, or garbage is being collected.
            return False
        if self._alarm is not None:
            self._alarm.cancel()
        if not self._delivered:
            return False
        if task.scope_cancels:
            task.scope_cancels -= 1
            task.uncancel()
        if not isinstance(error, asyncio.CancelledError):
            return False
        cancel = cancel_in(error)
        if cancel is not None and cancel is not error:
            # This scope's time was up while the code cleaned up for that one.
            raise cancel
        if cancel is not None or self._goes_on(task):
            return False
        if self._limit is not None:
            raise WaitTimeoutError(f"the block did not end within {self._limit:g} s") from error
        return True

    def _goes_on(self, task: WorkflowTask[object]) -> bool:
        """Tell whether a cancellation is also somebody else's, who must not lose it."""
        outside = task.cancelling() - task.scope_cancels
        return outside > self._others or any(scope.cancelled for scope in task.scopes)


class CancelScope(_Scope):
    """A block of a ``def`` workflow that may be told to end: ``with ctx.cancel_scope() as scope: ...``."""

    def __enter__(self) -> Self:
        self._enter()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        return self._exit(error)


class TimeoutScope(_Scope):
    """A block of a ``def`` workflow with a time limit: ``with ctx.timeout(60): ...``."""

    def __enter__(self) -> Self:
        self._enter()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._exit(error)


class AsyncCancelScope(_Scope):
    """A block of an ``async def`` workflow that may be told to end: ``async with ctx.cancel_scope() as scope: ...``."""

    async def __aenter__(self) -> Self:
        self._enter()
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        return self._exit(error)


class AsyncTimeoutScope(_Scope):
    """A block of an ``async def`` workflow with a time limit: ``async with ctx.timeout(60): ...``."""

    async def __aenter__(self) -> Self:
        self._enter()
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._exit(error)
