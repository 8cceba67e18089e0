"""For whoever has a token and no workflow: a web hook answers callbacks with these functions, by the process's app."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from celery import _state

from durable_celery.app import binding_of
from durable_celery.errors import ConfigurationError

if TYPE_CHECKING:
    from celery import Celery

    from durable_celery.client import Client

__all__ = ["complete_callback", "current_app", "fail_callback", "heartbeat_callback"]


def complete_callback(token: str, value: object = None, *, app: Celery | None = None) -> bool:
    """Answer a callback with a value; see :meth:`CallbackVerbs.complete_callback`.

    Args:
        token: what the outside system was given.
        value: the answer.
        app: the Celery app of the workflow, if it is neither the current one nor the only one of the process.

    Returns:
        Whether this is the answer. False: it had one already, and nothing was changed.

    Raises:
        InvalidRequestError: it is no token of this app's store, or (``PayloadError``) the value cannot be recorded.
        ConfigurationError: it is not clear which app is meant.
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
    return binding_of(app or current_app()).client


def current_app() -> Celery:
    """Return the current app; in a thread that has none, as those of web servers, the only app of the process.

    What Celery makes in the place of one that is missing, called "default", knows no broker and no store.
    """
    candidates: list[Any] = [_state._tls.current_app, _state.default_app]  # noqa: SLF001 - asks without making one
    active = [app for app in _state._get_active_apps() if app.main != "default"]  # noqa: SLF001 - the same
    for app in [*candidates, *(active if len(active) == 1 else ())]:
        if app is not None and app.main != "default":
            return cast("Celery", app)
    raise ConfigurationError(
        "this thread has no current Celery app: give app=..., or call app.set_default() where the app is made"
    )
