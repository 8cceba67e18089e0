"""For whoever has a token and no workflow: a web hook answers callbacks with these functions, by the process's app."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import current_app

from durable_celery.app import binding_of

if TYPE_CHECKING:
    from celery import Celery

    from durable_celery.client import Client

__all__ = ["complete_callback", "fail_callback", "heartbeat_callback"]


def complete_callback(token: str, value: object = None, *, app: Celery | None = None) -> bool:
    """Answer a callback with a value; see :meth:`CallbackVerbs.complete_callback`.

    Args:
        token: what the outside system was given.
        value: the answer.
        app: the Celery app of the workflow, if it is not the process's current one.

    Returns:
        Whether this is the answer. False: it had one already, and nothing was changed.

    Raises:
        InvalidRequestError: it is no token of this app's store, or (``PayloadError``) the value cannot be recorded.
        WorkflowNotFoundError: the run is not in the store.
        WorkflowClosedError: the run has ended without an answer.
    """
    return _client(app).complete_callback(token, value)


def fail_callback(token: str, error: str | BaseException, *, app: Celery | None = None) -> bool:
    """Answer a callback with a failure, which is raised where the workflow waits; see :func:`complete_callback`."""
    return _client(app).fail_callback(token, error)


def heartbeat_callback(token: str, *, app: Celery | None = None) -> None:
    """Show that who is to answer a callback is alive; see :func:`complete_callback`."""
    _client(app).heartbeat_callback(token)


def _client(app: Celery | None) -> Client:
    chosen: Any = current_app if app is None else app
    return binding_of(chosen).client
