"""Named events, as workflow code says them: published once, awaited by many runs, by those that come later too.

An event is a run of the library's own workflow, whose id follows from the name, and whose end is the publication. To
wait is a step that looks: if the event is not there it leaves its key with that run, which gives it its outcome when
the time comes. So events need nothing that steps, signals and runs have not got.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from durable_celery.codec import ID_LIMIT, RESERVED, check_id
from durable_celery.errors import InvalidIdError, InvalidRequestError
from durable_celery.policy import RetryPolicy, seconds
from durable_celery.workflow.handles import StepHandle
from durable_celery.workflow.machine import Machine
from durable_celery.workflow.tasks import CallOptions
from durable_celery.workflow.verbs import within

__all__ = [
    "EVENT",
    "EVENT_PREFIX",
    "PUBLISH",
    "TELL",
    "UNTIL_DONE",
    "WAIT",
    "event",
    "event_id",
    "publish_event",
    "wait_event",
]

#: Names of the workflow and of the three tasks, which :mod:`durable_celery.named_events` registers.
EVENT, PUBLISH = "durable_celery.event", "durable_celery.event_publish"
WAIT, TELL = "durable_celery.event_wait", "durable_celery.event_tell"
#: What the ids of their runs begin with.
EVENT_PREFIX = f"{RESERVED}event:"
#: A worker may be older than this library's release, or on its way to it.
_AWAY = ("durable_celery.errors.StoreUnavailableError", "celery.exceptions.NotRegistered")
#: Policy of steps that write, and can only be kept from it by what is away.
UNTIL_DONE = RetryPolicy(maximum_attempts=0, maximum_interval=60.0, retryable=_AWAY)
#: The event tells its waiters. They look by themselves as well, for the few that it cannot know of.
_UNTIL_PUBLISHED = RetryPolicy(
    initial_interval=10.0,
    maximum_interval=3600.0,
    maximum_attempts=0,
    retryable=("durable_celery.named_events.NotPublishedError", *_AWAY),
)


def event_id(name: str) -> str:
    """Return the id of the run that stands for an event.

    Raises:
        InvalidRequestError: the name cannot be one.
    """
    given: object = name
    try:
        if isinstance(given, str) and given:
            return check_id(f"{EVENT_PREFIX}{given}")
    except InvalidIdError:
        pass
    limit = ID_LIMIT - len(EVENT_PREFIX)
    raise InvalidRequestError(
        f"{str(name)[:80]!r} cannot be the name of an event: it takes 1 to {limit} printable ASCII characters without "
        "spaces and braces"
    )


def event(machine: Machine, name: str, options: CallOptions) -> StepHandle[Any]:
    """Return a handle that is done when an event is published, or was."""
    event_id(name)
    options = replace(options, retry=_UNTIL_PUBLISHED, name=options.name or f"event {name}")
    return machine.start_step(WAIT, (name,), {}, options)


async def wait_event(
    machine: Machine,
    name: str,
    options: CallOptions,
    timeout: timedelta | float | None,  # noqa: ASYNC109 - the verb
) -> Any:
    """Wait for an event and return its value.

    Raises:
        WaitTimeoutError: it was not published within ``timeout``.
        EventCancelledError: it will not be.
    """
    limit = None if timeout is None else seconds(timeout)
    return await within(machine, event(machine, name, options), limit, f"no event {name!r} was published")


def publish_event(machine: Machine, name: str, value: object, options: CallOptions) -> StepHandle[None]:
    """Start the step that publishes an event."""
    event_id(name)
    options = replace(options, retry=UNTIL_DONE, name=options.name or f"publish event {name}")
    return machine.start_step(PUBLISH, (name, value), {}, options)
