"""What a step calls: the Celery task behind an argument, and the options of the call. It knows Celery by its looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any, Literal, ParamSpec, Protocol, Self, TypeVar

from durable_celery.codec import check_id
from durable_celery.errors import InvalidRequestError, UnknownTaskError
from durable_celery.policy import RetryPolicy, seconds

__all__ = [
    "UNSET",
    "CallOptions",
    "ParentClose",
    "TaskLike",
    "behind",
    "check_arguments",
    "is_function",
    "options_of_call",
    "resolve",
]

#: Shortest limit in seconds: the store counts in milliseconds.
_SHORTEST = 0.001

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)


class TaskLike(Protocol[P, R_co]):
    """A Celery task, as far as type checkers know it: to many of them it is still the function that was decorated."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run the task here; only its signature matters to a workflow."""
        ...


class ParentClose(StrEnum):
    """What becomes of a child run that goes on when its parent's code has ended."""

    #: It is cancelled.
    CANCEL = "cancel"
    #: It goes on by itself, and nobody waits for it; also when the parent is cancelled.
    ABANDON = "abandon"
    #: The parent's end waits for its end; if the parent is cancelled, so is the child.
    WAIT = "wait"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """Options of a step: what ``ctx.options(...)`` was given."""

    retry: RetryPolicy | None = None
    #: From being scheduled to the outcome, in seconds, as the three that follow.
    timeout: float | None = None
    #: From being scheduled to the begin of the first attempt.
    start_timeout: float | None = None
    #: From the begin of an attempt to its end.
    attempt_timeout: float | None = None
    #: From one heartbeat of an attempt to the next.
    heartbeat_timeout: float | None = None
    #: Whether an attempt whose process was lost is the last.
    at_most_once: bool | None = None
    queue: str | None = None
    priority: int | None = None
    #: What people see in place of the task's name.
    name: str | None = None
    #: None: a child goes on after an end, and is cancelled after a cancel.
    parent_close: ParentClose | None = None
    #: Id of a child run; None: the step's key.
    workflow_id: str | None = None
    #: More options of ``apply_async`` for the step's message, which a signature brought.
    message: Mapping[str, Any] | None = None

    def with_(  # noqa: PLR0913 - as Context.options has them
        self,
        *,
        retry: RetryPolicy | int | None = None,
        timeout: timedelta | float | None = None,
        start_timeout: timedelta | float | None = None,
        attempt_timeout: timedelta | float | None = None,
        heartbeat_timeout: timedelta | float | None = None,
        at_most_once: bool | None = None,
        queue: str | None = None,
        priority: int | None = None,
        name: str | None = None,
        parent_close: ParentClose | str | None = None,
        workflow_id: str | None = None,
    ) -> Self:
        """Return these options with those given in their place.

        Raises:
            InvalidRequestError: a value cannot be meant.
        """
        given: dict[str, Any] = {"queue": queue, "priority": priority, "name": name, "at_most_once": at_most_once}
        given["retry"] = RetryPolicy(maximum_attempts=retry) if isinstance(retry, int) else retry
        given["workflow_id"] = None if workflow_id is None else check_id(workflow_id)
        given["timeout"] = _limit("timeout", timeout)
        given["start_timeout"] = _limit("start_timeout", start_timeout)
        given["attempt_timeout"] = _limit("attempt_timeout", attempt_timeout)
        given["heartbeat_timeout"] = _limit("heartbeat_timeout", heartbeat_timeout)
        if at_most_once is not None and not isinstance(at_most_once, bool):
            raise InvalidRequestError(f"at_most_once is True or False, not {at_most_once!r}")
        if parent_close is not None:
            if parent_close not in set(ParentClose):
                raise InvalidRequestError(f"parent_close is one of {', '.join(ParentClose)}, not {parent_close!r}")
            given["parent_close"] = ParentClose(parent_close)
        return replace(self, **{key: value for key, value in given.items() if value is not None})

    def to_json(self) -> dict[str, Any] | None:
        """Return the plain form that is recorded with a step: only what was set, None if nothing was."""
        if self is UNSET:
            return None
        form = {key: value for name, key in _KEYS.items() if (value := getattr(self, name)) is not None}
        if self.retry is not None:
            form["retry"] = self.retry.to_json()
        # What is False is as if it had not been said.
        return {key: value for key, value in form.items() if value is not None and value is not False} or None

    def check_kind(self, name: str, kind: str) -> None:
        """Refuse options that a step of a kind has no use for.

        Raises:
            InvalidRequestError: there are such.
        """
        if self.workflow_id is not None and kind != "workflow":
            raise InvalidRequestError(f"workflow_id is the id of a child run, and {name} is no durable task")
        if self.message and kind == "workflow":
            raise InvalidRequestError(f"{', '.join(self.message)}: not for a child run, which is {name}")

    def check_local(self) -> None:
        """Refuse options that a local step has no use for.

        Raises:
            InvalidRequestError: there are such.
        """
        useless = {"timeout", "queue", "priority", "parent_close", "workflow_id", *_OF_ATTEMPTS}
        if extra := useless & set(self.to_json() or ()):
            raise InvalidRequestError(
                f"a local step takes the options retry and name, not {', '.join(sorted(extra))}: it runs here and now"
            )

    def check_child(self) -> None:
        """Refuse options that a child workflow has no use for.

        Raises:
            InvalidRequestError: there are such.
        """
        extra = _OF_ATTEMPTS & set(self.to_json() or ())
        if extra:
            raise InvalidRequestError(
                f"a child workflow has no attempts, so it does not take {', '.join(sorted(extra))}; give these to its "
                "steps, and timeout to the child"
            )


#: What most calls have.
UNSET = CallOptions()
#: Options that say something about single attempts.
_OF_ATTEMPTS = {"start_timeout", "attempt_timeout", "heartbeat_timeout", "at_most_once"}


def _limit(name: str, given: timedelta | float | None) -> float | None:
    """Return a limit in seconds.

    Raises:
        InvalidRequestError: it is no duration, or nothing can be done in it.
    """
    limit = None if given is None else seconds(given)
    if limit is not None and limit < _SHORTEST:
        raise InvalidRequestError(f"a {name} of {given!r} ends a step before it begins")
    return limit


#: Names of the options, and the keys under which they are recorded.
_KEYS = {field.name: "label" if field.name == "name" else field.name for field in fields(CallOptions)}


def behind(task: Any) -> Any:
    """Return what a proxy of Celery's stands for, as which a task is handed out: each look through it is slow."""
    find = getattr(type(task), "_get_current_object", None)
    return task if find is None else find(task)


def is_function(called: object) -> bool:
    """Tell whether what is to be called is a plain function, and neither a task nor the name of one."""
    return callable(called) and not isinstance(getattr(called, "name", None), str)


def resolve(task: object) -> tuple[str, Literal["task", "workflow"]]:
    """Return the name of a Celery task, or of a durable task, and which of the two it is.

    Raises:
        UnknownTaskError: it is neither.
    """
    name = task if isinstance(task, str) else getattr(task, "name", None)
    if isinstance(task, dict) or getattr(task, "is_foreign", False):
        raise UnknownTaskError(
            "this takes a task of this app; a signature, or a foreign task, is for ctx.step and ctx.start"
        )
    if not isinstance(name, str) or not name:
        what = getattr(task, "__qualname__", None) or repr(task)
        raise UnknownTaskError(
            f"{what} is no Celery task: decorate it with @app.task to run it as a step, or use ctx.run to run it here"
        )
    return name, "workflow" if getattr(task, "is_durable", False) else "task"


def options_of_call(task: object, options: CallOptions) -> dict[str, Any] | None:
    """Return what is recorded as the options of a step.

    With a child run go its version, and the queue of that version: the process that starts it may not know them.
    """
    form = options.to_json() or {}
    if getattr(task, "is_durable", False):
        if (version := getattr(task, "version", 1)) > 1:
            form["version"] = version
        if queue := getattr(task, "run_queue", None):
            form.setdefault("queue", queue)
    return form or None


def check_arguments(task: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Hold a call's arguments against the signature of its task, as ``Task.apply_async`` does.

    Raises:
        TypeError: they do not fit.
    """
    header = getattr(task, "__header__", None)
    if callable(header) and getattr(task, "typing", False):
        header(*args, **kwargs)
