"""Foreign tasks: Celery tasks of a service that does not import this library, with their outcome taken from Celery.

One is done by two steps of this app: the first publishes a plain Celery message, whose id follows from the step's key,
so that a repeat is the same task to whoever looks at ids; the second asks the result backend until the outcome is
there. The waits between are those of a retry, in the agenda, so they hold no worker and leave nothing in the history.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import count
from typing import Any

from durable_celery.errors import InvalidRequestError, StepTimeoutError
from durable_celery.policy import RetryPolicy, seconds, wait_after
from durable_celery.workflow.handles import Handle
from durable_celery.workflow.machine import Machine
from durable_celery.workflow.tasks import CallOptions
from durable_celery.workflow.verbs import sleep, spawned

__all__ = ["OUTCOME", "SEND", "ForeignTask", "start"]

#: Names of the two tasks, which :mod:`durable_celery.foreign` registers.
SEND, OUTCOME = "durable_celery.foreign_send", "durable_celery.foreign_outcome"
#: A worker may be older than this library's release, or on its way to it.
_UNKNOWN_HERE = "celery.exceptions.NotRegistered"
#: While the broker is away, it is sent later; anything else is a mistake.
_UNTIL_SENT = RetryPolicy(
    maximum_attempts=0, maximum_interval=60.0, retryable=("kombu.exceptions.OperationalError", "OSError", _UNKNOWN_HERE)
)
#: How often the result backend is asked: soon at first, then every half minute.
_UNTIL_KNOWN = RetryPolicy(
    initial_interval=0.5,
    backoff_coefficient=1.5,
    maximum_interval=30.0,
    maximum_attempts=0,
    retryable=("durable_celery.foreign.NotYetError", _UNKNOWN_HERE),
)


@dataclass(frozen=True, slots=True)
class ForeignTask:
    """A Celery task, by name, of a service that does not import this library.

    ``ctx.step(ForeignTask("billing.charge", queue="billing"), order)`` runs it, at least once.
    Its result is read from this app's result backend, which has to be the one of that service.

    Raises:
        InvalidRequestError: a value cannot be meant.
    """

    name: str
    #: Where its message goes; None: where this app's own routes send it.
    queue: str | None = None
    #: Seconds, or a timedelta, without an outcome after which the message is sent again, under the same id. None:
    #: never; then a message that the broker loses is waited for until the step's timeout.
    resend_after: timedelta | float | None = None

    #: Other verbs than ``step`` and ``start`` would take it for a task of this app.
    is_foreign = True

    def __post_init__(self) -> None:
        given: object = self.name
        if not isinstance(given, str) or not given:
            raise InvalidRequestError(f"a foreign task has a name, not {given!r}")
        if self.resend_after is not None and not seconds(self.resend_after):
            raise InvalidRequestError("resend_after=0 sends without end; leave it out to send once")


def start(
    machine: Machine, task: ForeignTask, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions
) -> Handle[Any]:
    """Start a foreign task beside the code that called this."""
    machine.check()
    options.check_kind(task.name, "task")
    machine.codec.dumps([list(args), kwargs], f"the arguments of foreign task {task.name}")
    return spawned(machine, _outcome(_Calling(machine, task, args, kwargs, options)))


async def _outcome(calling: _Calling) -> Any:
    """Return the result, or raise the failure; with a retry policy a failed task is sent anew, under another id."""
    machine, policy = calling.machine, calling.options.retry
    for attempt in count(1):
        try:
            return await calling.once()
        except Exception as error:
            wait = None if calling.is_late else wait_after(policy, error, attempt, machine.random.random)
            if machine.at_rest or machine.fault or wait is None:
                raise
        await sleep(machine, wait)
    raise AssertionError  # pragma: no cover - count() does not end


class _Calling:
    """One call of a foreign task, with its deadline."""

    def __init__(
        self,
        machine: Machine,
        task: ForeignTask,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CallOptions,
    ) -> None:
        self.machine, self.task, self.options = machine, task, options
        self.call = [task.name, [list(args), kwargs], self._message()]
        limit = options.timeout
        #: When the time is up (ms since 1970), or None.
        self.deadline = None if limit is None else machine.now + round(limit * 1000)

    def _message(self) -> dict[str, Any]:
        """Return the options with which the message is published."""
        given = {"queue": self.options.queue or self.task.queue, "priority": self.options.priority}
        return {key: value for key, value in given.items() if value is not None}

    @property
    def is_late(self) -> bool:
        return self.deadline is not None and self.machine.now >= self.deadline

    async def once(self) -> Any:
        """Send it and wait for the outcome; where that was asked for, send it again meanwhile."""
        task_id = await self._step(SEND, *self.call)
        patience = self.task.resend_after
        while True:
            try:
                return await self._step(OUTCOME, task_id, limit=None if patience is None else seconds(patience))
            except StepTimeoutError:
                if patience is None or self.is_late:
                    raise
            await self._step(SEND, *self.call, task_id)

    async def _step(self, name: str, *args: Any, limit: float | None = None) -> Any:
        left = None if self.deadline is None else (self.deadline - self.machine.now) / 1000
        if left is not None and left <= 0:
            raise StepTimeoutError(f"foreign task {self.task.name} did not end within {self.options.timeout:g} s")
        limits = [each for each in (left, limit) if each is not None]
        label = self.options.name or self.task.name
        options = replace(
            CallOptions(),
            retry=_UNTIL_SENT if name == SEND else _UNTIL_KNOWN,
            timeout=min(limits, default=None),
            name=label if name == SEND else f"{label} (outcome)",
        )
        return await self.machine.start_step(name, args, {}, options)
