"""What a workflow is: a name and a function. The name is what histories hold; the function may change under it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
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
    #: What it answers from outside.
    handlers: Handlers = field(default_factory=Handlers)

    @property
    def is_async(self) -> bool:
        """Whether the function is an ``async def``."""
        return inspect.iscoroutinefunction(self.function)
