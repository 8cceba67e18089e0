"""Waiting for a condition with a deadline: the only sleep that tests may use."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Seconds between two looks at the condition.
POLL_INTERVAL = 0.02


class WaitTimeoutError(AssertionError):
    """The condition did not become true before the deadline."""


def wait_until(
    predicate: Callable[[], T],
    timeout: float = 10.0,
    message: str | Callable[[], str] = "condition",
) -> T:
    """Poll until the predicate is true, and return what it returned.

    Args:
        predicate: Looked at once at least, and once more after the deadline. What it raises ends the wait.
        timeout: Seconds.
        message: What is waited for; a function is called only when the wait fails, to show a log, say.

    Raises:
        WaitTimeoutError: The deadline passed.
    """
    deadline = time.monotonic() + timeout
    while True:
        is_last_look = time.monotonic() >= deadline
        if value := predicate():
            return value
        if is_last_look:
            story = message() if callable(message) else message
            raise WaitTimeoutError(f"waited {timeout:g} s in vain for {story}")
        time.sleep(POLL_INTERVAL)
