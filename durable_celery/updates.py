"""Updates from the caller's side: the request, and the outcome that the run records for it.

A request is an input with a key, so it may be repeated; the outcome is found in the history by that key. Invariant: who
waits for an outcome learns of the run's end too, and never waits for what cannot come.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import uuid4

from celery.result import assert_will_not_block

from durable_celery.codec import check_id, check_name, check_own_name, place_of, rebuild
from durable_celery.errors import InvalidRequestError, UpdateError, WorkflowCodeError, WorkflowNotFoundError
from durable_celery.events import (
    LocalStepFailed,
    Output,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunStarted,
    SignalReceived,
    TerminalEvent,
)
from durable_celery.offsets import Offset
from durable_celery.workflow import UPDATE, Note, is_update, read_note

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from durable_celery.client import Client
    from durable_celery.events import Event, Recorded
    from durable_celery.workflow import Update

__all__ = ["Request", "UpdateHandle"]

R = TypeVar("R")


class UpdateHandle(Generic[R]):
    """Stands for an update that was asked for; its outcome is recorded once."""

    def __init__(self, client: Client, workflow_id: str, key: str, *, after: Offset) -> None:
        """Name an update by its key; its outcome stands after the place ``after``."""
        self.client, self.workflow_id, self.key = client, workflow_id, key
        self._after = after

    def result(self, timeout: float | None = None, *, disable_sync_subtasks: bool = True) -> R:
        """Wait for the outcome; return what the handler returned. May be repeated.

        Args:
            timeout: seconds to wait at most.
            disable_sync_subtasks: refuse to wait inside a task, as Celery does for results.

        Raises:
            celery.exceptions.TimeoutError: there was no outcome in time; the update goes on all the same.
            UpdateError: it was cancelled, or the run ended before it was done.
            Exception: what the handler failed with, or what the validator refused it with.
        """
        if disable_sync_subtasks:
            assert_will_not_block()
        what = f"update {self.key!r} of workflow {self.workflow_id} has no outcome"
        # Whether the request was seen, and whether it has to be seen again, in a run that followed.
        seen = missing = False
        for run, item in self.client.follow(self.workflow_id, after=self._after, total=timeout, what=what):
            note = read_note(item.event)
            if note in {(Note.UPDATED, self.key), (Note.REFUSED, self.key)}:
                return self._outcome(run, item.event)
            if isinstance(item.event, RunStarted):
                missing = seen
            elif self._is_request(item.event):
                seen, missing = True, False
            elif isinstance(item.event, Output) and missing:
                # What goes along to a new run stands before all that its code did.
                raise UpdateError(
                    f"workflow {self.workflow_id!r} went on as run {run} before update {self.key!r} was done; what its "
                    "handler had done until then stays done"
                )
            if isinstance(item.event, TerminalEvent):
                raise UpdateError(
                    f"workflow {self.workflow_id!r} {_WORDS[type(item.event)]} before update {self.key!r} was done; "
                    "what its handler had done until then stays done"
                )
        raise UpdateError(f"workflow {self.workflow_id!r} has ended, and its history has no update {self.key!r}")

    def _is_request(self, event: Event) -> bool:
        return is_update(event) and _content(event, self.client, self.workflow_id)[0] == self.key

    def _outcome(self, run: int, event: Event) -> R:
        codec, place = self.client.codec, place_of(event, self.workflow_id, run)
        if isinstance(event, LocalStepFailed):
            error = rebuild(event.payload, codec, place)
            error.add_note(f"update {self.key!r} of workflow {self.workflow_id}")
            raise error
        value: R = codec.decode(event.payload, place)
        return value


_WORDS: dict[type[TerminalEvent], str] = {
    RunCompleted: "completed",
    RunFailed: "failed",
    RunCancelled: "was cancelled",
}


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request for an update of one run; :meth:`send` writes it."""

    client: Client
    workflow_id: str
    key: str
    event: SignalReceived
    #: The JSON text of its payload.
    text: str

    @classmethod
    def make(
        cls,
        client: Client,
        workflow_id: str,
        update: Update[..., Any] | str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        workflow: str,
        version: int,
        key: str | None,
    ) -> Request:
        """Check a request as far as this process can: it need not have the workflow registered. Nothing is written.

        Raises:
            InvalidRequestError: the workflow has no such update, or it does not take these arguments.
            PayloadError: the arguments cannot be recorded.
        """
        try:
            handlers = client.engine.workflows(workflow, version).handlers
        except WorkflowCodeError:
            name = update if isinstance(update, str) else update.name
        else:
            found = handlers.find_update(update, workflow)
            found.check_arguments(tuple(args), kwargs)
            name = found.name
        check_own_name(name, "the name of an update")
        key = uuid4().hex if key is None else check_name(key, "the key of an update")
        event = SignalReceived(name=UPDATE + name)
        text = client.codec.dumps([key, list(args), dict(kwargs)], f"the arguments of update {name!r}")
        return cls(client, check_id(workflow_id), key, event, text)

    def send(self) -> UpdateHandle[Any]:
        """Write the request, or find the one with the same key.

        Raises:
            WorkflowNotFoundError: there is no such run.
            WorkflowClosedError: the run has ended, and had no request with this key.
            InvalidRequestError: the key was used for another request.
            InboxFullError: the run has not taken in ``durable_inbox_limit`` earlier inputs; nothing was written.
            UpdateError: the key was used, in a run whose history is not kept any more.
        """
        run = self.client.describe(self.workflow_id)
        place = place_of(self.event, self.workflow_id)
        event = replace(self.event, payload=self.client.codec.seal(self.text, place))
        if self.client.add(self.workflow_id, event, f"update:{self.key}"):
            return UpdateHandle(self.client, self.workflow_id, self.key, after=Offset(run.run, run.length))
        return self._repeated()

    def _repeated(self) -> UpdateHandle[Any]:
        """Return the handle of the request that had the key before."""
        for run in range(self.client.describe(self.workflow_id).run, 0, -1):
            try:
                history = self.client.history(self.workflow_id, run)
            except WorkflowNotFoundError:
                break
            if self._is_in(history):
                return UpdateHandle(self.client, self.workflow_id, self.key, after=Offset(run, 0))
        raise UpdateError(
            f"workflow {self.workflow_id!r} got the update key {self.key!r} in a run whose history is not kept any more"
        )

    def _is_in(self, history: Sequence[Recorded]) -> bool:
        """Tell whether a history has this request.

        Raises:
            InvalidRequestError: it has another one with the same key.
        """
        ours = json.loads(self.text)
        for event in (item.event for item in history):
            if not is_update(event):
                continue
            theirs = _content(event, self.client, self.workflow_id)
            if theirs[0] == self.key and (event.name, theirs) != (self.event.name, ours):
                raise InvalidRequestError(
                    f"workflow {self.workflow_id!r} got the update key {self.key!r} before, with another update or "
                    "with other arguments; a key names one request"
                )
            if theirs[0] == self.key:
                return True
        return False


def _content(event: SignalReceived, client: Client, workflow_id: str) -> list[Any]:
    """Return the key, the arguments and the keyword arguments of a request; nothing of use if it was forged."""
    content: Any = json.loads(client.codec.open(event.payload or "null", place_of(event, workflow_id)))
    return content if isinstance(content, list) and content else [None]
