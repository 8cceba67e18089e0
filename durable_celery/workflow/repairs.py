"""Three places of asyncio that a replayed loop has to reach into: all are repaired for workflow code only.

``TaskGroup`` (before Python 3.13) takes a subclass of CancelledError for a failure. ``timeout`` takes a cancel of the
run for its own, if its time is up while the code cleans up for that, because that is no longer counted by then.
``as_completed`` puts coroutines into a set before it makes tasks of them, so that their order follows from addresses.
"""

from __future__ import annotations

import asyncio
import sys
from functools import cache
from types import CodeType, FrameType, TracebackType
from typing import Any

from durable_celery.errors import WorkflowCancelled

__all__ = ["argument_of_as_completed", "cancel_in", "repair_task_group", "repair_timeout"]

# A function, or since Python 3.13 a class.
_CLASS: Any = getattr(asyncio.tasks, "_AsCompletedIterator", None)
_AS_COMPLETED: CodeType = _CLASS.__init__.__code__ if _CLASS else asyncio.as_completed.__code__
#: The name of the argument that holds the awaitables.
_AWAITABLES = "aws" if _CLASS else "fs"
#: How many frames stand between it and the loop's create_task, at most.
_DEPTH = 6
#: Where a timeout notes the cancel for which the code cleaned up already when its block began.
_KNOWN = "_durable_cancel"


@cache
def repair_task_group() -> None:
    """Let ``asyncio.TaskGroup`` take :class:`WorkflowCancelled` for a cancellation. Nobody else raises that."""
    if sys.version_info >= (3, 13):
        return
    original = asyncio.TaskGroup.__aexit__

    async def leave(
        self: asyncio.TaskGroup,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await original(self, asyncio.CancelledError if kind is WorkflowCancelled else kind, error, trace)

    setattr(asyncio.TaskGroup, "__aexit__", leave)  # noqa: B010 - type checkers rightly mind the other way


@cache
def repair_timeout() -> None:
    """Let ``asyncio.timeout`` leave a cancel of the run to those around it, if that came in its block."""
    enter_block, leave_block = asyncio.Timeout.__aenter__, asyncio.Timeout.__aexit__

    async def enter(self: asyncio.Timeout) -> asyncio.Timeout:
        vars(self)[_KNOWN] = cancel_in(sys.exception())
        return await enter_block(self)

    async def leave(
        self: asyncio.Timeout,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await leave_block(self, kind, error, trace)
        except TimeoutError:
            cancel = cancel_in(error)
            if cancel is None or cancel is vars(self).get(_KNOWN):
                raise
            raise cancel from None

    setattr(asyncio.Timeout, "__aenter__", enter)  # noqa: B010 - type checkers rightly mind the other way
    setattr(asyncio.Timeout, "__aexit__", leave)  # noqa: B010


def cancel_in(error: BaseException | None) -> WorkflowCancelled | None:
    """Return the cancel of the run, or of a ``def`` branch, that is being handled; None if there is none.

    One that the code swallowed before does not count, so it is looked for in what the exception interrupted.
    """
    while error is not None and not isinstance(error, WorkflowCancelled):
        error = error.__context__
    return error


def argument_of_as_completed(frame: FrameType | None) -> Any:
    """Return what ``asyncio.as_completed`` was given, if one of the innermost frames is its; else None."""
    for _ in range(_DEPTH):
        if frame is None:
            break
        if frame.f_code is _AS_COMPLETED:
            return frame.f_locals[_AWAITABLES]
        frame = frame.f_back
    return None
