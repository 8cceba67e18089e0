"""What a process does at once, without a message: deliver the end of a run that its step has ended, and run ahead.

Both wait until the task that is running is over, and happen under Celery's own tracer, so that signals, retries,
handlers and ``self.request`` are as ever.

*The end.* A step whose outcome ends its run would publish one more message, only to fire the run's callbacks and store
its result. The run's lease is kept instead: whatever becomes of this process, the end is delivered.

*Run-ahead.* The only step that a turn has scheduled is executed in the same process. The commit that schedules it
claims it as well; its outcome goes into the log as ever, and the next turn may run ahead again. A time slice bounds the
whole, and only steps that are likely to fit into it run ahead (:class:`~durable_celery.pace.Pace`): others get a
message, and all that wait their turn. What a crash interrupts is found by its owner's death, as with any claimed step.

There is a message wherever a message would matter: see :meth:`RunAhead.may` and :meth:`RunAhead.may_deliver`.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from celery import current_task, signals
from celery.app.task import Task
from celery.utils.saferepr import saferepr

from durable_celery.dispatch import HEADER, has_one_consumer, took
from durable_celery.mail import is_publishing_watched

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from durable_celery.app import Binding
    from durable_celery.engine.turn import Ending
    from durable_celery.pace import Pace
    from durable_celery.store.protocol import Claim, RunMessage, StepMessage

__all__ = ["CLAIM", "ENDING", "OURS", "Begun", "RunAhead"]

T = TypeVar("T")

_log = logging.getLogger(__name__)
#: Options of a step that only a message can carry out, or its queue.
_NEED_A_MESSAGE = frozenset({"attempt_timeout", "priority", "message"})
#: Names of the request's entries with the claim, or the end; a message from outside cannot hold one.
CLAIM, ENDING = "durable_claim", "durable_ahead"
#: Marks the receivers of ``task_received`` that need not see a step that runs ahead.
OURS = "durable_receiver"
#: What the worker's main process does with a message of a task that nobody has told otherwise.
_REQUESTS = frozenset({Task.Request, "durable_celery.request:RunRequest"})
_EVENTS = {"SUCCESS": "task-succeeded", "RETRY": "task-retried", "FAILURE": "task-failed", "REJECTED": "task-rejected"}


class Begun(Generic[T]):
    """What this process has in hand, the claim of a step or the end of a run, until the task takes it."""

    def __init__(self, what: T) -> None:
        self.what, self.is_taken = what, False

    def take(self) -> T:
        """Return it, to be brought to its end."""
        self.is_taken = True
        return self.what


class RunAhead(threading.local):
    """What each thread of a worker does without a message: an :class:`~durable_celery.engine.ports.Ahead`."""

    def __init__(self, binding: Binding, pace: Pace) -> None:
        self.binding, self.pace = binding, pace
        #: Whether somebody hears of messages that are sent, and so of steps that need none.
        self._tells_sent = bool(binding.app.conf.task_send_sent_event)
        self._next: tuple[StepMessage, Claim] | None = None
        #: The request of the run whose end was last allowed, and the end that is to be delivered.
        self._request: dict[str, Any] = {}
        self._end: Ending | None = None
        #: Arguments and queue of the step that was last allowed.
        self._call: tuple[list[Any], dict[str, Any], str] = [], {}, ""
        #: When the slice is over, on the monotonic clock; None between two slices.
        self._until: float | None = None
        self._is_working = False

    def may(self, message: StepMessage) -> bool:
        """Tell whether a step need not have a message.

        It needs one where the task is not registered here or its queue not consumed, where it has a time limit, a rate
        limit or a priority, where its class publishes in a way of its own, and where somebody listens to what is
        published or received; and where it may not end within the slice.
        """
        left = self.pace.time_slice if self._until is None else self._until - time.monotonic()
        if self._next is not None or not self.pace.fits(message.scheduled.task, left):
            return False
        task: Any = self.binding.app.tasks.get(message.scheduled.task)
        return (
            task is not None
            and not _is_limited(current_task)
            and not _NEED_A_MESSAGE.intersection(message.scheduled.options or ())
            and not is_publishing_watched()
            and not _is_receiving_watched()
            and _is_plain(task)
            and self._is_consumed(message)
        )

    def take(self, message: StepMessage, claim: Claim) -> None:
        """Execute a step that is claimed as soon as the task that is running has ended."""
        self._next = message, claim
        if self._until is None:
            self._until = time.monotonic() + self.pace.time_slice

    def may_deliver(self, message: RunMessage) -> bool:
        """Tell whether the end of a run need not have a message.

        It needs one where the queue of the run is not consumed here, where the run has a time limit, where its class
        has a ``Request`` of its own, and where somebody listens to what is published.
        """
        task: Any = self.binding.app.tasks.get(message.name)
        if (
            self._end is not None
            or task is None
            or _is_limited(current_task)
            or is_publishing_watched()
            or any((task.time_limit, task.soft_time_limit))
            or task.Request not in _REQUESTS
        ):
            return False
        app, dispatcher = self.binding.app, self.binding.dispatcher
        try:
            queue = dispatcher.queue_of(message.name, message.envelope)
            if queue not in app.amqp.queues.consume_from:
                return False
            request = dispatcher.run_request(message, queue)
        except Exception:  # noqa: BLE001 - a user's router or serializer: who publishes the message tells of it
            return False
        self._request = request
        return not any(request["timelimit"])

    def deliver(self, ending: Ending) -> None:
        """Deliver the end of a run as soon as the task that is running has ended."""
        self._end = ending

    def work(self, **__: Any) -> None:
        """Execute what was taken, and what follows from it (receiver of ``task_postrun``)."""
        if self._is_working or (self._next is None and self._end is None):
            # The step that runs ahead has ended: what follows is done by the loop below, and not in here.
            return
        self._is_working = True
        hostname = current_task.request.hostname if current_task else None
        try:
            while self._next is not None or self._end is not None:
                if self._end is not None:
                    ending, self._end = self._end, None
                    self._deliver(Begun(ending), self._request, hostname)
                elif self._next is not None:
                    (message, claim), self._next = self._next, None
                    self._execute(message, Begun(claim), hostname)
        finally:
            self._is_working, self._until = False, None
            if self._end is not None:
                ending, self._end = self._end, None
                self.binding.engine.cancel_delivery(ending)
            if self._next is not None:
                (_, claim), self._next = self._next, None
                self._give_back(claim)

    def _execute(self, message: StepMessage, begun: Begun[Claim], hostname: str | None) -> None:
        dispatcher, key = self.binding.dispatcher, str(message.key)
        task: Any = self.binding.app.tasks[message.scheduled.task]
        try:
            args, kwargs, queue = self._call
            request = {**dispatcher.request(message, args, kwargs, queue), CLAIM: begun, "hostname": hostname}
            kin = {"root_id": request["root_id"], "parent_id": request["parent_id"], "retries": 0}
            call = {"name": task.name, "args": request["argsrepr"], "kwargs": request["kwargsrepr"]}
            _log.info("Task %s[%s] runs ahead", task.name, key)
            if self._tells_sent:
                self._tell(hostname, "task-sent", uuid=key, **kin, **call, queue=queue, exchange="", routing_key=queue)
            tell = self._teller(hostname, uuid=key, **kin)
            tell("task-received", **call)
            tell("task-started")
            _trace(task, request, (args, kwargs), tell)
        finally:
            if not begun.is_taken:
                self._give_back(begun.what)

    def _give_back(self, claim: Claim) -> None:
        engine = self.binding.engine
        engine.patience.later(
            lambda: engine.store.postpone(claim.key, claim.owner, delay=0.0, error="it could not run ahead"), now=True
        )

    def _deliver(self, begun: Begun[Ending], request: dict[str, Any], hostname: str | None) -> None:
        try:
            task: Any = self.binding.app.tasks[request["task"]]
            tell = self._teller(hostname, uuid=request["id"])
            call = request["args"], request["kwargs"]
            _trace(task, {**request, "hostname": hostname, ENDING: begun}, call, tell, **took(request[HEADER]))
        finally:
            if not begun.is_taken:
                self.binding.engine.cancel_delivery(begun.what)

    def _teller(self, hostname: str | None, **fields: Any) -> Callable[..., None]:
        """Return what sends the events of a task that monitors know from its worker's main process."""
        if not self.binding.sends_events:
            return lambda *_, **__: None

        def tell(kind: str, **more: Any) -> None:
            self._tell(hostname, kind, **fields, **more)

        return tell

    def _tell(self, hostname: str | None, kind: str, **fields: Any) -> None:
        with self.binding.app.events.default_dispatcher(hostname=hostname) as dispatcher:
            dispatcher.send(kind, **fields)

    def _is_consumed(self, message: StepMessage) -> bool:
        """Tell whether this worker would get the message as well as any other, with its arguments in plain."""
        app, codec = self.binding.app, self.binding.codec
        if codec.hides or codec.is_reference(message.scheduled.payload):
            return False
        try:
            self._call = self.binding.dispatcher.call(message)
        except Exception:  # noqa: BLE001 - a user's codec or router: who publishes the message tells of it
            return False
        queue = app.amqp.queues.consume_from.get(self._call[-1])
        # If one consumer gets them all, that need not be this worker.
        return queue is not None and not has_one_consumer(queue)


def _trace(task: Any, request: dict[str, Any], call: tuple[Any, Any], tell: Callable[..., None], **ends: float) -> None:
    """Execute a task as a pool process does, and tell how it ended as the main process would."""
    args, kwargs = call
    with _alone(task.request_stack):
        retval, info, runtime, text = task.__trace__(request["id"], args, kwargs, request)
    if info is None:
        tell("task-succeeded", **{"result": text, "runtime": runtime, **ends})
    elif info.state in _EVENTS:
        error = {"exception": saferepr(info.retval), "traceback": str(getattr(retval, "traceback", ""))}
        tell(_EVENTS[info.state], **error, **ends)


@contextmanager
def _alone(requests: Any) -> Generator[None]:
    """Take away a task's requests for a while: the task that is over may be of the same name.

    In a worker Celery hands a task a copy of a request that is not the only one, and what is noted on it were lost.
    """
    before = [requests.pop() for _ in range(len(requests))]
    try:
        yield
    finally:
        for request in reversed(before):
            requests.push(request)


def _is_receiving_watched() -> bool:
    """Tell whether somebody would miss the signals of messages that were not received."""
    return any(not hasattr(receiver, OURS) for _, receiver in signals.task_received.receivers or ())


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
