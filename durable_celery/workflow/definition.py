"""What a workflow is: a name, a version and a function. Histories hold name and version; the function may change."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from durable_celery.workflow.handlers import Handlers

__all__ = ["Definition"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A workflow as it is registered in a process."""

    #: Name of the durable task.
    name: str
    #: The user's ``def`` or ``async def`` function; its first argument is the context.
    function: Callable[..., Any]
    #: Which of the functions that are registered under the name side by side.
    version: int = 1
    #: What it answers from outside.
    handlers: Handlers = field(default_factory=Handlers)

    @property
    def is_async(self) -> bool:
        """Whether the function is an ``async def``."""
        return _is_async(self.function)


@lru_cache(maxsize=256)
def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function)
