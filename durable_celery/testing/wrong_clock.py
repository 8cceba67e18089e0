"""A clock that is wrong, for a process whose only purpose is to replay histories.

Histories carry their times with them, so workflow code that asks nobody but its context sees nothing of it. ``time``
gets other functions. ``datetime`` is closed for changes, but the dictionary behind it is an ordinary one; like this the
clock is wrong for everybody, however the class was imported, and values keep their class. Clocks that measure
durations (``monotonic``, ``perf_counter``) are right: to shift them would change no duration.
"""

from __future__ import annotations

import ctypes
import datetime as dt
import gc
import sys
import time
from datetime import timedelta
from typing import Any

__all__ = ["WrongClock"]


class WrongClock:
    """The clock of this process, as far as Python code can ask for it; right until ``shift`` is set."""

    def __init__(self) -> None:
        """Take the place of every clock, which cannot be undone."""
        self.shift = timedelta(0)
        self._replace_time()
        for name in ("now", "utcnow"):
            self._replace_method(name)
        self._check()

    def _replace_time(self) -> None:
        seconds, nanoseconds, strftime = time.time, time.time_ns, time.strftime
        time.time = lambda: seconds() + self.shift.total_seconds()
        time.time_ns = lambda: nanoseconds() + self.shift // timedelta(microseconds=1) * 1000
        for name in ("gmtime", "localtime", "ctime"):
            self._replace_reading(name)
        time.strftime = lambda form, *moment: strftime(form, *(moment or (time.localtime(),)))

    def _replace_reading(self, name: str) -> None:
        real = getattr(time, name)
        setattr(time, name, lambda seconds=None: real(time.time() if seconds is None else seconds))

    def _replace_method(self, name: str) -> None:
        # date.today, and so datetime.today, ask time.time.
        real = dt.datetime.__dict__[name]

        def shifted(cls: Any, *args: Any, **kwargs: Any) -> Any:
            return real.__get__(None, cls)(*args, **kwargs) + self.shift

        own: Any = gc.get_referents(dt.datetime.__dict__)[0]
        own[name] = classmethod(shifted)
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(dt.datetime))

    def _check(self) -> None:
        """Find out whether this Python lets its types be changed so."""
        before, self.shift = dt.datetime.now(dt.UTC), timedelta(days=2)
        after, self.shift = dt.datetime.now(dt.UTC), timedelta(0)
        if after - before < timedelta(days=1):
            raise RuntimeError(f"the clock of Python {sys.version} cannot be set wrong for a test")
