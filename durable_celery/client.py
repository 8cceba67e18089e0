"""The caller's verbs: signal, cancel, look, wait.

Everything here reads and writes the store; messages are published after. A handle works without a result backend,
because the end of a run is in its history.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from uuid import uuid4

from celery import states
from celery.exceptions import TaskRevokedError
from celery.exceptions import TimeoutError as CeleryTimeoutError

from durable_celery.callbacks import CallbackVerbs
from durable_celery.codec import Place, check_id, check_name, check_own_name, place_of, rebuild
from durable_celery.engine.outside import Outside
from durable_celery.errors import ExternalError, PayloadError, WorkflowClosedError, WorkflowNotFoundError
from durable_celery.events import (
    CancelRequested,
    RunCancelled,
    RunCompleted,
    RunContinued,
    SignalReceived,
    TerminalEvent,
)
from durable_celery.offsets import Offset
from durable_celery.outbox import Post, signal_entry
from durable_celery.store.protocol import RunStatus
from durable_celery.workflow.typed_signal import Signal, signal_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from durable_celery.codec import Codec
    from durable_celery.engine import Engine
    from durable_celery.events import Event, Recorded
    from durable_celery.store.protocol import RunPage, RunRecord, Store

__all__ = ["STATES", "Client", "read_history"]

R = TypeVar("R")
T = TypeVar("T")

#: What Celery calls the statuses of a run. BLOCKED is a state of this library.
STATES = {
    RunStatus.PENDING: states.PENDING,
    RunStatus.RUNNING: states.STARTED,
    RunStatus.BLOCKED: "BLOCKED",
    RunStatus.COMPLETED: states.SUCCESS,
    RunStatus.FAILED: states.FAILURE,
    RunStatus.CANCELLED: states.REVOKED,
}
_FIRST_LOOK, _LAST_LOOK = 0.005, 0.25
#: Seconds between two looks of who would hear of what it waits for.
_SELDOM = 2.0
#: Longest reason of a cancel, in characters.
_REASON_LIMIT = 1000


class Ear(Protocol):
    """Waits for a hint that a run has ended."""

    @property
    def listens(self) -> bool:
        """Whether there would be one."""
        ...

    def rest(self, seconds: float) -> None:
        """Wait for it, for so many seconds at most."""
        ...


class _Deaf:
    """The ear for a store that tells nothing."""

    listens = False

    def rest(self, seconds: float) -> None:
        time.sleep(seconds)


_DEAF = _Deaf()


@dataclass(frozen=True, slots=True, kw_only=True)
class Client(CallbackVerbs):
    """Verbs on runs, by workflow id; on callbacks, by token."""

    store: Store
    engine: Engine
    codec: Codec
    #: How many inputs may wait for a run's next turn before a signal is refused; 0: any number.
    inbox_limit: int = 0
    #: What the workflows of this process say that they take: by their names, then by those of the signals.
    declared: Callable[[], Mapping[str, Mapping[str, Signal[Any]]]] = dict
    #: Takes what is to be part of a transaction of the caller's database.
    post: Post = field(default_factory=lambda: Post(is_relayed=False, prefix="durable"))

    def signal(
        self, workflow_id: str, name: Signal[Any] | str, value: object = None, *, key: str | None = None
    ) -> None:
        """Send a signal; it is kept until the workflow waits for it.

        Args:
            workflow_id: the run.
            name: which signal: a :class:`Signal`, or its name.
            value: its payload.
            key: signals with the same key are one; give it where the call may be repeated.

        Raises:
            WorkflowNotFoundError: there is no such run.
            WorkflowClosedError: the run has ended.
            InvalidRequestError: the name or key cannot be one, or the workflow declares its signals and this is none of
                them; nothing was written.
            PayloadError: the value cannot be recorded, or is not of the signal's type; nothing was written.
            InboxFullError: the run has not taken in ``durable_inbox_limit`` earlier inputs; nothing was written.
        """
        self.add(workflow_id, *self.signal_event(workflow_id, name, value, key))

    def signal_event(
        self, workflow_id: str, name: Signal[Any] | str, value: object, key: str | None, *, workflow: str | None = None
    ) -> tuple[SignalReceived, str]:
        """Return the input that a signal is, and its key; see :meth:`signal`. Nothing is written.

        ``workflow`` names the run's workflow; None: the run says it.
        """
        check_id(workflow_id)
        key = uuid4().hex if key is None else check_name(key, "the key of a signal")
        signal = self._signal(workflow_id, name, workflow)
        event = SignalReceived(name=signal.name)
        payload = self.codec.seal(signal.dumps(value, self.codec), place_of(event, workflow_id))
        return replace(event, payload=payload), f"signal:{key}"

    def add(self, workflow_id: str, event: Event, key: str, *, room: int | None = None) -> bool:
        """Add an input, if there is room for it (None: ``inbox_limit``, 0: always); return whether it is new."""
        return self._append(workflow_id, event, key, room=self.inbox_limit if room is None else room)

    def post_signal(
        self,
        session: object,
        workflow_id: str,
        name: Signal[Any] | str,
        value: object = None,
        *,
        key: str | None = None,
    ) -> None:
        """Send a signal by a row in a transaction; see :meth:`WorkflowHandle.signal_in`."""
        run = self.store.get(check_id(workflow_id)) if self.declared() else None
        event, event_key = self.signal_event(workflow_id, name, value, key, workflow=run.name if run else "")
        self.post.add(session, signal_entry(workflow_id, event, event_key))

    def _signal(self, workflow_id: str, given: Signal[Any] | str, workflow: str | None) -> Signal[Any]:
        """Return the signal as the run's workflow declares it; the run is read only if some workflow here does."""
        name = given.name if isinstance(given, Signal) else check_own_name(given, "the name of a signal")
        if declared := self.declared():
            workflow = self.describe(workflow_id).name if workflow is None else workflow
            if takes := declared.get(workflow):
                return signal_for(name, takes, workflow)
        return given if isinstance(given, Signal) else Signal(name)

    def cancel(self, workflow_id: str, reason: str = "") -> None:
        """Ask a run to stop: ``WorkflowCancelled`` is raised where it waits, and its clean-up code runs.

        Repeating it, and cancelling a cancelled run, is harmless.

        Raises:
            WorkflowNotFoundError: there is no such run.
            WorkflowClosedError: the run has ended otherwise.
            PayloadError: the reason is too long; nothing was written.
        """
        if len(reason) > _REASON_LIMIT:
            msg = f"the reason of a cancel has {len(reason)} characters, the limit is {_REASON_LIMIT}"
            raise PayloadError(msg)
        words = self.codec.seal_words(reason, place_of(CancelRequested(), check_id(workflow_id)))
        try:
            self._append(workflow_id, CancelRequested(reason=words), f"cancel:{uuid4().hex}")
        except WorkflowClosedError as error:
            if error.status != RunStatus.CANCELLED:
                raise

    def complete_step(self, token: str, result: object = None) -> None:
        """Give the result of a step that leaves its outcome to others (``raise current_step().complete_later()``).

        A step has exactly one outcome. It may be given as soon as an attempt has begun; giving the same result again is
        harmless.

        Args:
            token: the step's idempotency key, ``current_step().key``. It is no secret: check who calls.
            result: what the step returns to its workflow.

        Raises:
            InvalidRequestError: this can be no token.
            WorkflowNotFoundError: there is no such run.
            StepNotOpenError: the step has another outcome, was cancelled, or never began.
            PayloadError: the result cannot be recorded; nothing was written.
        """
        Outside(self.engine).complete(token, result)

    def fail_step(self, token: str, error: BaseException | str) -> None:
        """Let a step fail from outside, for good, whatever its retry policy says; else as :meth:`complete_step`.

        Args:
            token: the step's idempotency key.
            error: what is raised in the workflow; a text makes an :class:`ExternalError`.
        """
        Outside(self.engine).fail(token, ExternalError(error) if isinstance(error, str) else error)

    def heartbeat_step(self, token: str, progress: object = None) -> bool:
        """Say that somebody still works at a step that waits, which starts its ``heartbeat_timeout`` anew.

        Args:
            token: the step's idempotency key.
            progress: what a next attempt finds in ``current_step().progress``; None leaves what is there.

        Returns:
            Whether it was taken. An attempt that still runs, or is about to, gives its own heartbeats.

        Raises:
            InvalidRequestError, WorkflowNotFoundError, StepNotOpenError, PayloadError: as for :meth:`complete_step`.
        """
        return Outside(self.engine).beat(token, progress)

    def describe(self, workflow_id: str) -> RunRecord:
        """Return the state of a run with its open steps.

        Raises:
            WorkflowNotFoundError: there is no such run.
        """
        record = self.store.get(check_id(workflow_id))
        if record is None:
            raise WorkflowNotFoundError(workflow_id)
        return record

    def legible(self, record: RunRecord) -> RunRecord:
        """Return a record with its reason and its steps' errors opened, as far as this process has the keys."""
        reason = self.codec.legible(record.reason, Place(record.workflow_id, "reason", run=record.run))
        steps = []
        for step in record.steps:
            place = Place(record.workflow_id, "error", step.number, record.run)
            saved = place._replace(kind="progress")
            steps.append(
                replace(
                    step,
                    error=step.error and self.codec.legible(step.error, place),
                    progress=step.progress and self.codec.legible(step.progress, saved),
                )
            )
        return replace(record, reason=reason, steps=tuple(steps))

    def history(self, workflow_id: str, run: int | None = None) -> list[Recorded]:
        """Return the whole history of a run: the newest of the workflow, or the one with this number.

        Raises:
            WorkflowNotFoundError: there is no such run.
        """
        number = self.describe(workflow_id).run if run is None else run
        events = read_history(self.store, check_id(workflow_id), number)
        if not events:
            raise WorkflowNotFoundError(workflow_id, run)
        return events

    def runs(
        self,
        *,
        status: RunStatus | str | None = None,
        name: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> RunPage:
        """Return a page of runs, newest first."""
        wanted = None if status is None else RunStatus(status)
        return self.store.runs(status=wanted, name=name, cursor=cursor, limit=limit)

    def ending(self, workflow_id: str) -> Recorded | None:
        """Return the terminal event of a run, or None while it is open or unknown."""
        return self._end_of(self.store.get(check_id(workflow_id)))

    def wait(
        self, workflow_id: str, timeout: float | None, *, hopeless: Callable[[], bool] = lambda: False
    ) -> Recorded | None:
        """Wait for the end of a run, for up to ``timeout`` seconds; return its terminal event or None.

        While there is no such run, ``hopeless`` is asked at each look, and may end the wait.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _FIRST_LOOK
        record = self.store.get(check_id(workflow_id))
        if (end := self._end_of(record)) is not None:
            # Nothing has to be heard of.
            return end
        with self._ear(workflow_id) as ear:
            while True:
                left = pause if deadline is None else deadline - time.monotonic()
                if left <= 0 or (record is None and hopeless()):
                    return None
                ear.rest(min(pause, left))
                record = self.store.get(workflow_id)
                if (end := self._end_of(record)) is not None:
                    return end
                pause = _SELDOM if ear.listens and record is not None else min(pause * 1.1, _LAST_LOOK)

    def _ear(self, workflow_id: str) -> AbstractContextManager[Ear]:
        """Return what hears of the end of a run, where the store can tell of it."""
        hears: Any = getattr(self.store, "ear", None)
        found: AbstractContextManager[Ear] | None = hears(workflow_id) if hears else None
        return nullcontext(_DEAF) if found is None else found

    def follow(
        self, workflow_id: str, *, what: str, after: Offset, each: float | None = None, total: float | None = None
    ) -> Iterator[tuple[int, Recorded]]:
        """Yield the events after a place as they are recorded, each with its run's number, up to the workflow's end.

        Args:
            workflow_id: the workflow.
            what: what there is none of, for the error, as a sentence that goes on with the time.
            after: the place; logs of earlier runs that are not kept any more are passed over.
            each: how many seconds to wait for the next event; for ever, if it is not given.
            total: how many seconds to wait in all.

        Raises:
            celery.exceptions.TimeoutError: nothing came in time.
            WorkflowNotFoundError: there is no such run.
        """
        deadline = None if total is None else self.clock() + total
        while True:
            page = self.news(workflow_id, after, each if deadline is None else deadline - self.clock())
            if page is None:
                limit = each if total is None else total
                raise CeleryTimeoutError(f"{what} within {limit} s{self.standing(workflow_id)}")
            yield from ((after.run, item) for item in page)
            is_over = not page or isinstance(page[-1].event, RunContinued)
            if is_over and self.describe(workflow_id).run > after.run:
                after = Offset(after.run + 1, 0)
            elif not page or isinstance(page[-1].event, TerminalEvent):
                return
            else:
                after = Offset(after.run, page[-1].seq)

    def news(self, workflow_id: str, after: Offset, timeout: float | None) -> list[Recorded] | None:
        """Wait for events of a run after a place; none where there can be no more, None after ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _FIRST_LOOK
        while True:
            if events := self.store.history(check_id(workflow_id), run=after.run, after=after.seq):
                return events
            run = self.describe(workflow_id)
            if run.run > after.run:
                # It may have gone on as another run since the history was read.
                return self.store.history(workflow_id, run=after.run, after=after.seq)
            if run.status.is_closed and run.length <= after.seq:
                return []
            left = pause if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(pause, left))
            pause = min(pause * 1.1, _LAST_LOOK)

    def clock(self) -> float:
        """Return the time in seconds by which this client waits."""
        return time.monotonic()

    def standing(self, workflow_id: str) -> str:
        """Say for the end of a sentence why a run does not go on."""
        run = self.store.get(workflow_id)
        if run is None:
            return "; it was never started, or its retention has passed"
        match run.status:
            case RunStatus.BLOCKED:
                return f"; it is blocked: {self.legible(run).reason.partition(chr(10))[0]}"
            case RunStatus.PENDING:
                return "; no worker has begun it"
            case _:
                return f"; it waits for {run.waiting}" if run.waiting else ""

    def outcome(self, event: Event, workflow_id: str) -> Any:
        """Return the result of a terminal event, or the exception that it stands for.

        Raises:
            CodecError: its payload cannot be opened here.
        """
        place = place_of(event, workflow_id)
        if isinstance(event, RunCompleted):
            return self.codec.decode(event.payload, place)
        if isinstance(event, RunCancelled):
            return TaskRevokedError(f"workflow {workflow_id} was cancelled")
        return rebuild(event.payload, self.codec, place)

    def _end_of(self, record: RunRecord | None) -> Recorded | None:
        if record is None or not record.status.is_closed:
            return None
        return self.store.history(record.workflow_id, run=record.run, after=record.length - 1, limit=1)[0]

    def _append(self, workflow_id: str, event: Event, key: str, *, room: int = 0) -> bool:
        answer = self.store.append(check_id(workflow_id), event, key=key, room=room)
        self.engine.publish([answer.message])
        return answer.added


def read_history(store: Store, workflow_id: str, run: int) -> list[Recorded]:
    """Return all events of one run; none if there is no such run."""
    events: list[Recorded] = []
    while page := store.history(workflow_id, run=run, after=len(events)):
        events.extend(page)
    return events
