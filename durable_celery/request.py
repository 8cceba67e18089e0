"""What a worker's main process does with the message of a run: its events, and no revocation by memory.

A run has many messages and one task id. Monitors see one task that is received and started once, with the first
message, and ends once, with the message that delivers the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.exceptions import InvalidTaskError
from celery.worker import state
from celery.worker.request import Request
from celery.worker.strategy import default

from durable_celery.dispatch import ETA, HEADER, header_of, took

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RunRequest", "strategy"]


class RunRequest(Request):
    """The worker-side request of a durable task."""

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's name
        """Send an event of the run, not of this message."""
        if not (self._eventer and self._eventer.enabled):
            return
        header = header_of(self._request_dict)
        header = {"first": True} if header is None else header
        if type == "task-started":
            if not header.get("first"):
                return
            # The strategy's own task-received is switched off on the task, because each message would send one.
            self._eventer.send(
                "task-received",
                uuid=self.id,
                name=self.name,
                args=self._argsrepr,
                kwargs=self._kwargsrepr,
                root_id=self.root_id,
                parent_id=self.parent_id,
                retries=0,
            )
        if type in {"task-succeeded", "task-failed"}:
            fields |= took(header)
        self._eventer.send(type, uuid=self.id, **fields)

    def revoked(self) -> bool:
        """Drop the message only where its run was revoked before it came to be.

        Else a revoked run is cancelled through its log, and its clean-up code needs turns; an expired one ends there.
        """
        if HEADER in self._request_dict or self.id not in state.revoked:
            return False
        return self.task.binding.store.get(self.id) is None and bool(super().revoked())


def strategy(task: Any, app: Any, consumer: Any, **options: Any) -> Callable[..., Any]:
    """Return what the consumer does with a message of a durable task: as ever, but without waiting for an ``eta``.

    A start with ``countdown`` or ``eta`` from a producer that does not know this library would lie in this worker's
    memory, unacknowledged, for as long. It goes to the log at once, and the wait becomes a durable timer.
    """
    plain: Callable[..., Any] = default(task, app, consumer, **options)

    def on_message(message: Any, body: Any, *args: Any, **kwargs: Any) -> Any:
        headers = message.headers
        if body is None and not _is_call(message.payload, headers):
            # Celery's own strategy would take it apart, and its consumer ends with the TypeError.
            raise InvalidTaskError("the message of a durable task has no id, or no arguments")
        if headers and headers.get("eta") and HEADER not in headers:
            headers[ETA], headers["eta"] = headers["eta"], None
        return plain(message, body, *args, **kwargs)

    return on_message


def _is_call(payload: Any, headers: Any) -> bool:
    """Tell whether a message of protocol 2 has an id and arguments. Whoever can write to the broker wrote it."""
    if not (isinstance(headers.get("id"), str) and isinstance(payload, list | tuple) and len(payload) == 3):  # noqa: PLR2004 - args, kwargs, links
        return False
    return isinstance(payload[0], list | tuple) and isinstance(payload[1], dict) and isinstance(payload[2], dict)
