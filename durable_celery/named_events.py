"""Named events, as they are carried out: the workflow that stands for one, its steps, and publishing from outside.

Invariant: an event has one value, that of the first publication, for it is one signal with one key. A waiter hears of
it twice over: from the event's run, with which it leaves its key before it looks for the last time, and by looking
again by itself. So a message between the two that comes too late, or never, costs time and nothing else.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery import shared_task

from durable_celery.app import binding_of
from durable_celery.codec import place_of
from durable_celery.current import current_step
from durable_celery.decorator import durable_task
from durable_celery.dispatch import header_of
from durable_celery.errors import (
    DurableError,
    EventCancelledError,
    EventConflictError,
    InboxFullError,
    WorkflowCancelled,
    WorkflowClosedError,
    WorkflowConflictError,
    WorkflowNotFoundError,
)
from durable_celery.events import RunCompleted, SignalReceived, StepCompleted
from durable_celery.outside import current_app
from durable_celery.store.protocol import StepKey
from durable_celery.workflow.named_events import EVENT, EVENT_PREFIX, PUBLISH, TELL, UNTIL_DONE, WAIT, event_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from celery import Celery, Task

    from durable_celery.client import Client
    from durable_celery.store.protocol import RunRecord
    from durable_celery.workflow import AsyncWorkflowContext

__all__ = ["NamedEvent", "NotPublishedError", "event", "publish_event"]

#: Names of the two signals that the run of an event takes.
_PUBLISHED, _WAITER = "published", "waiter"
#: How many waiters are told by one step.
_BATCH = 500
#: How many characters of waiters' keys go along to the event's next run; the limit of its arguments is far from that.
_CARRIED = 400_000


class NotPublishedError(DurableError):
    """An event is not published yet; who waits for it looks again later."""


def publish_event(name: str, value: object = None, *, app: Celery | None = None) -> bool:
    """Publish a named event: all runs that wait for it go on, and so do those that come to wait for it later.

    It is published once. To repeat the call is harmless; what was published can still be awaited for
    ``durable_retention``. (client, step)

    Args:
        name: its name: up to 241 printable ASCII characters without spaces and braces.
        value: what those who wait for it get.
        app: the Celery app, if it is neither the current one nor the only one of the process.

    Returns:
        Whether this is the publication. False: it was published before, with the same value.

    Raises:
        EventConflictError: it was published with another value, which stands, or was cancelled.
        InvalidRequestError, PayloadError: the name or the value cannot be one; nothing was written.
        ConfigurationError: it is not clear which app is meant.
        StoreUnavailableError: no answer from the store; repeat it.
    """
    return _event_of(app or current_app(), name).publish(value)


class NamedEvent:
    """A named event, as a client sees it."""

    def __init__(self, name: str, client: Client, start: Callable[[str], object]) -> None:
        """Name one; ``start`` starts the run with this id that stands for it, and is called if there is none.

        Raises:
            InvalidRequestError: the name cannot be one.
        """
        self.name, self.id = name, event_id(name)
        self.client, self._start = client, start

    def run(self) -> RunRecord:
        """Return the run that stands for it, which is made if it is not there.

        Raises:
            WorkflowConflictError: a run of another workflow has its id.
        """
        record = self.client.store.get(self.id)
        if record is None:
            self._start(self.id)
            record = self.client.describe(self.id)
        if record.name != EVENT:
            raise WorkflowConflictError(self.id, record.name, EVENT)
        return record

    def wait(self, key: str) -> Any:
        """Return its value to the step with this key.

        Raises:
            NotPublishedError: it is not there yet. The step is given its outcome when it is, or looks again later.
            EventCancelledError: it will not be published.
        """
        if not self.run().status.is_closed:
            self._subscribe(key)
        # It may have been published between the two.
        if not self.run().status.is_closed:
            raise NotPublishedError(f"event {self.name} is not published yet")
        end = self.client.ending(self.id)
        if end is not None and isinstance(end.event, RunCompleted):
            return self.client.outcome(end.event, self.id)
        raise EventCancelledError(self.name)

    def publish(self, value: object) -> bool:
        """See :func:`publish_event`."""
        client = self.client
        signal, key = client.signal_event(self.id, _PUBLISHED, value, _PUBLISHED, workflow=EVENT)
        self.run()
        try:
            # It has a place in any inbox, however many wait in it.
            if client.add(self.id, signal, key, room=0):
                return True
        except (WorkflowClosedError, WorkflowNotFoundError):
            # It has been, perhaps so long ago that only the archive knows of it.
            pass
        stands = self._text()
        if stands is None:
            raise EventConflictError(self.name, "was cancelled, and is not published")
        if stands != client.codec.open(signal.payload, place_of(signal, self.id)):
            raise EventConflictError(self.name, "was published with another value, which stands")
        return False

    def _text(self) -> str | None:
        """Return the value that was published, as JSON text, or None."""
        for item in self.client.history(self.id):
            event = item.event
            if isinstance(event, SignalReceived) and event.name == _PUBLISHED:
                return self.client.codec.open(event.payload, place_of(event, self.id))
        return None

    def _subscribe(self, key: str) -> None:
        """Let a step hear of it; where there is no room for that now, it asks again."""
        signal, known_by = self.client.signal_event(self.id, _WAITER, key, key, workflow=EVENT)
        with suppress(InboxFullError, WorkflowClosedError, WorkflowNotFoundError):
            self.client.add(self.id, signal, known_by)

    def tell(self, keys: Iterable[str], *, is_cancelled: bool) -> None:
        """Give waiting steps their outcome; those that have gone, or have it, take none."""
        engine, codec, text = self.client.engine, self.client.codec, self._text()
        for key in filter(None, map(StepKey.parse, keys)):
            if is_cancelled:
                engine.revoke_step(key, EventCancelledError(self.name))
            elif text is not None:
                payload = codec.seal(text, key.place("outcome"))
                engine.tell_step(key, StepCompleted(number=key.number, attempt=0, payload=payload))


# -- the steps of those who publish and wait ---------------------------------------------------------------------------


@shared_task(name=PUBLISH, bind=True)
def publish(self: Task, name: str, value: Any = None) -> None:
    """Publish an event (step)."""
    _event_of(self.app, name, _queue_of(self)).publish(value)


@shared_task(name=WAIT, bind=True)
def wait(self: Task, name: str) -> Any:
    """Return the value of an event; see :meth:`NamedEvent.wait` (step)."""
    step = current_step()
    if step is None:
        raise DurableError(f"{WAIT} is for ctx.wait_event in a workflow, and is not called by itself")
    return _event_of(self.app, name, _queue_of(self)).wait(step.key)


def _event_of(app: Celery, name: str, queue: str | None = None) -> NamedEvent:
    """Return an event of an app; ``queue`` is that of its run if it is not there yet, else the app's routes say it."""
    options = {"queue": queue} if queue else {}

    def start(workflow_id: str) -> None:
        app.tasks[EVENT].apply_async(task_id=workflow_id, root_id=workflow_id, add_to_parent=False, **options)

    return NamedEvent(name, binding_of(app).client, start)


def _queue_of(task: Task) -> str | None:
    """Return the queue of the workflow that called a step: who serves that can also serve the event."""
    queue = (header_of(task.request) or {}).get("queue")
    return queue if queue in task.app.amqp.queues else None


# -- the run of an event -----------------------------------------------------------------------------------------------


async def event(ctx: AsyncWorkflowContext, /, waiting: list[str] | None = None) -> Any:
    """Wait for the publication, tell those who wait, and end with what was published."""
    waiters = dict.fromkeys(waiting or ())
    try:
        while True:
            first = await ctx.race(published=ctx.signal(_PUBLISHED), waiter=ctx.signal(_WAITER))
            if first.name == "published":
                break
            waiters[str(first.value)] = None
            if ctx.info.continue_as_new_suggested:
                ctx.continue_as_new(_newest(waiters))
    except WorkflowCancelled:
        await _tell_all(ctx, waiters, is_cancelled=True)
        raise
    with suppress(WorkflowCancelled):
        # Whoever cancels it now is too late.
        await ctx.shield(ctx.spawn(_tell_all, waiters, is_cancelled=False))
    return first.value


async def _tell_all(ctx: AsyncWorkflowContext, waiters: dict[str, None], *, is_cancelled: bool) -> None:
    while True:
        late = ctx.signal(_WAITER)
        if late.done():
            waiters[str(late.result())] = None
            continue
        late.cancel()
        if not waiters:
            return
        batch = list(waiters)[:_BATCH]
        await ctx.options(retry=UNTIL_DONE, name="tell those who wait").step(TELL, batch, is_cancelled=is_cancelled)
        for key in batch:
            del waiters[key]


#: Nobody asks Celery for its result: it is in the log.
durable_task(name=EVENT, ignore_result=True)(event)


def _newest(waiters: dict[str, None]) -> list[str]:
    """Return the keys that go along to the next run. Those before them hear when they look by themselves."""
    kept, room = [], _CARRIED
    for key in reversed(waiters):
        room -= len(key)
        if room < 0:
            break
        kept.append(key)
    return kept[::-1]


@shared_task(name=TELL, bind=True)
def tell(self: Task, keys: list[str], *, is_cancelled: bool) -> None:
    """Give those who wait for an event their outcome (step of the event's run)."""
    step = current_step()
    if step is None:
        raise DurableError(f"{TELL} is a step of the run of an event, and is not called by itself")
    _event_of(self.app, step.workflow_id.removeprefix(EVENT_PREFIX)).tell(keys, is_cancelled=is_cancelled)
