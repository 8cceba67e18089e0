"""The context: what workflow code sees. Here is what both forms have in common; none of it waits.

The forms, ``blocking`` and ``awaited``, are two thin faces of the same verbs. Every verb may be called only by the code
of the running workflow. It is issued when it is called (when it is first awaited, in the ``async`` form); ``start``,
``signal``, ``timer`` and ``spawn`` return a handle at once in both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Any, Concatenate, NoReturn, ParamSpec, Self, TypeVar, overload
from uuid import UUID

from durable_celery.policy import RetryPolicy
from durable_celery.workflow import canvas, continuation, foreign, named_events, notes, verbs
from durable_celery.workflow.callbacks import Callback, open_callback
from durable_celery.workflow.handlers import State
from durable_celery.workflow.handles import Handle, StepHandle
from durable_celery.workflow.logger import WorkflowLogger
from durable_celery.workflow.machine import Machine
from durable_celery.workflow.tasks import UNSET, CallOptions, ParentClose, TaskLike, behind
from durable_celery.workflow.typed_signal import Signal

__all__ = ["Context", "WorkflowInfo"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


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
    #: About how many bytes these events take.
    history_bytes: int
    #: Whether the history is so long (5,000 events or 5 MiB) that the run should go on as a new one.
    continue_as_new_suggested: bool


class Context:
    """What both forms have in common."""

    def __init__(
        self, machine: Machine, *, started_at: datetime, parent: str | None, options: CallOptions | None = None
    ) -> None:
        self._machine = machine
        self._started_at = started_at
        self._parent = parent
        self._options = options or UNSET

    def options(  # noqa: PLR0913 - the vocabulary of a call
        self,
        *,
        retry: RetryPolicy | int | None = None,
        timeout: timedelta | float | None = None,
        start_timeout: timedelta | float | None = None,
        attempt_timeout: timedelta | float | None = None,
        heartbeat_timeout: timedelta | float | None = None,
        at_most_once: bool | None = None,
        queue: str | None = None,
        priority: int | None = None,
        name: str | None = None,
        parent_close: ParentClose | str | None = None,
        workflow_id: str | None = None,
    ) -> Self:
        """Return this context with options for the calls made through it.

        Args:
            retry: how a step that raised is tried again; a number is the attempts in all.
            timeout: how long a step may take from being scheduled to its outcome, in seconds or as a timedelta.
            start_timeout: how long a step may wait for the begin of its first attempt.
            attempt_timeout: how long one attempt may take; after that it is ended, and is tried again if ``retry``
                has an attempt left.
            heartbeat_timeout: how long an attempt may go without ``current_step().heartbeat()``; after that it is taken
                for lost, as if its process had died.
            at_most_once: an attempt whose process was lost is not repeated, the step fails with ``StepLostError``.
            queue: the Celery queue of a step, in place of its route.
            priority: the priority of a step's message.
            name: what people see in place of the task's name; the recorded name of a local step.
            parent_close: what becomes of a child run that goes on when this run's code has ended: ``cancel``,
                ``abandon`` or ``wait``. If it is not given it goes on after an end, and is cancelled after a cancel.
            workflow_id: the id of a child run, in place of the step's key. If a run that this step has not started has
                it already, the step fails with :class:`~durable_celery.WorkflowConflictError`.

        Raises:
            InvalidRequestError: a value cannot be meant.
        """
        chosen = self._options.with_(
            retry=retry,
            timeout=timeout,
            start_timeout=start_timeout,
            attempt_timeout=attempt_timeout,
            heartbeat_timeout=heartbeat_timeout,
            at_most_once=at_most_once,
            queue=queue,
            priority=priority,
            name=name,
            parent_close=parent_close,
            workflow_id=workflow_id,
        )
        return type(self)(self._machine, started_at=self._started_at, parent=self._parent, options=chosen)

    @overload
    def start(self, task: TaskLike[P, R], /, *args: P.args, **kwargs: P.kwargs) -> StepHandle[R]: ...
    @overload
    def start(self, task: Callable[Concatenate[Any, P], R], /, *args: P.args, **kwargs: P.kwargs) -> StepHandle[R]: ...
    @overload
    def start(self, task: str, /, *args: Any, **kwargs: Any) -> StepHandle[Any]: ...
    @overload
    def start(self, task: dict[str, Any] | foreign.ForeignTask, /, *args: Any, **kwargs: Any) -> Handle[Any]: ...
    def start(self, task: Any, /, *args: Any, **kwargs: Any) -> Handle[Any]:
        """Schedule a step and return its handle at once.

        Args:
            task: a Celery task, a durable task, the name of a task, a signature of Celery's canvas, or a
                :class:`~durable_celery.ForeignTask`.
            args: its arguments; those of a signature come after them.
            kwargs: the same.

        Raises:
            UnknownTaskError: ``task`` is no Celery task.
            PayloadError: the arguments cannot be recorded.
        """
        task = behind(task)
        if canvas.is_signature(task):
            return canvas.start(self._machine, task, args, kwargs, self._options)
        if isinstance(task, foreign.ForeignTask):
            return foreign.start(self._machine, task, args, kwargs, self._options)
        return self._machine.start_step(task, args, kwargs, self._options)

    def timer(self, duration: timedelta | float) -> Handle[None]:
        """Start a durable timer; its handle is done after ``duration`` (seconds or timedelta)."""
        return verbs.timer(self._machine, duration)

    @overload
    def signal(self, name: Signal[T]) -> Handle[T]: ...
    @overload
    def signal(self, name: str) -> Handle[Any]: ...
    def signal(self, name: Signal[Any] | str) -> Handle[Any]:
        """Return a handle for the next signal (a :class:`Signal` or a name), one that was kept or one that will come.

        The handle fails with ``InvalidSignalError`` if its value is of another type; that signal is used up.
        """
        return self._machine.signal(name)

    def event(self, name: str) -> Handle[Any]:
        """Return a handle that is done when an event of this name is published, or at once if it was.

        It fails with ``EventCancelledError`` if the event is cancelled.

        Raises:
            InvalidRequestError: the name cannot be one.
        """
        return named_events.event(self._machine, name, self._options)

    def callback(
        self, *, timeout: timedelta | float | None = None, heartbeat: timedelta | float | None = None
    ) -> Callback:
        """Make a callback: a handle for an answer that an outside system gives by ``callback.token``.

        Args:
            timeout: how long to wait for the answer (seconds or timedelta); then it is a ``WaitTimeoutError``.
            heartbeat: how long to wait for a sign of life or the answer; then it is a ``HeartbeatTimeoutError``.
        """
        return open_callback(self._machine, timeout=timeout, heartbeat=heartbeat)

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

    def deprecate_patch(self, change_id: str) -> None:
        """Stand where ``patched(change_id)`` stood, in code that has only the new side left.

        Deploy it when no open run is on the old side: such a run would be blocked. The call may go when no open run has
        the mark that ``patched`` left; the marks that this call leaves stop nobody.
        """
        self._machine.patched(change_id, is_deprecated=True)

    @property
    def state(self) -> State:
        """What the run shows of itself: set attributes, for queries, validators and updates to read."""
        return self._machine.state

    @property
    def open_updates(self) -> int:
        """How many updates have come and have no outcome yet; the end of the code ends them without one."""
        return self._machine.updates.open

    def publish(self, key: str, value: Any) -> None:
        """Record the newest value under a key, for readers outside; it costs one event.

        Raises:
            InvalidRequestError: the key cannot be one.
            PayloadError: the value cannot be recorded.
        """
        notes.publish(self._machine, key, value)

    def stream(self, name: str) -> notes.Stream:
        """Return an ordered list of values for readers outside, to be added to with ``append``; each costs one event.

        Raises:
            InvalidRequestError: the name cannot be one.
        """
        return notes.Stream(self._machine, name)

    def continue_as_new(self, *args: Any, **kwargs: Any) -> NoReturn:
        """End this run here, and go on with the same workflow from its beginning, with these arguments; never returns.

        The next run has an empty history and the same workflow id; whoever waits for the workflow waits for the end of
        its last run. Signals that the code has not taken go along. What it started goes on, or not, as after a
        ``return``; ``finally`` and ``with`` blocks run as for one. Only the workflow function itself may call it.

        Raises:
            TypeError: the arguments do not fit the workflow's signature.
            PayloadError: they cannot be recorded.
            InvalidRequestError: it is called in a branch.
            WorkflowCancelled: somebody asked the workflow to stop; it does not begin anew.
        """
        continuation.continue_as_new(self._machine, args, kwargs)

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
            history_bytes=self._machine.size.bytes,
            continue_as_new_suggested=self._machine.size.suggests_continuing,
        )
