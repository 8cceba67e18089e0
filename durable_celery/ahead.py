"""Run-ahead: the only step that a turn has scheduled is executed at once in the same process, without a message.

The commit that schedules it claims it as well. It runs when the task that took the turn is over, under Celery's own
tracer, so that signals, retries, handlers and ``self.request`` are as ever; its outcome goes into the log as ever, and
the next turn may run ahead again. A time slice bounds the whole: then the next step gets a message, and all others
their turn. What a crash interrupts is found by its owner's death, as with any claimed step.

A step gets a message wherever the message would matter: see :meth:`RunAhead.may`.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from celery import current_task, signals
from celery.app.task import Task
from celery.utils.saferepr import saferepr

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable_celery.app import Binding
    from durable_celery.store.protocol import Claim, StepMessage

__all__ = ["CLAIM", "Begun", "RunAhead"]

_log = logging.getLogger(__name__)
#: Options of a step that only a message can carry out, or its queue.
_NEED_A_MESSAGE = frozenset({"attempt_timeout", "priority", "message"})
#: Name of the request's entry with the claim; a message from outside cannot hold one.
CLAIM = "durable_claim"
_EVENTS = {"SUCCESS": "task-succeeded", "RETRY": "task-retried", "FAILURE": "task-failed", "REJECTED": "task-rejected"}


class Begun:
    """The claim of a step that runs ahead, until its task takes it."""

    def __init__(self, claim: Claim) -> None:
        self.claim, self.is_taken = claim, False

    def take(self) -> Claim:
        """Return the claim, to be brought to its end."""
        self.is_taken = True
        return self.claim


class RunAhead(threading.local):
    """What each thread of a worker runs ahead. An :class:`~durable_celery.engine.ports.Ahead` of the engine."""

    def __init__(self, binding: Binding, time_slice: float) -> None:
        self.binding, self.time_slice = binding, time_slice
        self._next: tuple[StepMessage, Claim] | None = None
        #: Arguments and queue of the step that was last allowed.
        self._call: tuple[list[Any], dict[str, Any], str] = [], {}, ""
        #: When the slice is over, on the monotonic clock; None between two slices.
        self._until: float | None = None
        self._is_working = False

    def may(self, message: StepMessage) -> bool:
        """Tell whether a step need not have a message.

        It needs one where the task is not registered here or its queue not consumed, where it has a time limit, a rate
        limit or a priority, where its class publishes in a way of its own, and where somebody listens to what is
        published; and where the slice is over.
        """
        if self._next is not None or (self._until is not None and time.monotonic() >= self._until):
            return False
        task: Any = self.binding.app.tasks.get(message.scheduled.task)
        return (
            task is not None
            and not _is_limited(current_task)
            and not _NEED_A_MESSAGE.intersection(message.scheduled.options or ())
            and not signals.before_task_publish.receivers
            and not signals.after_task_publish.receivers
            and _is_plain(task)
            and self._is_consumed(message)
        )

    def take(self, message: StepMessage, claim: Claim) -> None:
        """Execute a step that is claimed as soon as the task that is running has ended."""
        self._next = message, claim
        if self._until is None:
            self._until = time.monotonic() + self.time_slice

    def work(self, **__: Any) -> None:
        """Execute what was taken, and what follows from it (receiver of ``task_postrun``)."""
        if self._is_working or self._next is None:
            # The step that runs ahead has ended: what follows is done by the loop below, and not in here.
            return
        self._is_working = True
        hostname = current_task.request.hostname if current_task else None
        try:
            while self._next is not None:
                (message, claim), self._next = self._next, None
                self._execute(message, Begun(claim), hostname)
        finally:
            self._is_working, self._until = False, None
            if self._next is not None:
                (_, claim), self._next = self._next, None
                self._give_back(claim)

    def _execute(self, message: StepMessage, begun: Begun, hostname: str | None) -> None:
        dispatcher, key = self.binding.dispatcher, str(message.key)
        task: Any = self.binding.app.tasks[message.scheduled.task]
        try:
            args, kwargs, queue = self._call
            request = {**dispatcher.request(message, args, kwargs, queue), CLAIM: begun, "hostname": hostname}
            tell = self._teller(request, hostname)
            tell("task-received", name=task.name, args=request["argsrepr"], kwargs=request["kwargsrepr"])
            tell("task-started")
            retval, info, runtime, text = task.__trace__(key, args, kwargs, request)
            if info is None:
                tell("task-succeeded", result=text, runtime=runtime)
            elif info.state in _EVENTS:
                error = {"exception": saferepr(info.retval), "traceback": str(getattr(retval, "traceback", ""))}
                tell(_EVENTS[info.state], **error)
        finally:
            if not begun.is_taken:
                self._give_back(begun.claim)

    def _give_back(self, claim: Claim) -> None:
        engine = self.binding.engine
        engine.patience.later(
            lambda: engine.store.postpone(claim.key, claim.owner, delay=0.0, error="it could not run ahead"), now=True
        )

    def _teller(self, request: dict[str, Any], hostname: str | None) -> Callable[..., None]:
        """Return what sends the events of a task that monitors know from its worker's main process."""
        if not self.binding.sends_events:
            return lambda *_, **__: None
        fields = {"uuid": request["id"], "root_id": request["root_id"], "parent_id": request["parent_id"], "retries": 0}

        def tell(kind: str, **more: Any) -> None:
            with self.binding.app.events.default_dispatcher(hostname=hostname) as dispatcher:
                dispatcher.send(kind, **fields, **more)

        return tell

    def _is_consumed(self, message: StepMessage) -> bool:
        """Tell whether this worker would get the message as well as any other, with its arguments in plain."""
        app, codec = self.binding.app, self.binding.codec
        if codec.hides or codec.is_reference(message.scheduled.payload):
            return False
        try:
            self._call = self.binding.dispatcher.call(message)
        except Exception:  # noqa: BLE001 - a user's codec or router: who publishes the message tells of it
            return False
        return self._call[-1] in app.amqp.queues.consume_from


def _is_limited(task: Any) -> bool:
    """Tell whether what runs now, after which a step would run, has a time limit; or that nothing runs."""
    if not task:
        return True
    return any((*(task.request.timelimit or ()), task.time_limit, task.soft_time_limit))


def _is_plain(task: Any) -> bool:
    """Tell whether a message of the task is like any other."""
    return (
        hasattr(task.run, "durable_plain")
        and not task.name.startswith("durable_celery.")
        and not any((task.time_limit, task.soft_time_limit, task.rate_limit, task.priority))
        and type(task).apply_async is Task.apply_async
        and task.Request == Task.Request
        and task.Strategy == Task.Strategy
    )
