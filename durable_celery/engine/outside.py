"""Steps whose outcome is told from outside: by their token, which is the idempotency key.

The token names a step and is no secret: whoever reaches the store may complete any step that has begun. Whether it
takes the outcome is decided by the store, once; what is looked at before only makes for clear errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable_celery.codec import check_id, failure_text
from durable_celery.engine.progress import progress_text
from durable_celery.errors import (
    CodecError,
    InvalidIdError,
    InvalidRequestError,
    StepNotOpenError,
    WorkflowNotFoundError,
)
from durable_celery.events import CommandCancelled, StepCompleted, StepFailed
from durable_celery.store.protocol import Refusal, Refused, StepKey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from durable_celery.engine.core import Engine
    from durable_celery.events import Event
    from durable_celery.store.protocol import RunRecord

__all__ = ["Outside"]

_PAGE = 1000


class Outside:
    """What somebody who has a step's token may say about it. The errors are those of the client's verbs."""

    def __init__(self, engine: Engine) -> None:
        """Speak through an engine: to its store, with its patience."""
        self.engine, self.store, self.codec = engine, engine.store, engine.codec

    def complete(self, token: str, result: object) -> None:
        """Record a step's result."""
        self._tell(_key(token), StepCompleted, self.codec.dumps(result, f"the result of step {token}"))

    def fail(self, token: str, error: BaseException) -> None:
        """Record a step's failure, which no policy tries again."""
        self._tell(_key(token), StepFailed, failure_text(error, self.codec))

    def beat(self, token: str, progress: object = None) -> bool:
        """Give a heartbeat of a step that waits, with progress to be saved if there is some."""
        key, sealed = _key(token), ""
        if progress is not None:
            sealed = self.codec.seal(progress_text(self.codec, progress, key), key.place("progress"))
        answer = self.engine.patience.persist(lambda: self.store.claim(key, "", progress=sealed))
        if isinstance(answer, Refused) and answer.reason is not Refusal.LOST:
            raise StepNotOpenError(token, self._why_not(key, self._run(key)) or "it has ended")
        return not isinstance(answer, Refused)

    def _tell(self, key: StepKey, kind: type[StepCompleted | StepFailed], text: str) -> None:
        why = self._why_not(key, self._run(key))
        if not why:
            payload = self.codec.seal(text, key.place("outcome"))
            if self.engine.tell_step(key, kind(number=key.number, attempt=0, payload=payload)):
                return
        # Somebody was faster, or it was this very call, whose reply was lost.
        if not self._stands(key, kind, text):
            raise StepNotOpenError(str(key), why or self._why_not(key, self._run(key)) or "it has ended")

    def _run(self, key: StepKey) -> RunRecord:
        run = self.store.get(key.workflow_id)
        if run is None:
            raise WorkflowNotFoundError(key.workflow_id)
        return run

    def _why_not(self, key: StepKey, run: RunRecord) -> str:
        """Return why a step takes no outcome, or nothing."""
        if run.status.is_closed:
            return f"workflow {run.workflow_id!r} is already {run.status}"
        if key.run != run.run:
            return f"workflow {run.workflow_id!r} is in its run {run.run}"
        step = next((step for step in run.steps if step.number == key.number), None)
        if step is not None:
            # Before the first attempt nobody can have been given the token. A child run has no attempts.
            return "" if step.attempt else "no attempt of it has begun"
        for event in self._events(key):
            match event:
                case StepCompleted() | StepFailed() if event.number == key.number:
                    return "it has its outcome already"
                case CommandCancelled() if event.target == key.number:
                    return "its workflow has cancelled it"
                case _:
                    pass
        return "the workflow has no such step"

    def _stands(self, key: StepKey, kind: type[Event], text: str) -> bool:
        """Whether this very outcome stands in the history."""
        for event in self._events(key):
            if isinstance(event, StepCompleted | StepFailed) and event.number == key.number:
                try:
                    return isinstance(event, kind) and self.codec.open(event.payload, key.place("outcome")) == text
                except CodecError:
                    return False
        return False

    def _events(self, key: StepKey) -> Iterator[Event]:
        after = 0
        while page := self.store.history(key.workflow_id, run=key.run, after=after, limit=_PAGE):
            after += len(page)
            yield from (item.event for item in page)


def _key(token: str) -> StepKey:
    """Return the step that a token names.

    Raises:
        InvalidRequestError: it names none.
    """
    given: object = token
    key = StepKey.parse(given) if isinstance(given, str) else None
    try:
        if key is not None and str(key) == token:
            check_id(key.workflow_id)
            return key
    except InvalidIdError:
        pass
    raise InvalidRequestError(f"{str(token)[:80]!r} is no token of a step: it is what current_step().key gives")
