"""The guard: workflow code that reaches for the outside world is stopped where it does so.

Python tells its audit hooks of every file, socket and process. The hook here looks at the greenlet in which that
happens: only code in a :class:`WorkflowGreenlet` is workflow code. Steps, local steps, log handlers and everything
else of the process run in other greenlets and are not touched; they pay one look into a frozenset.

What does not pass Python's audit events (C libraries with sockets of their own, the wall clock, ``os.environ``) is not
seen here. Imports, log handlers, time zones and the printing of tracebacks may open files anywhere.
"""

from __future__ import annotations

import importlib
import linecache
import logging
import sys
import sysconfig
import threading
import time
import tokenize
import traceback
import weakref
import zoneinfo
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any

import greenlet

from durable_celery.errors import SideEffectError

__all__ = ["WorkflowGreenlet", "install"]

_OUTSIDE = "do it in a step: `ctx.step(task, ...)`, or `ctx.run(function, ...)` for a short one"
_SLEEP = "use `ctx.sleep(...)`, which survives the process"

#: Audit events that only a step may cause.
_NAMES = """
    open socket.__new__ socket.connect socket.bind socket.sendto socket.sendmsg socket.getaddrinfo
    socket.gethostbyname socket.gethostbyaddr socket.gethostname socket.getnameinfo subprocess.Popen os.system os.exec
    os.fork os.forkpty os.posix_spawn os.spawn os.startfile os.kill os.killpg os.remove os.rename os.mkdir os.rmdir
    os.chmod os.chown os.link os.symlink os.truncate os.utime os.listdir os.scandir os.putenv os.unsetenv os.chdir
    shutil.copyfile shutil.move shutil.rmtree shutil.copytree tempfile.mkstemp tempfile.mkdtemp time.sleep
    urllib.Request http.client.connect ftplib.connect imaplib.open poplib.connect smtplib.connect nntplib.connect
    telnetlib.Telnet.open sqlite3.connect webbrowser.open pty.spawn _thread.start_new_thread
    _thread.start_joinable_thread
"""
#: Garbage collection runs in workflow code too, and what fails there (a ``__del__``, a coroutine that was dropped) is
#: printed by the interpreter, which opens the files of the traceback without a frame of its own.
_UNRAISABLE = "sys.unraisablehook"
_WATCHED = frozenset({*_NAMES.split(), _UNRAISABLE})

#: Code that may do such things even when workflow code is what called it.
_EXEMPT_FILES = frozenset(
    {
        "<frozen importlib._bootstrap>",
        "<frozen importlib._bootstrap_external>",
        "<frozen zipimport>",
        linecache.__file__,
        tokenize.__file__,
        # It parses single lines, and Python 3.13 looks for the file of one that it cannot parse.
        traceback.__file__,
        # Garbage collection ends things wherever it happens to run.
        weakref.__file__,
    }
)
_EXEMPT_FOLDERS = tuple(f"{Path(module.__file__ or '').parent}/" for module in (importlib, logging, zoneinfo))
#: The C form of zoneinfo opens its files without a frame of its own.
_TIME_ZONES = tuple(f"{folder}/" for folder in zoneinfo.TZPATH)

_OWN = f"{Path(__file__).parent.parent}/"
_LIBRARIES = tuple({f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib", "purelib", "platlib")})

_installing = threading.Lock()
_installed = False


class WorkflowGreenlet(greenlet.greenlet):
    """A greenlet that runs workflow code; by its class the guard knows it."""

    #: Told of each refused side effect; code that swallows the exception is stopped all the same.
    report: Callable[[SideEffectError], object]
    #: Whether it runs ``def`` code, which may block in it; the other kind runs the event loop.
    may_block: bool = False
    #: Files that the interpreter may open to show the traceback of an error that nobody could catch.
    shown: frozenset[str] = frozenset()


def install() -> None:
    """Add the audit hook to this process, once; Python has no way to take it off again."""
    global _installed  # noqa: PLW0603 - a hook is a property of the process
    with _installing:
        if not _installed:
            sys.addaudithook(_hook)
            if sys.version_info < (3, 13):
                _watch_sleep()
            _installed = True


def _watch_sleep() -> None:
    """Make ``time.sleep`` tell the hook, as it does by itself since Python 3.13."""
    original = time.sleep

    @wraps(original)
    def sleep(seconds: float, /) -> None:
        _hook("time.sleep", (seconds,))
        original(seconds)

    setattr(time, "sleep", sleep)  # noqa: B010 - type checkers rightly mind the other way


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if event in _WATCHED:
        current = greenlet.getcurrent()
        if type(current) is WorkflowGreenlet:
            _judge(current, event, args)


def _judge(current: WorkflowGreenlet, event: str, args: tuple[Any, ...]) -> None:
    if event == _UNRAISABLE:
        current.shown = frozenset(_files_of(args[1].exc_traceback))
        return
    # Frames of this function and of the hook come first; a hook has no frame of the C function that called it.
    frames = list(_frames(sys._getframe(2)))  # noqa: SLF001 - the documented way to the caller's frame
    if any(_is_exempt(code) for code, _ in frames):
        return
    if event == "open" and isinstance(args[0], str) and (args[0] in current.shown or args[0].startswith(_TIME_ZONES)):
        return
    what = f"{event}({args[0]!r})" if args and isinstance(args[0], str | bytes) else event
    advice = _SLEEP if event == "time.sleep" else _OUTSIDE
    error = SideEffectError(f"{_user_line(frames)}: workflow code may not call {what}; {advice}")
    current.report(error)
    raise error


def _is_exempt(code: CodeType) -> bool:
    return (
        code.co_filename in _EXEMPT_FILES or code.co_filename.startswith(_EXEMPT_FOLDERS) or code.co_name == "__del__"
    )


def _frames(frame: FrameType | None) -> Iterator[tuple[CodeType, int]]:
    while frame is not None:
        yield frame.f_code, frame.f_lineno
        frame = frame.f_back


def _files_of(trace: TracebackType | None) -> Iterator[str]:
    while trace is not None:
        yield trace.tb_frame.f_code.co_filename
        trace = trace.tb_next


def _user_line(frames: list[tuple[CodeType, int]]) -> str:
    """Return ``file:line`` of the innermost frame of the user's own code."""
    places = [(code.co_filename, line) for code, line in frames]
    foreign = [place for place in places if not place[0].startswith((_OWN, "<frozen"))]
    # An app that is installed among the libraries has no frame outside them: its outermost one is the workflow.
    own = [place for place in foreign if not place[0].startswith(_LIBRARIES)] or foreign[-1:]
    return f"{own[0][0]}:{own[0][1]}" if own else "somewhere"
