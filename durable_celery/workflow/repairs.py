"""Two places of asyncio that a replayed loop has to reach into: both are repaired for workflow code only.

``TaskGroup`` (before Python 3.13) takes a subclass of CancelledError for a failure. ``as_completed`` puts coroutines
into a set before it makes tasks of them, so that their order follows from addresses.
"""

from __future__ import annotations

import asyncio
import sys
from functools import cache
from types import CodeType, FrameType, TracebackType
from typing import Any

from durable_celery.errors import WorkflowCancelled

__all__ = ["argument_of_as_completed", "repair_task_group"]

# A function, or since Python 3.13 a class.
_CLASS: Any = getattr(asyncio.tasks, "_AsCompletedIterator", None)
_AS_COMPLETED: CodeType = _CLASS.__init__.__code__ if _CLASS else asyncio.as_completed.__code__
#: The name of the argument that holds the awaitables.
_AWAITABLES = "aws" if _CLASS else "fs"
#: How many frames stand between it and the loop's create_task, at most.
_DEPTH = 6


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


def argument_of_as_completed(frame: FrameType | None) -> Any:
    """Return what ``asyncio.as_completed`` was given, if one of the innermost frames is its; else None."""
    for _ in range(_DEPTH):
        if frame is None:
            break
        if frame.f_code is _AS_COMPLETED:
            return frame.f_locals[_AWAITABLES]
        frame = frame.f_back
    return None
