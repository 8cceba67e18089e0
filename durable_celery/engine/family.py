"""Parents and children: a step that is a durable task is a run of its own: started, cancelled, and reporting back.

The child's workflow id is the step's key, or the one that the parent's code chose, so that everything here may be
repeated. The parent's agenda entry stays until the child was told; the child's end is reported before each try to
deliver it.

Invariant: a child belongs to one step. A run that has the chosen id and was started by anybody else, be it with the
same arguments, is neither waited for nor cancelled.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from durable_celery.codec import Codec, Place, failure_of, place_of
from durable_celery.engine.starting import start_run
from durable_celery.errors import ChildCancelledError, WorkflowClosedError, WorkflowConflictError
from durable_celery.events import CancelRequested, RunCancelled, RunCompleted, StepCompleted, StepFailed
from durable_celery.store.protocol import NewRun, RunMessage, Started, StepKey, StepMessage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from durable_celery.engine.ports import Dispatcher
    from durable_celery.engine.turn import Ending
    from durable_celery.events import StepScheduled
    from durable_celery.store.protocol import Store

__all__ = ["Family", "child_id", "is_for_family"]

_log = logging.getLogger(__name__)
#: Seconds until a run begins that is written only to be cancelled: it never does.
_NEVER = 10 * 365 * 86400.0


def is_for_family(message: RunMessage | StepMessage) -> bool:
    """Tell whether a message is no Celery message, but something to be told to a child run."""
    return isinstance(message, StepMessage) and (message.cancel or message.scheduled.kind == "workflow")


def child_id(scheduled: StepScheduled, key: StepKey) -> str:
    """Return the workflow id of the child run that a step asks for."""
    chosen = (scheduled.options or {}).get("workflow_id")
    return str(key) if chosen is None else str(chosen)


class Family:
    """Starts and cancels child runs, and reports their ends to their parents."""

    def __init__(self, store: Store, dispatcher: Dispatcher, codec: Codec) -> None:
        """Join the parts."""
        self.store, self.dispatcher, self.codec = store, dispatcher, codec

    def tell(self, message: StepMessage) -> Iterator[RunMessage | None]:
        """Start or cancel the child run of a step, and note that it was told; give the messages to be published."""
        if message.cancel:
            yield self._cancel(message)
        else:
            yield self._start(message)
        self.store.settle(message.key, cancel=message.cancel)
        _log.debug("child run %s was told (%s)", message.key, message.scheduled.task)

    def report(self, ending: Ending) -> RunMessage | None:
        """Record a child's end as the outcome of its parent's step; give the message that wakes the parent."""
        parent = StepKey.parse(ending.run.parent or "")
        if parent is None:
            return None
        place = parent.place("outcome")
        payload = self.codec.reseal(
            ending.event.payload or "null", place_of(ending.event, ending.run.workflow_id, ending.run.run), place
        )
        outcome: StepCompleted | StepFailed = StepFailed(number=parent.number, payload=payload)
        if isinstance(ending.event, RunCompleted):
            outcome = StepCompleted(number=parent.number, payload=payload)
        elif isinstance(ending.event, RunCancelled):
            # In the parent's code the child's own WorkflowCancelled would look like a cancellation of the parent.
            error = ChildCancelledError(f"child run {ending.run.workflow_id} ({ending.run.name}) was cancelled")
            outcome = StepFailed(number=parent.number, payload=failure_of(error, self.codec, place))
        return self.store.finish(parent, outcome, token=None).message

    def _start(self, message: StepMessage) -> RunMessage | None:
        try:
            return self._start_child(message).message
        except WorkflowConflictError as error:
            payload = failure_of(error, self.codec, message.key.place("outcome"))
            outcome = StepFailed(number=message.key.number, payload=payload)
            return self.store.finish(message.key, outcome, token=None).message

    def _cancel(self, message: StepMessage) -> RunMessage | None:
        """Cancel a child, or see to it that it never begins.

        A start may still be on its way in another process. So the child is written here if it is not there yet, as a
        run that never begins; the start then finds it, cancelled.
        """
        reason = f"cancelled by its parent {message.key.workflow_id}"
        try:
            self._start_child(message, delay=_NEVER)
            child = child_id(message.scheduled, message.key)
            return self.store.append(child, CancelRequested(reason=reason), key="parent").message
        except (WorkflowConflictError, WorkflowClosedError):
            # Somebody else's run has the id, or the child is at its end: nothing is left to cancel.
            return None

    def _start_child(self, message: StepMessage, *, delay: float = 0.0) -> Started:
        """Start a child with its arguments, which are bound to the parent's step until then."""
        scheduled, key = message.scheduled, message.key
        child = child_id(scheduled, key)
        place = Place(child, "start")
        text = self.codec.open(scheduled.payload or "[[],{}]", key.place("call"))
        new = NewRun(
            workflow_id=child,
            name=scheduled.task,
            version=(scheduled.options or {}).get("version", 1),
            payload=self.codec.seal(text, place),
            digest="",
            envelope=self.dispatcher.child_envelope(message),
            parent=str(key),
            delay=delay,
        )
        # A chosen id may be taken by a run with the same arguments that is not ours: so whose it is counts as well.
        identity = text if child == str(key) else f"[{text},{json.dumps(str(key))}]"
        return start_run(self.store, new, self.codec.digests(identity, place))
