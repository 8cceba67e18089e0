"""The context of a ``def`` workflow: its verbs block."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
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
from durable_celery.workflow.saga import Saga
from durable_celery.workflow.scopes import CancelScope, TimeoutScope
from durable_celery.workflow.tasks import TaskLike, is_function
from durable_celery.workflow.typed_signal import Signal

__all__ = ["WorkflowContext"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class WorkflowContext(Context):
    """What a ``def`` workflow gets as its first argument. Verbs block."""

    @overload
    def step(self, task: TaskLike[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def step(self, task: Callable[Concatenate[Any, P], R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def step(self, task: str | dict[str, Any] | ForeignTask, /, *args: Any, **kwargs: Any) -> Any: ...
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

    @overload
    def gather(self, *handles: Handle[Any], return_exceptions: bool = False) -> list[Any]: ...
    @overload
    def gather(self, *handles: Handle[R], tolerate: Tolerance | int) -> BatchResult[R]: ...
    def gather(
        self, *handles: Handle[Any], return_exceptions: bool = False, tolerate: Tolerance | int | None = None
    ) -> Any:
        """Wait for all handles; return their results in the order given.

        The first failure is raised, and the others go on; with ``return_exceptions`` failures stand among the results.
        With ``tolerate`` (a number of failures, or a :class:`Tolerance`) the answer is a :class:`BatchResult`: it comes
        as soon as the batch is decided, and what goes on then is cancelled.
        """
        if tolerate is not None:
            return self._wait(verbs.tolerant_gather(self._machine, handles, tolerate))
        return self._wait(verbs.gather(self._machine, handles, return_exceptions=return_exceptions))

    @overload
    def map(
        self,
        task: TaskLike[[T], R] | Callable[[Any, T], R],
        items: Iterable[T],
        /,
        *,
        max_concurrency: int | None = None,
        tolerate: Tolerance | int | None = None,
    ) -> BatchResult[R]: ...
    @overload
    def map(
        self,
        task: str | dict[str, Any] | ForeignTask,
        items: Iterable[Any],
        /,
        *,
        max_concurrency: int | None = None,
        tolerate: Tolerance | int | None = None,
    ) -> BatchResult[Any]: ...
    def map(
        self,
        task: Any,
        items: Iterable[Any],
        /,
        *,
        max_concurrency: int | None = None,
        tolerate: Tolerance | int | None = None,
    ) -> BatchResult[Any]:
        """Run a Celery task, or a branch ``function(ctx, item)``, for each item; return how each ended, in order.

        Args:
            task: the task, its name, or a function of the context and an item, which may hold several steps.
            items: in an order that is the same on every replay; no set.
            max_concurrency: how many items may be going on at any time; all, if it is not given.
            tolerate: a number of failures, or a :class:`Tolerance`. As soon as the batch is decided the items that go
                on are cancelled and no other begins. Without it all items are run, whatever fails.

        Raises:
            InvalidRequestError: an argument cannot be meant.
        """
        begin: Callable[[Any], Any] = partial(self.spawn if is_function(task) else self.start, task)
        return self._wait(
            verbs.map_items(self._machine, begin, items, max_concurrency=max_concurrency, tolerate=tolerate)
        )

    def poll(
        self,
        check: Any,
        *args: Any,
        every: timedelta | float,
        until: Callable[[Any], object] = bool,
        timeout: timedelta | float | None = None,
    ) -> Any:
        """Run a check, a Celery task or a function as local step, again and again until its answer satisfies.

        Args:
            check: the task, its name, or a function for a local step.
            args: its arguments.
            every: durable wait between an answer and the next check (seconds or timedelta).
            until: tells whether an answer satisfies; workflow code.
            timeout: how long to go on (seconds or timedelta); for ever, if it is not given.

        Raises:
            WaitTimeoutError: no answer satisfied within ``timeout``.
        """
        return self._wait(
            verbs.poll(self._machine, self._options, check, args, every=every, until=until, timeout=timeout)
        )

    def shield(self, handle: Handle[R]) -> R:
        """Wait for a handle, such as a branch, without being cancelled meanwhile.

        Raises:
            WorkflowCancelled: a cancel came while it was going on; it is raised when the handle is done.
        """
        return self._wait(verbs.shield(self._machine, handle))

    def timeout(self, limit: timedelta | float) -> TimeoutScope:
        """Return a scope, for a ``with`` block that must end within a time (seconds or timedelta).

        When the time is up the block is cancelled where it waits, with ``asyncio.CancelledError``; the end of the block
        turns that into :class:`~durable_celery.WaitTimeoutError`.
        """
        return TimeoutScope(self._machine, seconds(limit))

    def cancel_scope(self) -> CancelScope:
        """Return a scope, for a ``with`` block that another branch may end with ``scope.cancel()``."""
        return CancelScope(self._machine)

    def saga(self) -> Saga:
        """Return a saga, for a ``with`` block: what was noted with ``compensate`` is undone if the block fails."""
        return Saga(self._machine, self._options)

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

    @overload
    def wait_signal(self, name: Signal[T], timeout: timedelta | float | None = None) -> T: ...
    @overload
    def wait_signal(self, name: str, timeout: timedelta | float | None = None) -> Any: ...
    def wait_signal(self, name: Signal[Any] | str, timeout: timedelta | float | None = None) -> Any:
        """Wait for a signal (a :class:`Signal` or a name), return its value. Those that came before are kept, in order.

        Raises:
            WaitTimeoutError: it did not come within ``timeout`` (seconds or timedelta).
            InvalidSignalError: it came with a value of another type; it is used up, and may be waited for again.
        """
        return self._wait(verbs.wait_signal(self._machine, name, timeout))

    def wait_event(self, name: str, timeout: timedelta | float | None = None) -> Any:
        """Wait for a named event, return its value; at once, if it was published within ``durable_retention``.

        Raises:
            WaitTimeoutError: it was not published within ``timeout`` (seconds or timedelta).
            EventCancelledError: it was cancelled.
            InvalidRequestError: the name cannot be one.
        """
        return self._wait(named_events.wait_event(self._machine, name, self._options, timeout))

    def publish_event(self, name: str, value: object = None) -> None:
        """Publish a named event, once: all runs that wait for it go on, now and later. It is a step.

        Raises:
            EventConflictError: it was published with another value, which stands, or was cancelled.
            InvalidRequestError: the name cannot be one.
            PayloadError: the value cannot be recorded.
        """
        named_events.publish_event(self._machine, name, value, self._options).result()

    def wait_callback(
        self,
        submit: Any,
        *args: Any,
        timeout: timedelta | float | None = None,
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
        return self._wait(
            wait_callback(self._machine, self._options, submit, args, timeout=timeout, heartbeat=heartbeat)
        )

    def wait_until(self, predicate: Callable[[], object], timeout: timedelta | float | None = None) -> None:
        """Wait until a predicate over the workflow's own state is true, such as what other branches change.

        Raises:
            WaitTimeoutError: it did not become true within ``timeout`` (seconds or timedelta).
        """
        self._wait(verbs.wait_until(self._machine, predicate, timeout))

    def _wait(self, awaitable: Awaitable[R]) -> R:
        return self._machine.wait(awaitable)
