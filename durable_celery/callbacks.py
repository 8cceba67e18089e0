"""The caller's verbs on callbacks: complete, fail, show a sign of life; each by a token.

A token is held against the history before anything is written: only one that this run has really given out is taken.
The first answer counts, and all answers of a callback have one key, so that each may be repeated.
"""

from __future__ import annotations

from dataclasses import replace
from hmac import compare_digest
from typing import TYPE_CHECKING
from uuid import uuid4

from durable_celery.codec import CallbackToken, failure_text, place_of
from durable_celery.errors import (
    CallbackFailedError,
    InvalidRequestError,
    WorkflowClosedError,
    WorkflowNotFoundError,
)
from durable_celery.events import LocalStepCompleted, Output, SignalReceived

if TYPE_CHECKING:
    from durable_celery.codec import Codec
    from durable_celery.engine import Engine
    from durable_celery.store.protocol import Store

__all__ = ["CallbackVerbs"]

#: How many events are read at once to find the record of a token. It stands right behind its cause.
_PAGE = 50


class CallbackVerbs:
    """The part of a :class:`~durable_celery.client.Client` that answers callbacks.

    Each verb raises:
        InvalidRequestError: the text is no token, or one that this store's run has not given out; nothing was written.
        WorkflowNotFoundError: its run is not in the store.
        WorkflowClosedError: its run has ended without an answer.
    """

    __slots__ = ()

    store: Store
    engine: Engine
    codec: Codec
    inbox_limit: int

    def complete_callback(self, token: str, value: object = None) -> bool:
        """Answer a callback with a value.

        An answer to a callback that the workflow has given up (a timeout, a lost race) is recorded and has no effect.

        Returns:
            Whether this is the answer. False: it had one already, and nothing was changed.

        Raises:
            PayloadError: the value cannot be recorded; nothing was written.
        """
        return self._answer(token, self.codec.dumps({"value": value}, "the answer to a callback"))

    def fail_callback(self, token: str, error: str | BaseException) -> bool:
        """Answer a callback with a failure: it is raised where the workflow waits.

        An exception comes back as its own class where the worker knows that, a text as ``CallbackFailedError``.

        Returns:
            Whether this is the answer. False: it had one already, and nothing was changed.
        """
        failure = error if isinstance(error, BaseException) else CallbackFailedError(error)
        return self._answer(token, f'{{"failure":{failure_text(failure, self.codec)}}}')

    def heartbeat_callback(self, token: str) -> None:
        """Show that who is to answer is alive; each sign stands in the history, so a minute between two is plenty.

        Raises:
            InboxFullError: the run has not taken in ``durable_inbox_limit`` earlier inputs; nothing was written.
        """
        self._send(self._checked(token), '{"beat":null}', f"beat:{uuid4().hex}", room=self.inbox_limit)

    def _answer(self, text: str, message: str) -> bool:
        token = self._checked(text)
        return self._send(token, message, token.key)

    def _send(self, token: CallbackToken, message: str, key: str, *, room: int = 0) -> bool:
        event = SignalReceived(name=token.signal)
        payload = self.codec.seal(message, place_of(event, token.workflow_id))
        answer = self.store.append(token.workflow_id, replace(event, payload=payload), key=key, room=room)
        self.engine.publish([answer.message])
        return answer.added

    def _checked(self, text: str) -> CallbackToken:
        """Return a token that its run has really given out."""
        token = CallbackToken.parse(text)
        if compare_digest(self._given_out(token), text):
            return token
        record = self.store.get(token.workflow_id)
        if record is None:
            raise WorkflowNotFoundError(token.workflow_id)
        if record.run != token.run:
            raise WorkflowClosedError(token.workflow_id, f"at run {record.run}, and the token is of run {token.run}")
        raise InvalidRequestError(
            f"workflow {token.workflow_id!r} has not given out this token; nothing was written. Is it of another "
            "durable_namespace, or of an earlier run with the same id?"
        )

    def _given_out(self, token: CallbackToken) -> str:
        """Return the token of the callback that a token names, as the history has it; "" if it has none."""
        after = token.cause
        while page := self.store.history(token.workflow_id, after=after, limit=_PAGE):
            for item in page:
                event = item.event
                if isinstance(event, Output) and event.number >= token.number:
                    is_it = isinstance(event, LocalStepCompleted) and event.name == CallbackToken.MAKER
                    if not is_it or event.number > token.number:
                        return ""
                    return str(self.codec.decode(event.payload, place_of(event, token.workflow_id, token.run)))
            after = page[-1].seq
        return ""
