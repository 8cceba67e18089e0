"""Testing workflows without a server: the real engine, the memory store, and a clock that a test moves.

The names are loaded when they are used: a test suite that does not use them pays nothing for them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from durable_celery.testing.calls import Execution
    from durable_celery.testing.crashes import CrashReport, NotCrashProofError, crash_everywhere
    from durable_celery.testing.environment import Environment
    from durable_celery.testing.stubs import fails, raises, remote, returns
    from durable_celery.testing.system import NothingLeftError

__all__ = [
    "CrashReport",
    "Environment",
    "Execution",
    "NotCrashProofError",
    "NothingLeftError",
    "crash_everywhere",
    "fails",
    "raises",
    "remote",
    "returns",
]

_HOMES = {
    "CrashReport": "crashes",
    "Environment": "environment",
    "Execution": "calls",
    "NotCrashProofError": "crashes",
    "NothingLeftError": "system",
    "crash_everywhere": "crashes",
    "fails": "stubs",
    "raises": "stubs",
    "remote": "stubs",
    "returns": "stubs",
}


def __getattr__(name: str) -> Any:
    """Load a public name."""
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
