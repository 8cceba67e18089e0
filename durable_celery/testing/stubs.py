"""What a test puts in the place of a task: values, functions, failures, one after the other.

A *script* is what happens at the first call, at the second, and so on; the last one goes for all that follow. Scripts
are values: the same one may be given to many runs, and each begins at its start.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from durable_celery.errors import InvalidRequestError

__all__ = ["Script", "fails", "raises", "read_steps", "remote", "returns"]

#: One call of a script; None stands for the real task.
Act = Callable[..., Any] | None


@dataclass(frozen=True, slots=True)
class Script:
    """What a task does in a test, call by call. Made by :func:`returns`, :func:`raises` and :func:`fails`."""

    acts: tuple[Act, ...]
    #: Whether the real task goes on after the last of these acts, where nothing else was said.
    then_real: bool = False

    def then(self, what: object) -> Script:
        """Return a script that goes on with ``what``: a value, a function, or another script."""
        following = _script_of(what)
        return Script((*self.acts, *following.acts), then_real=following.then_real)

    def act(self, position: int) -> Act:
        """Return what happens at a call, counted from 0; None for the real task."""
        if position < len(self.acts):
            return self.acts[position]
        return None if self.then_real else self.acts[-1]


def returns(value: object) -> Script:
    """Let a task return ``value``. Needed where the value itself could be taken for a function."""
    return Script((lambda *_, **__: value,))


def raises(error: BaseException | type[BaseException]) -> Script:
    """Let a task raise ``error``; for ever, or once if ``.then(...)`` follows."""

    def act(*_: object, **__: object) -> Any:
        raise error

    return Script((act,))


def fails(times: int = 1, error: BaseException | type[BaseException] | None = None) -> Script:
    """Let the first calls of a task fail; after them the real task runs, or what ``.then(...)`` says.

    Args:
        times: how many calls fail.
        error: what they raise; default is a :class:`ConnectionError`.
    """
    if times < 1:
        raise InvalidRequestError(f"fails({times}) is no failure; give how many calls fail, from 1")

    def act(number: int) -> Act:
        made = ConnectionError(f"failure {number} of {times} that the test asked for")
        return raises(made if error is None else error).acts[0]

    return Script(tuple(act(number) for number in range(1, times + 1)), then_real=True)


@dataclass(frozen=True, slots=True)
class Remote:
    """The name of a task that this app does not have."""

    name: str


def remote(name: str) -> Any:
    """Name a task of another service, to stand for it in ``steps``: ``{remote("ocr.read"): "text"}``."""
    return Remote(name)


def read_steps(steps: Mapping[Any, Any], tasks: Mapping[str, Any]) -> dict[str, Script]:
    """Return scripts by task name, from what a test wrote.

    Raises:
        InvalidRequestError: a key is no task that the app knows, or a value cannot stand for its task.
    """
    if not isinstance(steps, Mapping):
        raise InvalidRequestError(f"steps takes a mapping from tasks to what they do, not {steps!r}")
    scripts: dict[str, Script] = {}
    for key, what in steps.items():
        name = _name_of(key, tasks)
        scripts[name] = _script_of(what, name)
        for act in scripts[name].acts:
            if act is not None and name in tasks:
                _check_shape(name, tasks[name], act)
    return scripts


def _name_of(key: object, tasks: Mapping[str, Any]) -> str:
    if isinstance(key, Remote):
        return key.name
    name = key if isinstance(key, str) else getattr(key, "name", None)
    if not isinstance(name, str):
        shown = getattr(key, "__qualname__", None) or repr(key)
        raise InvalidRequestError(f"steps is keyed by Celery tasks or their names; {shown} is neither")
    if name not in tasks:
        near = difflib.get_close_matches(name, [task for task in tasks if not task.startswith("celery.")], 1, 0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InvalidRequestError(
            f"steps names the task {name!r}, which this app does not have.{hint} For a task of another service write "
            f"steps={{remote({name!r}): ...}}"
        )
    return name


def _script_of(what: object, name: str = "it") -> Script:
    if isinstance(what, Script):
        return what
    if isinstance(what, BaseException) or (isinstance(what, type) and issubclass(what, BaseException)):
        raise InvalidRequestError(f"{what!r} as the result of {name}: write raises({what!r}) to have it raised")
    if isinstance(what, type) or not callable(what):
        return returns(what)
    return Script((what,))


def _check_shape(name: str, task: Any, what: Callable[..., Any]) -> None:
    """Refuse a function that cannot be called as its task is.

    Raises:
        InvalidRequestError: its parameters do not fit.
    """
    if inspect.iscoroutinefunction(what):
        raise InvalidRequestError(f"the override of {name} is an `async def` function; a task is a plain function")
    try:
        own, given = _parameters_of(task), inspect.signature(what)
    except (TypeError, ValueError):
        return  # written in C: it is called as it is
    needed = [one for one in own.parameters.values() if one.default is one.empty]
    by_name = {one.name: None for one in needed if one.kind is one.KEYWORD_ONLY}
    by_place = [None for one in needed if one.kind in {one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD}]
    try:
        given.bind(*by_place, **by_name)
    except TypeError as error:
        raise InvalidRequestError(f"the override of {name} takes {given}, the task takes {own}: {error}") from None


def _parameters_of(task: Any) -> inspect.Signature:
    """Return the signature by which a task is called, without ``self`` or the workflow's context."""
    if getattr(task, "is_durable", False):
        function = task.definition.function
        return inspect.signature(function).replace(parameters=list(inspect.signature(function).parameters.values())[1:])
    return inspect.signature(getattr(task, "_orig_run", task.run))
