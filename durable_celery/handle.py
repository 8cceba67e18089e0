"""The handle that a start returns: an ``AsyncResult`` that reads the log.

It works without a result backend, because the end of a run is in its history.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from celery import states
from celery.backends.base import DisabledBackend
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult, assert_will_not_block

from durable_celery.client import STATES, Client
from durable_celery.codec import check_id
from durable_celery.conversation import Conversation
from durable_celery.events import RunCompleted

if TYPE_CHECKING:
    from celery import Celery

    from durable_celery.events import Recorded
    from durable_celery.store.protocol import RunRecord
    from durable_celery.workflow.typed_signal import Signal

__all__ = ["WorkflowHandle"]

R = TypeVar("R")
T = TypeVar("T")


class WorkflowHandle(Conversation, AsyncResult, Generic[R]):
    """A started workflow: an ``AsyncResult`` that reads the log, and can also talk to its run and steer it.

    ``state`` is PENDING, STARTED, BLOCKED, SUCCESS, FAILURE or REVOKED.
    """

    # Celery has no types of its own; these are never None here.
    id: Any
    app: Any
    backend: Any

    def __init__(self, id: str, *, client: Client, app: Celery, parent: Any = None) -> None:  # noqa: A002 - Celery's name
        """Name a run; it need not exist yet."""
        super().__init__(check_id(id), app=app, parent=parent)
        self.client = client

    def get(  # noqa: D417, PLR0913, PLR0917 # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        timeout: float | None = None,
        propagate: bool = True,  # noqa: FBT001, FBT002 - Celery's signature
        interval: float = 0.5,  # noqa: ARG002
        no_ack: bool = True,  # noqa: ARG002, FBT001, FBT002
        follow_parents: bool = True,  # noqa: ARG002, FBT001, FBT002
        callback: Any = None,
        on_message: Any = None,  # noqa: ARG002
        on_interval: Any = None,  # noqa: ARG002
        disable_sync_subtasks: bool = True,  # noqa: FBT001, FBT002
        **_: Any,
    ) -> R:
        """Wait for the end and return the result.

        Args:
            timeout: seconds to wait at most.
            propagate: raise the run's failure; else return the exception.
            interval: no meaning here, as ``no_ack``, ``follow_parents``, ``on_message`` and ``on_interval``.
            callback: called with the id and the result.
            disable_sync_subtasks: refuse to wait inside a task, as Celery does.

        Raises:
            celery.exceptions.TimeoutError: the end did not come in time.
            celery.exceptions.TaskRevokedError: the run was cancelled.
            Exception: what the workflow raised, as its own class where this process has it, else ``RemoteError``.
        """
        if disable_sync_subtasks:
            assert_will_not_block()
        end = self.client.wait(self.id, timeout, hopeless=self._ended_without_run)
        if end is None and self.client.store.get(self.id) is None and self._ended_without_run():
            return self.maybe_throw(propagate, callback)  # type: ignore[no-any-return] # Celery is untyped
        if end is None:
            msg = f"workflow {self.id} did not end within {timeout} s{self.client.standing(self.id)}"
            raise CeleryTimeoutError(msg)
        value = self.client.outcome(end.event, self.id)
        if callback is not None:
            callback(self.id, value)
        if propagate and isinstance(value, BaseException) and not isinstance(end.event, RunCompleted):
            raise value
        return value  # type: ignore[no-any-return] # the codec gives user payloads

    wait = get

    def _ended_without_run(self) -> bool:
        """Whether Celery knows the end of a task of which the store knows nothing.

        An earlier part of its chain failed, it was revoked before a worker had it, or its retention has passed.
        """
        return self._stored_meta().get("status") in states.READY_STATES

    def _stored_meta(self) -> dict[str, Any]:
        """Return what Celery's result backend has, if there is one."""
        return {} if isinstance(self.backend, DisabledBackend) else dict(self.backend.get_task_meta(self.id))

    def __copy__(self) -> WorkflowHandle[R]:
        return WorkflowHandle(self.id, client=self.client, app=self.app, parent=self.parent)

    @overload
    def signal(self, name: Signal[None], value: None = None, *, key: str | None = None) -> None: ...
    @overload
    def signal(self, name: Signal[T], value: T, *, key: str | None = None) -> None: ...
    @overload
    def signal(self, name: str, value: object = None, *, key: str | None = None) -> None: ...
    def signal(self, name: Signal[Any] | str, value: object = None, *, key: str | None = None) -> None:
        """See :meth:`Client.signal`."""
        self.client.signal(self.id, name, value, key=key)

    def signal_in(
        self, session: object, name: Signal[Any] | str, value: object = None, *, key: str | None = None
    ) -> None:
        """Send a signal as part of a transaction: it is sent when that commits, or not at all.

        It is a row in your database, from where a worker takes it to the run (``durable_outbox``). A run that is
        started in the same transaction, or in one that has not committed yet, is waited for, up to a day. What cannot
        be sent, because the run has ended, stays in the table with the reason, and is logged. (client, step)

        Args:
            session: a session or connection of SQLAlchemy, or ``durable_celery.contrib.django.outbox()``.
            name: which signal: a :class:`Signal`, or its name.
            value: its payload.
            key: signals with the same key are one.

        Raises:
            ConfigurationError: ``durable_outbox`` is not set, or the table is missing.
            InvalidRequestError, PayloadError: bad input; nothing was written.
        """
        self.client.post_signal(session, self.id, name, value, key=key)

    def cancel(self, reason: str = "") -> None:
        """See :meth:`Client.cancel`."""
        self.client.cancel(self.id, reason)

    def revoke(self, *_: Any, **__: Any) -> None:
        """Cancel the workflow, as revoking its task id does: durably, also where no worker runs now."""
        self.cancel("revoked")

    def describe(self) -> RunRecord:
        """See :meth:`Client.describe`."""
        return self.client.describe(self.id)

    def history(self, run: int | None = None) -> list[Recorded]:
        """See :meth:`Client.history`."""
        return self.client.history(self.id, run)

    def _get_task_meta(self) -> dict[str, Any]:
        # AsyncResult reads state, result, traceback and the rest from here.
        return self._cache or self._maybe_set_cache(self._meta())  # type: ignore[no-any-return] # Celery is untyped

    def _meta(self) -> dict[str, Any]:
        record = self.client.store.get(self.id)
        meta: dict[str, Any] = {
            "task_id": self.id,
            "status": states.PENDING,
            "result": None,
            "traceback": None,
            "children": [],
        }
        if record is None:
            return meta | self._stored_meta()
        meta |= {"status": STATES[record.status], "name": record.name}
        if record.status.is_closed and (end := self.client.ending(self.id)):
            value = self.client.outcome(end.event, self.id)
            meta |= {"result": value, "date_done": datetime.fromtimestamp(end.at / 1000, UTC)}
            if isinstance(value, BaseException) and value.__cause__ is not None:
                meta["traceback"] = str(value.__cause__)
        return meta
