"""Retry arithmetic: when a failed step is tried again, and when it is given up.

Pure functions of their arguments; the delays they give become due times in the agenda and hold no worker.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from durable_celery.errors import InvalidRequestError, NonRetryable, RetryAfter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["RetryPolicy", "seconds", "wait_after"]


def seconds(duration: timedelta | float) -> float:
    """Return a duration given as ``timedelta`` or number in seconds.

    Raises:
        InvalidRequestError: the duration is negative or no duration at all.
    """
    value: object = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        msg = f"a duration is a timedelta or a number of seconds from 0, not {duration!r}"
        raise InvalidRequestError(msg)
    return float(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How a step that raised is tried again: exponential backoff with bounds.

    The wait before attempt ``n + 1`` is ``initial_interval * backoff_coefficient ** (n - 1)``, at most
    ``maximum_interval``, less a random share of up to ``jitter``.
    """

    #: Wait before the second attempt, in seconds or as a timedelta.
    initial_interval: timedelta | float = 1.0
    #: Factor from one wait to the next.
    backoff_coefficient: float = 2.0
    #: Longest wait, in seconds or as a timedelta.
    maximum_interval: timedelta | float = 100.0
    #: How often the step is tried in all, the first attempt counted; 0 is without limit.
    maximum_attempts: int = 10
    #: Share of a wait (0 to 1) that chance may take off, so that many steps do not come back at once.
    jitter: float = 0.1
    #: Exception classes, or their qualified names, that are not tried again; subclasses count.
    non_retryable: tuple[type[BaseException] | str, ...] = ()
    #: Exception classes, or their qualified names, that alone are tried again; none is every class.
    retryable: tuple[type[BaseException] | str, ...] = ()
    #: A function of a module, or ``"module:name"``, that is asked in the worker, with the exception, whether to go on.
    retry_if: Callable[[BaseException], object] | str | None = None

    def __post_init__(self) -> None:
        if self.retry_if is not None and _found(_path_of(self.retry_if)) is None:
            msg = f"retry_if takes a function at the top of a module, which workers can find, not {self.retry_if!r}"
            raise InvalidRequestError(msg)
        seconds(self.initial_interval)
        seconds(self.maximum_interval)
        if self.backoff_coefficient < 1 or self.maximum_attempts < 0 or not 0 <= self.jitter <= 1:
            msg = f"a retry policy needs backoff_coefficient >= 1, maximum_attempts >= 0, 0 <= jitter <= 1: {self}"
            raise InvalidRequestError(msg)

    def delay(self, attempt: int, chance: float) -> float:
        """Return the seconds to wait after ``attempt`` (from 1) failed; ``chance`` is a random number in [0, 1)."""
        longest = seconds(self.maximum_interval)
        # The exponent is bounded because float overflow is an error and the maximum wins long before.
        wait = min(seconds(self.initial_interval) * self.backoff_coefficient ** min(attempt - 1, 64), longest)
        return wait * (1 - self.jitter * chance)

    def allows(self, attempt: int) -> bool:
        """Tell whether another attempt may follow ``attempt``."""
        return self.maximum_attempts == 0 or attempt < self.maximum_attempts

    def retries(self, error: BaseException, attempt: int) -> bool:
        """Tell whether ``error``, raised by ``attempt``, is followed by another attempt."""
        if not self.allows(attempt) or not self._covers(error):
            return False
        return self.retry_if is None or bool(self._ask(error))

    def attempts_after(self, error: BaseException) -> int:
        """Return how many attempts there may be in all if each ends with ``error``; 0 is any number.

        ``retry_if`` is not asked: where this matters, nobody is there who could ask it.
        """
        return self.maximum_attempts if self._covers(error) else 1

    def _covers(self, error: BaseException) -> bool:
        """Whether errors of this class are tried again at all."""
        if _is_one_of(error, self.non_retryable):
            return False
        return not self.retryable or _is_one_of(error, self.retryable)

    def _ask(self, error: BaseException) -> object:
        if callable(self.retry_if):
            return self.retry_if(error)
        # A worker that does not know the function has no reason to give up.
        predicate = _found(str(self.retry_if))
        return predicate is None or predicate(error)

    def to_json(self) -> dict[str, Any]:
        """Return the plain form that is recorded with a scheduled step."""
        form: dict[str, Any] = {
            "initial_interval": seconds(self.initial_interval),
            "backoff_coefficient": self.backoff_coefficient,
            "maximum_interval": seconds(self.maximum_interval),
            "maximum_attempts": self.maximum_attempts,
            "jitter": self.jitter,
            "non_retryable": _names(self.non_retryable),
        }
        if self.retryable:
            form["retryable"] = _names(self.retryable)
        if self.retry_if is not None:
            form["retry_if"] = _path_of(self.retry_if)
        return form

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> Self:
        """Rebuild a policy from :meth:`to_json`."""
        given: dict[str, Any] = dict(form)
        for name in ("non_retryable", "retryable"):
            given[name] = tuple(form.get(name, ()))
        # The function may be unknown here, which is nobody's mistake.
        retry_if = given.pop("retry_if", None)
        policy = cls(**given)
        object.__setattr__(policy, "retry_if", retry_if)
        return policy


def wait_after(
    policy: RetryPolicy | None, error: BaseException, attempt: int, chance: Callable[[], float]
) -> float | None:
    """Return the seconds from the failure of ``attempt`` to the next one, or None if it is given up.

    ``chance`` gives a random number in [0, 1) and is called only if it is needed.
    """
    if isinstance(error, RetryAfter):
        return error.seconds if (policy or RetryPolicy()).retries(error, attempt) else None
    if policy is None or isinstance(error, NonRetryable) or not policy.retries(error, attempt):
        return None
    return policy.delay(attempt, chance())


def _is_one_of(error: BaseException, kinds: tuple[type[BaseException] | str, ...]) -> bool:
    names = {type_name(kind) for kind in type(error).__mro__} | {kind.__name__ for kind in type(error).__mro__}
    return not names.isdisjoint(_names(kinds))


def _names(kinds: tuple[type[BaseException] | str, ...]) -> list[str]:
    return [kind if isinstance(kind, str) else type_name(kind) for kind in kinds]


def _path_of(function: Callable[..., object] | str) -> str:
    if isinstance(function, str):
        return function
    return f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', '')}"


def _found(path: str) -> Callable[[BaseException], object] | None:
    """Return a function by its path, from the modules that are loaded: what is recorded never loads one."""
    module, _, name = path.partition(":")
    found = getattr(sys.modules.get(module), name, None)
    return found if callable(found) else None


def type_name(kind: type) -> str:
    """Return the qualified name under which a class is recorded."""
    return f"{kind.__module__}.{kind.__qualname__}"
