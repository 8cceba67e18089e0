"""Rows of monitors that Celery would leave open: ends of steps that no worker saw are told at the end of their run.

Celery sends a task's last event from the worker that executes it. A step that was cancelled, timed out or given up
while its worker was killed has no such event, and its row in Flower would stay STARTED for ever. An event too many does
no harm: a SUCCESS or FAILURE that a monitor has seen stands.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError

from durable_celery.codec import HIDDEN, place_of, rebuild
from durable_celery.errors import CodecError, StepLostError, StepTimeoutError, StoreUnavailableError
from durable_celery.events import CommandCancelled, StepCompleted, StepFailed, StepScheduled
from durable_celery.store.protocol import StepKey

if TYPE_CHECKING:
    from collections.abc import Iterable

    from durable_celery.app import Binding
    from durable_celery.events import Recorded
    from durable_celery.store.protocol import RunRecord

__all__ = ["close_rows", "unseen_ends"]

_log = logging.getLogger(__name__)
#: Outcomes that the library records by itself, while nobody executes the step.
_UNSEEN = (StepLostError, StepTimeoutError)


def close_rows(binding: Binding, run: RunRecord, hostname: str | None) -> None:
    """Send the last events of a closed run's steps that no worker has sent.

    Called in a worker, before the end is delivered. Repeating it is harmless.
    """
    try:
        ends = unseen_ends(binding, run, binding.client.history(run.workflow_id, run.run))
        if not ends:
            return
        with binding.app.events.default_dispatcher(hostname=hostname) as dispatcher:
            for step, kind, fields in ends:
                key = StepKey(workflow_id=run.workflow_id, run=run.run, number=step.number)
                dispatcher.send(kind, uuid=str(key), name=step.task, parent_id=run.workflow_id, **fields)
    except (CodecError, StoreUnavailableError, OperationalError, OSError) as error:
        # What people see must not stand in the way of the end itself.
        _log.warning("open rows of %s were not closed: %s", run.workflow_id, error)


def unseen_ends(
    binding: Binding, run: RunRecord, history: Iterable[Recorded]
) -> list[tuple[StepScheduled, str, dict[str, Any]]]:
    """Return the steps whose end no worker saw, each with the type and the fields of its event."""
    steps: dict[int, StepScheduled] = {}
    ends: dict[int, tuple[str, dict[str, Any]]] = {}
    for item in history:
        match item.event:
            case StepScheduled(kind="task"):
                steps[item.event.number] = item.event
            case CommandCancelled(target=number) if number in steps:
                ends[number] = ("task-revoked", {"terminated": False, "signum": None, "expired": False})
            case StepFailed(number=number) if number in steps:
                error = rebuild(item.event.payload, binding.codec, place_of(item.event, run.workflow_id, run.run))
                if isinstance(error, _UNSEEN) or item.event.attempt == 0:
                    words = f"{type(error).__name__}{HIDDEN}" if binding.codec.hides else repr(error)
                    ends[number] = ("task-failed", {"exception": words, "traceback": ""})
            case StepCompleted(number=number, attempt=0) if number in steps:
                # Told from outside: the worker that began it has said nothing of its end.
                ends[number] = ("task-succeeded", {"result": "", "runtime": 0.0})
            case StepCompleted(number=number):
                ends.pop(number, None)
            case _:
                pass
    return [(steps[number], *end) for number, end in ends.items()]
