"""Versions of a workflow, side by side under one name.

Each version is a Celery task of its own. An app's registry has the newest one under the name, because messages carry
the name alone: which version a run is of stands in its first event, so any of them can receive the run's messages.
Invariant: the versions of a name in one app share one mapping, ``task.versions``, whichever module is loaded first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from celery import current_app
from celery._state import _get_active_apps, connect_on_app_finalize
from celery.local import PromiseProxy, Proxy

from durable_celery.errors import ConfigurationError

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Recipe", "check_version", "register", "versions_of"]


def check_version(version: object) -> int:
    """Return a version if it may be one: a whole number from 1.

    Raises:
        ConfigurationError: it may not.
    """
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ConfigurationError(f"the version of a workflow is a whole number from 1, not {version!r}")
    return version


def versions_of(app: Celery, name: str) -> Mapping[int, Any]:
    """Return the durable tasks that an app has under a name, by version; empty if there is none."""
    task = app.tasks.get(name)
    versions: Mapping[int, Any] = task.versions if getattr(task, "is_durable", False) else {}
    return versions


class Recipe:
    """How one version of a workflow becomes a task of an app."""

    def __init__(self, entry: Callable[..., Any], name: str | None, version: int, options: Mapping[str, Any]) -> None:
        self.entry, self.name, self.version, self.options = entry, name, version, options
        #: The user's function.
        self.workflow: Callable[..., Any] = options["workflow"].__func__

    def task_of(self, app: Celery) -> Any:
        """Return the task in an app, making it on first use.

        Raises:
            ConfigurationError: another function is this version of the workflow already.
        """
        name = self.name or app.gen_task_name(self.entry.__name__, self.entry.__module__)
        task = versions_of(app, name).get(self.version)
        return self._made(app, name) if task is None else task

    def register(self, app: Celery) -> Any:
        """Make the task in an app; a module that is loaded again finds it there.

        Raises:
            ConfigurationError: another function is this version of the workflow already.
        """
        task = self.task_of(app)
        if getattr(task, "is_durable", False) and _place(task.workflow) != _place(self.workflow):
            raise ConfigurationError(
                f"{_words(self.workflow)} and {_words(task.workflow)} are both version {self.version} of the workflow "
                f"{task.name!r}; give the newer one a higher version"
            )
        return task

    def _made(self, app: Celery, name: str) -> Any:
        make: Any = app.task
        with app._finalize_mutex:  # noqa: SLF001 - as shared_task does, for an app that is in use
            tasks, versions = app.tasks, dict(versions_of(app, name))
            if self.version in versions:
                # Another thread was faster.
                return versions[self.version]
            # Celery keeps what stands under a name; the other versions step aside for a moment.
            before = tasks.pop(name, None) if versions else None
            try:
                # An app's own decorator shares its tasks with the other apps of the process, unless told not to.
                task = make(**{**self.options, "name": name, "shared": False, "lazy": False})(self.entry)
            finally:
                if before is not None:
                    tasks[name] = before
            if getattr(task, "is_durable", False):
                versions[self.version] = task
                for one in versions.values():
                    one.versions = versions
                tasks[name] = versions[max(versions)]
        return task


def register(recipe: Recipe, app: Celery | None) -> Any:
    """Register a version in one app, or in every app of the process; return a proxy of the task in the current app."""
    if app is not None:
        own: Celery = app._get_current_object() if hasattr(app, "_get_current_object") else app  # noqa: SLF001 - Celery's proxy
        if own.finalized:
            recipe.register(own)
        else:
            # Where Celery keeps the tasks that its own decorator has not made yet; errors come out of there.
            pending: Any = own._pending  # noqa: SLF001
            pending.append(PromiseProxy(recipe.register, (own,)))
        return Proxy(lambda: recipe.task_of(own))
    connect_on_app_finalize(recipe.register)
    for active in _get_active_apps():
        if active.finalized:
            recipe.register(active)
    return Proxy(lambda: recipe.task_of(current_app._get_current_object()))  # noqa: SLF001 - Celery's proxy


def _place(function: Callable[..., Any]) -> tuple[str, str]:
    """Return what is the same for a function that is loaded again, also under another name of its module."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return (function.__module__ if code is None else code.co_filename, function.__qualname__)


def _words(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"
