"""The time limits of a step: what its options say, and what is recorded when one of them has passed.

A step has one alarm in the agenda, armed at the nearest of its limits. What a store does when it rings:

* ``whole`` and ``start`` have passed: the step fails, with the story of :func:`story`;
* ``attempt``: the same where no attempt may follow; else the attempt ends and the step is sent again;
* ``heartbeat``: the attempt ends as if its process had been lost, and the step is sent again.

An attempt that ends so is fenced: its claim is the step's no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from durable_celery.errors import StepTimeoutError
from durable_celery.policy import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from durable_celery.events import StepScheduled

__all__ = ["ATTEMPT_OVER", "KINDS", "SILENT", "STORIES", "Limits", "first_passed", "story"]

#: The limits, in the order in which they are looked at.
KINDS = ("whole", "start", "attempt", "heartbeat")
_OPTIONS = {
    "whole": "timeout",
    "start": "start_timeout",
    "attempt": "attempt_timeout",
    "heartbeat": "heartbeat_timeout",
}
#: The error of an attempt that is shown to people while the next one is on its way.
ATTEMPT_OVER = "the attempt did not end in time"
SILENT = "the attempt gave no heartbeat in time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a step may take, in milliseconds; None is without limit."""

    whole: int | None = None
    start: int | None = None
    attempt: int | None = None
    heartbeat: int | None = None
    #: How many attempts there may be in all if each of them takes too long; 0 is any number.
    tries: int = 1

    @classmethod
    def of(cls, options: Mapping[str, Any] | None) -> Limits | None:
        """Return the limits that the options of a call set; None where they set none."""
        given = options or {}
        limits = {kind: round(given[name] * 1000) for kind, name in _OPTIONS.items() if name in given}
        return cls(**limits, tries=_tries(given)) if limits else None

    def to_json(self) -> dict[str, int]:
        """Return the plain form: only what was set."""
        form = {kind: limit for kind in KINDS if (limit := getattr(self, kind)) is not None}
        return {**form, "tries": self.tries} if self.attempt is not None else form


def _tries(options: Mapping[str, Any]) -> int:
    form = options.get("retry")
    if not form or options.get("at_most_once"):
        return 1
    return RetryPolicy.from_json(form).attempts_after(StepTimeoutError())


def first_passed(ends: Iterable[tuple[str, int]], now: int) -> str | None:
    """Return which limit has passed, of those that end at these instants; the widest one, or None."""
    passed = {kind for kind, at in ends if at <= now}
    return next((kind for kind in KINDS if kind in passed), None)


#: What happened, by the limit that has passed: @TIME@ is its seconds, @QUEUE@ where the step's message lies.
STORIES = {
    "whole": "the step did not end within its timeout of @TIME@ s",
    "start": "no worker began the step within its start_timeout of @TIME@ s: does one consume @QUEUE@?",
    "attempt": "the attempt did not end within its attempt_timeout of @TIME@ s, and no attempt is left",
}


def story(kind: str, limits: Limits, scheduled: StepScheduled) -> str:
    """Return the message of the :class:`StepTimeoutError` that is recorded."""
    queue = (scheduled.options or {}).get("queue")
    where = f"queue {queue}" if queue else f"the queue of {scheduled.task}"
    return STORIES[kind].replace("@TIME@", f"{getattr(limits, kind) / 1000:g}").replace("@QUEUE@", where)
