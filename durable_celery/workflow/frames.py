"""Tracebacks of user code, as users read them: without the frames of what runs it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["without_own_frames"]

_OWN = f"{Path(__file__).parent}/"


def without_own_frames(error: BaseException) -> BaseException:
    """Cut the frames of this package off the head of a traceback: it begins with the user's function."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OWN):
        trace = trace.tb_next
    return error if trace is None else error.with_traceback(trace)
