"""The end of a run's message while the run goes on: no final state, and no price for it.

Celery's way to end a task without a state is ``Ignore``. For it the tracer builds an ``ExceptionInfo`` twice: the
formatted traceback, and a copy of each frame's code with all its positions, which is pickled to the main process.
On Celery 5.7 that is 32 kB and 2.2 ms of CPU, as much as a whole task that does nothing, and nobody ever looks at it.
"""

from __future__ import annotations

import sys
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.app import trace
from celery.exceptions import Ignore

__all__ = ["RunWaits", "spare_tracebacks"]


class RunWaits(Ignore):
    """The run waits for something, is in other hands, or is blocked: this message has nothing more to do."""


class _BriefInfo(ExceptionInfo):
    """An ``ExceptionInfo`` that is built without a traceback for :class:`RunWaits`, and as ever for all else."""

    def __init__(self, exc_info: Any = None, internal: bool = False) -> None:  # noqa: FBT001, FBT002 - billiard's signature
        error = sys.exc_info()[1]
        if exc_info is None and isinstance(error, RunWaits):
            self.type, self.exception = type(error), error.with_traceback(None)
            self.tb, self.traceback, self.internal = None, "", internal
        else:
            super().__init__(exc_info, internal)


def spare_tracebacks() -> None:
    """Let Celery's tracer, in this process and those that are forked from it, build the brief form. May be repeated.

    Where a later Celery builds it otherwise, this changes nothing and the traceback is only slow.
    """
    if getattr(trace, "ExceptionInfo", None) is ExceptionInfo:
        trace.ExceptionInfo = _BriefInfo
