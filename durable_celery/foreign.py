"""The two Celery tasks behind :class:`~durable_celery.ForeignTask`: one sends, one looks for the outcome.

Both are executed as steps, and by nobody else. What a crash repeats is harmless but for the foreign task itself, which
then has two messages with one id.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery import shared_task, states
from celery.backends.base import DisabledBackend
from celery.backends.rpc import RPCBackend
from celery.exceptions import TaskPredicate
from celery.utils.serialization import UnpickleableExceptionWrapper

from durable_celery.app import binding_of
from durable_celery.current import current_step
from durable_celery.errors import ConfigurationError, DurableError, RemoteError
from durable_celery.policy import type_name
from durable_celery.workflow.foreign import OUTCOME, SEND

if TYPE_CHECKING:
    from celery import Celery, Task

__all__ = ["NotYetError"]

#: Seconds that a result has to be kept, for the waits between two looks are up to 30 s, and a worker may be busy.
_SHORTEST_EXPIRY = 300


class NotYetError(DurableError):
    """The outcome of a foreign task is not there yet."""


@shared_task(name=SEND, bind=True)
def send(
    self: Task, name: str, call: tuple[list[Any], dict[str, Any]], options: dict[str, Any], task_id: str | None = None
) -> str:
    """Publish a plain Celery message and return its task id; ``task_id`` is that of an earlier message (step)."""
    args, kwargs = call
    step, app = current_step(), self.app
    if step is None:
        raise DurableError(f"{SEND} is for ForeignTask in a workflow, and is not called by itself")
    _check(app, name)
    task_id = task_id or f"{step.key}/foreign"
    app.send_task(
        name,
        args,
        kwargs,
        task_id=task_id,
        ignore_result=False,
        add_to_parent=False,
        root_id=self.request.root_id,
        parent_id=step.workflow_id,
        **options,
    )
    return task_id


@shared_task(name=OUTCOME, bind=True)
def outcome(self: Task, task_id: str) -> Any:
    """Return the result of a foreign task, or raise its failure (step).

    Raises:
        NotYetError: it is not there yet, or the result backend does not answer; the step is tried again later.
    """
    found: Any = self.app.AsyncResult(task_id)
    try:
        state, value = found.state, found.result
    except Exception as error:
        raise NotYetError(f"the result backend does not answer for {task_id}: {error!r}") from error
    if state == states.SUCCESS:
        return value
    if state not in states.EXCEPTION_STATES - {states.RETRY}:
        raise NotYetError(f"{task_id} is {state}")
    raise _failure(value)


def _failure(value: Any) -> Exception:
    """Return the exception of a foreign task as this side can have it."""
    if isinstance(value, UnpickleableExceptionWrapper):
        # So Celery tells of a class that only the other side has.
        return RemoteError(f"{value.exc_module}.{value.exc_cls_name}", ", ".join(map(str, value.exc_args or ())))
    if isinstance(value, Exception) and not isinstance(value, TaskPredicate):
        return value
    # By these a task talks to its own worker, which is not ours.
    return RemoteError(type_name(type(value)), str(value))


def _check(app: Celery, name: str) -> None:
    """Refuse what could never have an outcome.

    Raises:
        ConfigurationError: the result backend cannot be asked.
    """
    backend: Any = app.backend
    if isinstance(backend, DisabledBackend | RPCBackend):
        problem = f"the outcome of foreign task {name} is taken from the result backend, and this app has none that"
        raise ConfigurationError(f"{problem} can be asked: set result_backend to the one of its service, such as Redis")
    expires: Any = app.conf.result_expires
    kept = expires.total_seconds() if isinstance(expires, timedelta) else expires
    if kept and kept < _SHORTEST_EXPIRY:
        raise ConfigurationError(
            f"result_expires is {kept:g} s, so the outcome of foreign task {name} may be gone before it is looked for: "
            f"at least {_SHORTEST_EXPIRY} s, also in its own service"
        )
    if binding_of(app).hides_ends:
        raise ConfigurationError(
            f"foreign task {name} gets its arguments and gives its result through broker and result backend in plain, "
            "and durable_codec hides them. Set durable_reveal_results = True to allow it"
        )
