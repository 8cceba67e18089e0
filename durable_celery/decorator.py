"""``@durable_task``: makes a function the workflow of a Celery task."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, overload

from durable_celery.task import DurableTask
from durable_celery.versions import Recipe, check_version, register
from durable_celery.workflow import AsyncWorkflowContext, Handlers, Signal, WorkflowContext
from durable_celery.workflow.typed_signal import declared

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from celery import Celery

__all__ = ["durable_task"]

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


@overload
def durable_task(function: Callable[Concatenate[WorkflowContext, P], R], /) -> DurableTask[P, R]: ...
@overload
def durable_task(function: Callable[Concatenate[AsyncWorkflowContext, P], Awaitable[R]], /) -> DurableTask[P, R]: ...
@overload
def durable_task(
    *,
    name: str | None = None,
    app: Celery | None = None,
    version: int = 1,
    queue: str | None = None,
    signals: Iterable[Signal[Any] | str] = (),
    **options: Any,
) -> _Decorator: ...


def durable_task(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    app: Celery | None = None,
    version: int = 1,
    queue: str | None = None,
    signals: Iterable[Signal[Any] | str] = (),
    **options: Any,
) -> Any:
    """Make a function the workflow of a Celery task.

    The function's first parameter is the workflow's context. Like ``shared_task``, it belongs to every app of the
    process, or only to ``app`` if that is given.

    Args:
        function: the workflow.
        name: its name; several versions of a workflow have the same.
        app: the only app that gets it.
        version: which version of the workflow it is, from 1. A run stays on the version that it was started with.
        queue: where the messages of its runs go, from start to end, whatever the queue is in later releases.
        signals: those that it takes: others are refused where they are sent, and values are held against their types.
        options: those of ``app.task`` (``priority``, ``ignore_result``, ``serializer``, ...).

    Raises:
        ConfigurationError: the version cannot be one, or another function is this version already.
    """
    options |= {"version": check_version(version), "run_queue": queue, "takes": declared(signals)}
    if function is None:
        return functools.partial(_decorate, name=name, app=app, options=options)
    return _decorate(function, name=name, app=app, options=options)


class _Decorator:
    """What ``durable_task(...)`` with options returns, for type checkers."""

    @overload
    def __call__(self, function: Callable[Concatenate[WorkflowContext, P], R], /) -> DurableTask[P, R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[AsyncWorkflowContext, P], Awaitable[R]], /
    ) -> DurableTask[P, R]: ...
    def __call__(self, function: Callable[..., Any], /) -> Any:
        raise TypeError(function)


def _decorate(
    function: Callable[..., Any], *, name: str | None, app: Celery | None, options: Mapping[str, Any]
) -> DurableTask[..., Any]:
    def entry(self: DurableTask[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.perform(args, kwargs)

    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    if not parameters or parameters[0].kind not in _POSITIONAL:
        msg = f"the workflow {function.__qualname__} must take its context as first parameter"
        raise TypeError(msg)
    if misplaced := _FOR_STEPS.intersection(options):
        msg = f"{', '.join(sorted(misplaced))}: a workflow is never tried again; give this to the tasks of its steps"
        raise TypeError(msg)
    functools.update_wrapper(entry, function)
    del entry.__wrapped__  # type: ignore[attr-defined] # update_wrapper sets it; Celery would read the signature there
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    entry.__signature__ = signature.replace(parameters=[own, *parameters[1:]])  # type: ignore[attr-defined]
    handlers = Handlers(is_async=inspect.iscoroutinefunction(inspect.unwrap(function)))
    given: dict[str, Any] = {"base": DurableTask, **options, "bind": True, "workflow": staticmethod(function)}
    given["handlers"] = handlers
    given["after_return"] = _noting(given["base"].after_return)
    task: DurableTask[..., Any] = register(Recipe(entry, name, options["version"], given), app)
    for verb in (handlers.query, handlers.update):
        # They decorate while modules are imported; asked for through Celery's proxy, they would make the task by that,
        # and read the app's configuration too early.
        object.__setattr__(task, verb.__name__, verb)
    return task


def _noting(own: Callable[..., Any]) -> Callable[..., Any]:
    """Let a base class have its own ``after_return``, whether or not it calls the one it overrides."""
    if own is DurableTask.after_return:
        return own

    @functools.wraps(own)
    def after_return(self: DurableTask[..., Any], *args: Any) -> None:
        try:
            own(self, *args)
        finally:
            DurableTask.after_return(self, *args)

    return after_return


_POSITIONAL = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
#: Options of Celery tasks that do something to each execution, of which a workflow has many.
_FOR_STEPS = frozenset({"autoretry_for", "pydantic", "retry_backoff", "retry_kwargs", "max_retries"})
