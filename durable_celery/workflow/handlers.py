"""Handlers: what a workflow answers from outside while it runs, and the state that they read.

A query is a function of the run's state; a validator is one too. An update is a branch of the workflow's code. They
belong to the workflow as its function does: histories know them by name, and what they do may change under it.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from durable_celery.codec import check_own_name
from durable_celery.errors import InvalidRequestError

__all__ = ["Handlers", "Query", "State", "Update"]

P = ParamSpec("P")
R = TypeVar("R")
Q = TypeVar("Q", bound="Query[..., Any] | Update[..., Any]")


class State(SimpleNamespace):
    """What a run shows of itself: its code sets attributes, queries and validators read them."""

    def __getattr__(self, name: str) -> Any:
        # Only for what was not set. A default of getattr() works, as ever.
        raise AttributeError(f"the workflow has not set {name!r} in its state (ctx.state) so far", name=name, obj=self)


class Query(Generic[P, R]):
    """A function ``(state, ...)`` that answers from the state of a run; what ``@workflow.query`` makes."""

    def __init__(self, name: str, function: Callable[Concatenate[Any, P], R]) -> None:
        self.name, self.function = name, function

    def __call__(self, state: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself, with any state."""
        return self.function(state, *args, **kwargs)

    def check_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Hold arguments against the function's signature.

        Raises:
            InvalidRequestError: they do not fit.
        """
        _check(self, args, kwargs)


class Update(Generic[P, R]):
    """A function ``(ctx, ...)`` that a caller lets a run execute; what ``@workflow.update`` makes."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.function = name, function
        #: Refuses a request by raising, before anything is done; or None.
        self.validate: Callable[..., object] | None = None

    def __call__(self, ctx: Any, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Call the function itself (workflow code); in the ``async def`` form it gives a coroutine."""
        return self.function(ctx, *args, **kwargs)

    def validator(self, function: Callable[Concatenate[Any, P], object], /) -> Callable[Concatenate[Any, P], object]:
        """Let a function ``(state, ...)`` look at each request first; what it raises refuses the request.

        It is asked once, and its answer is recorded. It decides from the state and the arguments alone, and changes
        nothing.
        """
        if self.validate is not None:
            raise InvalidRequestError(f"update {self.name!r} has a validator already")
        if inspect.iscoroutinefunction(function):
            raise InvalidRequestError(f"the validator of update {self.name!r} cannot wait: make it a plain `def`")
        self.validate = function
        return function

    def check_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Hold arguments against the function's signature.

        Raises:
            InvalidRequestError: they do not fit.
        """
        _check(self, args, kwargs)


def _check(handler: Query[..., Any] | Update[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    try:
        # In the place of the state, or of the context.
        inspect.signature(handler.function).bind(None, *args, **kwargs)
    except TypeError as error:
        word = type(handler).__name__.lower()
        raise InvalidRequestError(f"{word} {handler.name!r} does not take these arguments: {error}") from error


class Handlers:
    """The queries and updates of one workflow, by name."""

    def __init__(self, *, is_async: bool = False) -> None:
        """Begin with none; ``is_async`` is the form of the workflow, which its updates share."""
        self._is_async = is_async
        self.queries: dict[str, Query[..., Any]] = {}
        self.updates: dict[str, Update[..., Any]] = {}

    def query(self, function: Callable[..., Any] | None = None, /, *, name: str | None = None) -> Any:
        """Register a query; a decorator with or without a name.

        Raises:
            InvalidRequestError: it cannot be one, or its name is taken.
        """
        if function is None:
            return lambda given: self.query(given, name=name)
        if inspect.iscoroutinefunction(function):
            raise InvalidRequestError(f"query {function.__qualname__} only looks at the state: make it a plain `def`")
        query: Query[..., Any] = Query(_name_of(function, name), function)
        return _add(self.queries, query)

    def update(self, function: Callable[..., Any] | None = None, /, *, name: str | None = None) -> Any:
        """Register an update; a decorator with or without a name.

        Raises:
            InvalidRequestError: it cannot be one, or its name is taken.
        """
        if function is None:
            return lambda given: self.update(given, name=name)
        if inspect.iscoroutinefunction(function) is not self._is_async:
            form = "an `async def`" if self._is_async else "a `def`"
            raise InvalidRequestError(f"update {function.__qualname__} is not {form} function, as its workflow is")
        update: Update[..., Any] = Update(_name_of(function, name), function)
        return _add(self.updates, update)

    def find_query(self, query: Query[P, R] | str, workflow: str) -> Query[..., Any]:
        """Return a query of this workflow.

        Raises:
            InvalidRequestError: it has no such query.
        """
        return _find(self.queries, query, f"workflow {workflow} has no query")

    def find_update(self, update: Update[P, R] | str, workflow: str) -> Update[..., Any]:
        """Return an update of this workflow.

        Raises:
            InvalidRequestError: it has no such update.
        """
        return _find(self.updates, update, f"workflow {workflow} has no update")


def _name_of(function: Callable[..., Any], name: str | None) -> str:
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].kind not in _POSITIONAL:
        raise InvalidRequestError(f"{function.__qualname__} must take the state, or the context, as first parameter")
    return check_own_name(function.__name__ if name is None else name, "the name of a query or an update")


_POSITIONAL = {
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
}


def _add(known: dict[str, Q], handler: Q) -> Q:
    if handler.name in known:
        word = "a query" if isinstance(handler, Query) else "an update"
        raise InvalidRequestError(f"this workflow has {word} {handler.name!r} already")
    known[handler.name] = handler
    return handler


def _find(known: Mapping[str, Q], wanted: Any, problem: str) -> Q:
    name = wanted if isinstance(wanted, str) else getattr(wanted, "name", None)
    found = known.get(name) if isinstance(name, str) else None
    if found is None or not (isinstance(wanted, str) or wanted is found):
        raise InvalidRequestError(f"{problem} {name or wanted!r}; {_offer(known, str(name))}")
    return found


def _offer(known: Iterable[str], name: str) -> str:
    if near := difflib.get_close_matches(name, known, n=1):
        return f"did you mean {near[0]!r}?"
    return f"it has {', '.join(sorted(known))}" if known else "it has none"
