"""Tells what a process signal throws into running code (shutdown, time limits) from what the code raises itself.

Python runs signal handlers between any two instructions of the main thread, so also in workflow code. Such an exception
is no decision of the code: it must end the turn, and never become part of a history.
"""

from __future__ import annotations

import signal
from functools import partial
from types import CodeType
from typing import Any

__all__ = ["is_interrupt"]

_SIGNALS = tuple(signal.valid_signals())


def is_interrupt(error: BaseException) -> bool:
    """Tell whether an exception came from a signal handler."""
    if isinstance(error, KeyboardInterrupt):
        return True
    handlers = {_code_of(handler) for handler in map(signal.getsignal, _SIGNALS) if callable(handler)} - {None}
    trace = error.__traceback__ if handlers else None
    while trace is not None:
        if trace.tb_frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False


def _code_of(handler: Any) -> CodeType | None:
    """Return the code of a handler: a function, a method, a partial or an object that can be called."""
    while isinstance(handler, partial):
        handler = handler.func
    for candidate in (handler, vars(type(handler)).get("__call__")):
        code = getattr(candidate, "__code__", None)
        if isinstance(code, CodeType):
            return code
    return None
