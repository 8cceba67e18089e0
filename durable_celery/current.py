"""The current step, as the code of a task sees it: which step it is, its heartbeats, how to leave its end to others.

A heartbeat is a call of the store, so most of them are only noted: what one saves is written at once if the last write
was long enough ago, else by a later heartbeat, or when the attempt ends without an outcome. Nothing here ends an
attempt; that is the business of :mod:`durable_celery.steps`.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery import current_task

from durable_celery.codec import Codec
from durable_celery.engine.progress import progress_text
from durable_celery.errors import CodecError, CompleteLater, StepCancelled, StoreUnavailableError
from durable_celery.store.protocol import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable_celery.engine import Engine
    from durable_celery.store.protocol import Claim

__all__ = ["Pulse", "StepInfo", "current_step"]

_log = logging.getLogger(__name__)
#: Longest wait between two writes of a task that beats all the time, in seconds. So soon it hears of a cancel.
INTERVAL = 1.0
_WHY = {
    Refusal.CANCELLED: "its workflow wants it no more",
    Refusal.FINISHED: "it has its outcome, or its workflow has ended or gone on as a new run",
    Refusal.LOST: "this attempt was given up, and another may have begun",
    Refusal.UNKNOWN: "its workflow is not in the store any more",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """Which step of which workflow the current task executes, and what the task may say about it.

    It may be handed to threads of the task; it is of no use when the task has ended.
    """

    workflow_id: str
    #: Name of the workflow.
    workflow: str
    run: int
    #: The step's number in its run.
    step: int
    #: Which try this is, from 1.
    attempt: int
    #: The idempotency key: the same for every attempt, and the task's id. Also the token of :meth:`complete_later`.
    key: str
    #: None in a test that made this object by hand: nobody listens then.
    pulse: Pulse | None = field(default=None, repr=False, compare=False)

    def heartbeat(self, progress: object = None) -> None:
        """Say that this attempt is alive, and save how far it has come; the next attempt finds it in :attr:`progress`.

        Call it as often as you like: the store is told once a second at most, or more often where the step has a short
        ``heartbeat_timeout``. What a killed process had not written yet is lost. A store that is away is no error.

        Args:
            progress: a small value in JSON types; None leaves what is saved.

        Raises:
            StepCancelled: the step is not wanted any more, or this attempt of it. Clean up, and let it pass.
            PayloadError: the progress has no JSON form, or is too long.
        """
        if self.pulse is not None:
            self.pulse.beat(progress)
            self.pulse.check()

    @property
    def progress(self) -> Any:
        """What the last heartbeat saved, of this attempt or of an earlier one; None if there is nothing.

        Raises:
            CodecError: it cannot be opened here.
        """
        return None if self.pulse is None else self.pulse.progress

    @property
    def is_cancelled(self) -> bool:
        """Whether the step is not wanted any more; for code that asks rather than be interrupted. It is a heartbeat."""
        if self.pulse is None:
            return False
        self.pulse.beat()
        return self.pulse.refusal is not None

    def complete_later(self) -> CompleteLater:
        """Return what the task raises to leave the step open: ``raise current_step().complete_later()``.

        Somebody outside then calls ``complete_step`` or ``fail_step`` of the client, or the command line, with
        :attr:`key` as the token. They may call before it is raised.
        """
        return CompleteLater(f"the outcome of step {self.key} is told from outside")


def current_step() -> StepInfo | None:
    """Return the step that the current task executes, or None if no workflow called it (step)."""
    request = current_task.request if current_task else None
    return getattr(request, "durable_step", None)


class Pulse:
    """The heartbeats of one attempt; safe for threads."""

    def __init__(self, engine: Engine, claim: Claim, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing to write; ``clock`` returns seconds."""
        self._engine, self._claim, self._clock = engine, claim, clock
        limit = (claim.scheduled.options or {}).get("heartbeat_timeout", INTERVAL)
        # Three heartbeats for each that is needed: one may come late, another be lost.
        self._interval = min(INTERVAL, limit / 3)
        self._lock = threading.Lock()
        self._written_at: float | None = None
        #: JSON text of the newest progress of this attempt, and whether the store has it.
        self._text: str | None = None
        self._is_written = True
        #: Why the attempt is not wanted any more, or None.
        self.refusal: Refusal | None = None
        #: Whether it has lost its process so often that it may only look for an outcome that was committed.
        self.is_lost = False
        #: The result that was committed in the task's own database: the step's, whatever the task does now.
        self.settled: tuple[Any] | None = None

    def beat(self, progress: object = None) -> None:
        """Note a heartbeat, and tell the store if it is time.

        Raises:
            PayloadError: the progress cannot be saved.
        """
        text = None if progress is None else progress_text(self._engine.codec, progress, self._claim.key)
        with self._lock:
            if text is not None:
                self._text, self._is_written = text, False
            if self._written_at is None or self._clock() - self._written_at >= self._interval:
                self._write()

    @property
    def codec(self) -> Codec:
        """What writes and reads payloads here."""
        return self._engine.codec

    def incarnation(self) -> str:
        """Return what tells the step's run from others that had its workflow id; see :meth:`Engine.incarnation`."""
        return self._engine.incarnation(self._claim.key)

    def lose(self) -> None:
        """Fail the step, which has no attempt left."""
        self._engine.lose_step(self._claim)

    def flush(self) -> None:
        """Write progress that is only noted, before the attempt ends without an outcome."""
        with self._lock:
            if not self._is_written:
                self._write()

    def check(self) -> None:
        """Raise what ends an attempt that is not wanted any more.

        Raises:
            StepCancelled: it is not.
        """
        if self.refusal is not None:
            raise StepCancelled(f"step {self._claim.key} is to stop: {_WHY.get(self.refusal, self.refusal)}")

    @property
    def progress(self) -> Any:
        """See :attr:`StepInfo.progress`."""
        claim = self._claim
        if self._text is None and claim.progress is None:
            return None
        text = self._text or self._engine.codec.open(claim.progress, claim.key.place("progress"))
        return Codec().decode(text)

    def _write(self) -> None:
        if self.refusal is not None:
            return
        text = None if self._is_written else self._text
        try:
            sealed = self._engine.codec.seal(text, self._claim.key.place("progress")) if text else ""
            self.refusal = self._engine.beat_step(self._claim, sealed)
        except (StoreUnavailableError, CodecError) as error:
            # A step does not fail because its progress cannot be saved: the next heartbeat tries again.
            _log.warning("a heartbeat of step %s was not written: %s", self._claim.key, error)
        else:
            self._is_written = True
        self._written_at = self._clock()
