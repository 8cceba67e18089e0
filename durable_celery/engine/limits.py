"""Limits of histories: a run that writes for ever is stopped before it fills the store.

A run at its limit is blocked, not failed: nothing is lost, and it goes on where the limit is raised. A cancelled run
may go beyond, so that it can clean up and end.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from durable_celery.errors import HistoryLimitError

if TYPE_CHECKING:
    from durable_celery.workflow import Execution

__all__ = ["HistoryLimits"]

_log = logging.getLogger(__name__)
#: From here on a warning is due, at each doubling.
WARN_EVENTS, WARN_BYTES = 10_000, 10 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryLimits:
    """How long a history may grow; 0 is no limit."""

    events: int = 0
    size: int = 0

    def check(self, execution: Execution) -> None:
        """Look at a run that has come to rest, before its new commands are written.

        Raises:
            HistoryLimitError: it is at a limit, has not ended and is not cancelled.
        """
        before = execution.checked
        execution.checked = events, size = execution.extent
        if _crossed(before[0], events, WARN_EVENTS) or _crossed(before[1], size, WARN_BYTES):
            _log.warning(
                "the history of workflow %s has %s events, %s bytes; ctx.continue_as_new() begins a new one",
                execution.workflow_id, events, size,
            )  # fmt: skip
        if execution.closed or execution.cancelled:
            return
        if 0 < self.events <= events or 0 < self.size <= size:
            raise HistoryLimitError(
                f"workflow {execution.workflow_id!r} has {events} events of {size} bytes; the limits are {self.events} "
                f"events (durable_history_limit) and {self.size} bytes (durable_history_bytes_limit). Raise the limit "
                "and it goes on, or cancel it; keep runs short with ctx.continue_as_new(), or by child runs"
            )


def _crossed(before: int, now: int, mark: int) -> bool:
    """Tell whether a doubling of ``mark`` lies between two values."""
    return now >= mark and (now // mark).bit_length() > (before // mark).bit_length()
