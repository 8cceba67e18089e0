"""The context of an ``async def`` workflow: its verbs are awaited."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar, overload

from durable_celery.policy import seconds
from durable_celery.workflow import named_events, verbs
from durable_celery.workflow.batch import BatchResult, Tolerance
from durable_celery.workflow.callbacks import wait_callback
from durable_celery.workflow.context import Context
from durable_celery.workflow.foreign import ForeignTask
from durable_celery.workflow.handles import Handle, RaceResult
from durable_celery.workflow.saga import AsyncSaga
from durable_celery.workflow.scopes import AsyncCancelScope, AsyncTimeoutScope
from durable_celery.workflow.tasks import TaskLike, is_function
from durable_celery.workflow.typed_signal import Signal

__all__ = ["AsyncWorkflowContext"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class AsyncWorkflowContext(Context):
    """What an ``async def`` workflow gets as its first argument. Verbs are awaited; plain asyncio works beside them."""

    @overload
    async def step(self, task: TaskLike[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def step(self, task: Callable[Concatenate[Any, P], R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def step(self, task: str | dict[str, Any] | ForeignTask, /, *args: Any, **kwargs: Any) -> Any: ...
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

    @overload
    async def gather(self, *handles: Awaitable[Any], return_exceptions: bool = False) -> list[Any]: ...
    @overload
    async def gather(self, *handles: Awaitable[R], tolerate: Tolerance | int) -> BatchResult[R]: ...
    async def gather(
        self, *handles: Awaitable[Any], return_exceptions: bool = False, tolerate: Tolerance | int | None = None
    ) -> Any:
        """Wait for all handles; return their results in the order given.

        The first failure is raised, and the others go on; with ``return_exceptions`` failures stand among the results.
        With ``tolerate`` (a number of failures, or a :class:`Tolerance`) the answer is a :class:`BatchResult`: it comes
        as soon as the batch is decided, and what goes on then is cancelled.
        """
        if tolerate is not None:
            return await verbs.tolerant_gather(self._machine, handles, tolerate)
        return await verbs.gather(self._machine, handles, return_exceptions=return_exceptions)

    @overload
    async def map(
        self,
        task: Callable[[Any, T], Coroutine[Any, Any, R]],
        items: Iterable[T],
        /,
        *,
        max_concurrency: int | None = None,
        tolerate: Tolerance | int | None = None,
    ) -> BatchResult[R]: ...
    @overload
    async def map(
        self,
        task: TaskLike[[T], R] | Callable[[Any, T], R],
        items: Iterable[T],
        /,
        *,
        max_concurrency: int | None = None,
        tolerate: Tolerance | int | None = None,
    ) -> BatchResult[R]: ...
    @overload
    async def map(
        self,
        task: str | dict[str, Any] | ForeignTask,
        items: Iterable[Any],
        /,
        *,
        max_concurrency: int | None = None,
        tolerate: Tolerance | int | None = None,
    ) -> BatchResult[Any]: ...
    async def map(
        self,
        task: Any,
        items: Iterable[Any],
        /,
        *,
        max_concurrency: int | None = None,
        tolerate: Tolerance | int | None = None,
    ) -> BatchResult[Any]:
        """Run a Celery task, or a branch ``function(ctx, item)``, for each item; return how each ended, in order.

        See :meth:`WorkflowContext.map`.
        """
        begin: Callable[[Any], Any] = partial(self.spawn if is_function(task) else self.start, task)
        return await verbs.map_items(self._machine, begin, items, max_concurrency=max_concurrency, tolerate=tolerate)

    async def poll(
        self,
        check: Any,
        *args: Any,
        every: timedelta | float,
        until: Callable[[Any], object] = bool,
        timeout: timedelta | float | None = None,  # noqa: ASYNC109 - a durable one
    ) -> Any:
        """Run a check again and again until its answer satisfies; see :meth:`WorkflowContext.poll`.

        Raises:
            WaitTimeoutError: no answer satisfied within ``timeout``.
        """
        return await verbs.poll(self._machine, self._options, check, args, every=every, until=until, timeout=timeout)

    async def shield(self, handle: Awaitable[R]) -> R:
        """Wait for a handle, such as a branch, without being cancelled meanwhile.

        Raises:
            WorkflowCancelled: a cancel came while it was going on; it is raised when the handle is done.
        """
        return await verbs.shield(self._machine, handle)

    def timeout(self, limit: timedelta | float) -> AsyncTimeoutScope:
        """Return a scope, for an ``async with`` block that must end within a time (seconds or timedelta).

        See :meth:`WorkflowContext.timeout`.
        """
        return AsyncTimeoutScope(self._machine, seconds(limit))

    def cancel_scope(self) -> AsyncCancelScope:
        """Return a scope, for an ``async with`` block that another branch may end with ``scope.cancel()``."""
        return AsyncCancelScope(self._machine)

    def saga(self) -> AsyncSaga:
        """Return a saga, for an ``async with`` block: what was noted is undone if the block fails."""
        return AsyncSaga(self._machine, self._options)

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

    @overload
    async def wait_signal(self, name: Signal[T], timeout: timedelta | float | None = None) -> T: ...  # noqa: ASYNC109 - a durable one
    @overload
    async def wait_signal(self, name: str, timeout: timedelta | float | None = None) -> Any: ...  # noqa: ASYNC109 - a durable one
    async def wait_signal(
        self,
        name: Signal[Any] | str,
        timeout: timedelta | float | None = None,  # noqa: ASYNC109 - a durable one
    ) -> Any:
        """Wait for a signal (a :class:`Signal` or a name), return its value. Those that came before are kept, in order.

        Raises:
            WaitTimeoutError: it did not come within ``timeout`` (seconds or timedelta).
            InvalidSignalError: it came with a value of another type; it is used up, and may be waited for again.
        """
        return await verbs.wait_signal(self._machine, name, timeout)

    async def wait_event(
        self,
        name: str,
        timeout: timedelta | float | None = None,  # noqa: ASYNC109 - a durable one
    ) -> Any:
        """Wait for a named event, return its value; at once, if it was published within ``durable_retention``.

        Raises:
            WaitTimeoutError: it was not published within ``timeout`` (seconds or timedelta).
            EventCancelledError: it was cancelled.
            InvalidRequestError: the name cannot be one.
        """
        return await named_events.wait_event(self._machine, name, self._options, timeout)

    async def publish_event(self, name: str, value: object = None) -> None:
        """Publish a named event, once: all runs that wait for it go on, now and later. It is a step.

        Raises:
            EventConflictError: it was published with another value, which stands, or was cancelled.
            InvalidRequestError: the name cannot be one.
            PayloadError: the value cannot be recorded.
        """
        await named_events.publish_event(self._machine, name, value, self._options)

    async def wait_callback(
        self,
        submit: Any,
        *args: Any,
        timeout: timedelta | float | None = None,  # noqa: ASYNC109 - a durable one
        heartbeat: timedelta | float | None = None,
    ) -> Any:
        """Run ``submit(token, *args)``, a Celery task or a function as local step, and return the answer to the token.

        The answer may come before the step has returned.

        Args:
            submit: the task, its name, or a function for a local step: it tells the outside system the token.
            args: what it gets after the token.
            timeout: how long to wait for the answer, from now (seconds or timedelta).
            heartbeat: how long to wait for a sign of life or the answer.

        Raises:
            WaitTimeoutError: the answer, or (``HeartbeatTimeoutError``) a sign of life, did not come in time.
            Exception: what the outside system failed with, or ``submit`` before an answer came.
        """
        return await wait_callback(self._machine, self._options, submit, args, timeout=timeout, heartbeat=heartbeat)

    async def wait_until(
        self,
        predicate: Callable[[], object],
        timeout: timedelta | float | None = None,  # noqa: ASYNC109 - a durable one
    ) -> None:
        """Wait until a predicate over the workflow's own state is true, such as what other branches change.

        Raises:
            WaitTimeoutError: it did not become true within ``timeout`` (seconds or timedelta).
        """
        await verbs.wait_until(self._machine, predicate, timeout)
