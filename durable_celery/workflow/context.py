"""The contexts: what workflow code sees. Two thin faces of the same verbs, one that blocks and one that is awaited.

Every verb may be called only by the code of the running workflow. It is issued when it is called (when it is first
awaited, in the ``async`` form); ``start``, ``signal``, ``timer`` and ``spawn`` return a handle at once in both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, overload
from uuid import UUID

from durable_celery.policy import RetryPolicy
from durable_celery.workflow import verbs
from durable_celery.workflow.handles import Handle, RaceResult, StepHandle
from durable_celery.workflow.logger import WorkflowLogger
from durable_celery.workflow.machine import Machine
from durable_celery.workflow.tasks import CallOptions, TaskLike

__all__ = ["AsyncWorkflowContext", "WorkflowContext", "WorkflowInfo"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowInfo:
    """What a run is, as its code may know it."""

    workflow_id: str
    #: Counts continue-as-new, from 1.
    run: int
    #: Name of the durable task.
    name: str
    #: Step key of the parent's step that waits for this run, or None.
    parent: str | None
    #: When the code began, in workflow time.
    started_at: datetime
    #: Seq of the event that is being applied: how long the history is, up to now.
    history_length: int


class _Context:
    """What both forms have in common."""

    def __init__(
        self, machine: Machine, *, started_at: datetime, parent: str | None, options: CallOptions | None = None
    ) -> None:
        self._machine = machine
        self._started_at = started_at
        self._parent = parent
        self._options = options or CallOptions()

    def options(
        self,
        *,
        retry: RetryPolicy | int | None = None,
        timeout: timedelta | float | None = None,
        queue: str | None = None,
        priority: int | None = None,
        name: str | None = None,
    ) -> Self:
        """Return this context with options for the calls made through it.

        Args:
            retry: how a step that raised is tried again; a number is the attempts in all.
            timeout: how long a step may take from being scheduled to its outcome, in seconds or as a timedelta.
            queue: the Celery queue of a step, in place of its route.
            priority: the priority of a step's message.
            name: what people see in place of the task's name; the recorded name of a local step.

        Raises:
            InvalidRequestError: a value cannot be meant.
        """
        chosen = self._options.with_(retry=retry, timeout=timeout, queue=queue, priority=priority, name=name)
        return type(self)(self._machine, started_at=self._started_at, parent=self._parent, options=chosen)

    @overload
    def start(self, task: TaskLike[P, R], /, *args: P.args, **kwargs: P.kwargs) -> StepHandle[R]: ...
    @overload
    def start(self, task: Callable[Concatenate[Any, P], R], /, *args: P.args, **kwargs: P.kwargs) -> StepHandle[R]: ...
    @overload
    def start(self, task: str, /, *args: Any, **kwargs: Any) -> StepHandle[Any]: ...
    def start(self, task: Any, /, *args: Any, **kwargs: Any) -> StepHandle[Any]:
        """Schedule a step and return its handle at once.

        Raises:
            UnknownTaskError: ``task`` is no Celery task.
            PayloadError: the arguments cannot be recorded.
        """
        return self._machine.start_step(task, args, kwargs, self._options)

    def timer(self, duration: timedelta | float) -> Handle[None]:
        """Start a durable timer; its handle is done after ``duration`` (seconds or timedelta)."""
        return verbs.timer(self._machine, duration)

    def signal(self, name: str) -> Handle[Any]:
        """Return a handle for the next signal of this name, one that was kept or one that will come."""
        return self._machine.signal(name)

    def now(self) -> datetime:
        """Return the workflow's time: when what the code now reacts to was recorded. Aware, UTC."""
        return self._machine.now_as_datetime()

    def uuid4(self) -> UUID:
        """Return a random id that is the same on every replay."""
        return self._machine.uuid4()

    @property
    def random(self) -> Random:
        """Random numbers that are the same on every replay."""
        self._machine.check()
        return self._machine.random

    def patched(self, change_id: str) -> bool:
        """Tell whether the code takes the new side of a change: true unless the history is from before it."""
        return self._machine.patched(change_id)

    @property
    def logger(self) -> WorkflowLogger:
        """A logger that is silent on replay; its records carry ``workflow_id``."""
        return WorkflowLogger(self._machine)

    @property
    def is_replaying(self) -> bool:
        """Whether the code repeats what it did before. Nothing that is recorded may depend on it."""
        return self._machine.is_replaying

    @property
    def info(self) -> WorkflowInfo:
        """What this run is."""
        return WorkflowInfo(
            workflow_id=self._machine.workflow_id,
            run=self._machine.run,
            name=self._machine.name,
            parent=self._parent,
            started_at=self._started_at,
            history_length=self._machine.cause,
        )


class WorkflowContext(_Context):
    """What a ``def`` workflow gets as its first argument. Verbs block."""

    @overload
    def step(self, task: TaskLike[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def step(self, task: Callable[Concatenate[Any, P], R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def step(self, task: str, /, *args: Any, **kwargs: Any) -> Any: ...
    def step(self, task: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Run a Celery task as a step and return its result.

        Raises:
            Exception: the step failed for good; its own exception, with the remote traceback as cause.
            UnknownTaskError: ``task`` is no Celery task.
            PayloadError: the arguments cannot be recorded.
        """
        return self.start(task, *args, **kwargs).result()

    def run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function here, outside of the workflow code, and record its outcome: a local step.

        It runs at least once: again if the process dies before the outcome is recorded.
        """
        result: R = self._wait(verbs.run(self._machine, self._options, function, args, kwargs))
        return result

    def gather(self, *handles: Handle[Any], return_exceptions: bool = False) -> list[Any]:
        """Wait for all handles; return their results in the order given.

        The first failure is raised, and the others go on; with ``return_exceptions`` failures stand among the results.
        """
        return self._wait(verbs.gather(self._machine, handles, return_exceptions=return_exceptions))

    def race(self, **arms: Handle[Any]) -> RaceResult:
        """Wait for the first of several handles, cancel the others, return the first one's name and result.

        An arm that fails first raises. A branch among the others is given the time to clean up.
        """
        return self._wait(verbs.race(self._machine, arms))

    def spawn(
        self, function: Callable[Concatenate[WorkflowContext, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Handle[R]:
        """Start ``function(ctx, *args, **kwargs)`` as a concurrent branch of this workflow."""
        return verbs.branch(self._machine, function, (self, *args), kwargs, blocks=True)

    def sleep(self, duration: timedelta | float) -> None:
        """Wait for a duration (seconds or timedelta) that no process has to live through."""
        self._wait(verbs.sleep(self._machine, duration))

    def sleep_until(self, instant: datetime) -> None:
        """Wait until an instant, given as an aware datetime; one that is past is no wait."""
        self._wait(verbs.sleep_until(self._machine, instant))

    def wait_signal(self, name: str, timeout: timedelta | float | None = None) -> Any:
        """Wait for a signal and return its value. Signals that came before are kept, in order.

        Raises:
            WaitTimeoutError: it did not come within ``timeout`` (seconds or timedelta).
        """
        return self._wait(verbs.wait_signal(self._machine, name, timeout))

    def _wait(self, awaitable: Awaitable[R]) -> R:
        return self._machine.wait(awaitable)


class AsyncWorkflowContext(_Context):
    """What an ``async def`` workflow gets as its first argument. Verbs are awaited; plain asyncio works beside them."""

    @overload
    async def step(self, task: TaskLike[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def step(self, task: Callable[Concatenate[Any, P], R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def step(self, task: str, /, *args: Any, **kwargs: Any) -> Any: ...
    async def step(self, task: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Run a Celery task as a step and return its result.

        Raises:
            Exception: the step failed for good; its own exception, with the remote traceback as cause.
            UnknownTaskError: ``task`` is no Celery task.
            PayloadError: the arguments cannot be recorded.
        """
        return await self.start(task, *args, **kwargs)

    @overload
    async def run(self, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    async def run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run a function, or a coroutine function, here and record its outcome: a local step.

        The whole workflow waits for it. It runs at least once: again if the process dies before the outcome is
        recorded.
        """
        return await verbs.run(self._machine, self._options, function, args, kwargs)

    async def gather(self, *handles: Awaitable[Any], return_exceptions: bool = False) -> list[Any]:
        """Wait for all handles; return their results in the order given.

        The first failure is raised, and the others go on; with ``return_exceptions`` failures stand among the results.
        """
        return await verbs.gather(self._machine, handles, return_exceptions=return_exceptions)

    async def race(self, **arms: Awaitable[Any]) -> RaceResult:
        """Wait for the first of several handles, cancel the others, return the first one's name and result.

        An arm that fails first raises. A branch among the others is given the time to clean up.
        """
        return await verbs.race(self._machine, arms)

    def spawn(
        self,
        function: Callable[Concatenate[AsyncWorkflowContext, P], Coroutine[Any, Any, R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Handle[R]:
        """Start ``function(ctx, *args, **kwargs)`` as a concurrent branch of this workflow."""
        return verbs.branch(self._machine, function, (self, *args), kwargs, blocks=False)

    async def sleep(self, duration: timedelta | float) -> None:
        """Wait for a duration (seconds or timedelta) that no process has to live through."""
        await verbs.sleep(self._machine, duration)

    async def sleep_until(self, instant: datetime) -> None:
        """Wait until an instant, given as an aware datetime; one that is past is no wait."""
        await verbs.sleep_until(self._machine, instant)

    async def wait_signal(self, name: str, timeout: timedelta | float | None = None) -> Any:  # noqa: ASYNC109 - a durable one
        """Wait for a signal and return its value. Signals that came before are kept, in order.

        Raises:
            WaitTimeoutError: it did not come within ``timeout`` (seconds or timedelta).
        """
        return await verbs.wait_signal(self._machine, name, timeout)
