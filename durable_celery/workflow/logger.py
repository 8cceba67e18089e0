"""The workflow's logger: says each thing once, however often the code is replayed."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from functools import partial
from typing import Any

from durable_celery.workflow.machine import Machine

__all__ = ["WorkflowLogger"]


class WorkflowLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that is silent while code is replayed or unwound.

    It adds ``workflow_id`` and ``run`` to each record.
    """

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.logger, {"workflow_id": machine.workflow_id, "run": machine.run})
        self._machine = machine

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Merge what the caller gives as ``extra`` with what is added here."""
        return msg, {**kwargs, "extra": {**(self.extra or {}), **(kwargs.get("extra") or {})}}

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - logging's name
        """Tell whether a message of this level would be said now."""
        machine = self._machine
        return not (machine.is_replaying or machine.driver.unwinding) and super().isEnabledFor(level)

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Say something, unless it was said before. The handlers run outside the workflow code: they may open files."""
        if not self.isEnabledFor(level):
            return
        msg, extended = self.process(msg, kwargs)
        record = self._record(level, msg, args, extended)
        if self._machine.driver.is_inside():
            self._machine.driver.outside(partial(self.logger.handle, record))
        else:
            self.logger.handle(record)

    def _record(self, level: int, msg: object, args: Any, options: MutableMapping[str, Any]) -> logging.LogRecord:
        """Make the record here, where the caller's line and exception are known."""
        exc_info = options.get("exc_info")
        if isinstance(exc_info, BaseException):
            exc_info = (type(exc_info), exc_info, exc_info.__traceback__)
        elif exc_info and not isinstance(exc_info, tuple):
            exc_info = sys.exc_info()
        # Frames of logging itself are not counted, those of this module are.
        path, line, function, stack = self.logger.findCaller(
            options.get("stack_info", False), options.get("stacklevel", 1) + 2
        )
        return self.logger.makeRecord(
            self.logger.name, level, path, line, msg, args, exc_info or None, function, options["extra"], stack
        )
