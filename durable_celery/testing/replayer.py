"""Who replays the histories of an app: this process, and others with another hash seed and a wrong clock.

The order of a set of texts and the value of ``hash()`` are fixed when Python starts, so they take another process. It
is started once, not for each history, and loads the app once. It reads one request a line and answers each with a
line; both are JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from celery.app.utils import find_app

from durable_celery.app import Binding
from durable_celery.codec import Codec, Place
from durable_celery.errors import CodecError, WorkflowCodeError
from durable_celery.store.memory import MemoryStore
from durable_celery.testing.replays import COLD, End, History, Mismatch, replay_all_ways
from durable_celery.testing.saved import HistoryFileError, SavedHistory
from durable_celery.testing.wrong_clock import WrongClock
from durable_celery.versions import versions_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery import Celery

    from durable_celery.workflow import Definition

__all__ = ["ORDER_ADVICE", "OtherProcess", "ProcessTroubleError", "Replayer", "load_app", "places_of", "serve"]

#: By how much the clock is wrong, in turn: another year, season, weekday and time of day, before and after today.
SHIFTS = (timedelta(days=-3500, hours=-7), timedelta(days=500, hours=11))

#: What to do about a difference that only another hash seed makes.
ORDER_ADVICE = """\
In the process of the test this history replays. What differs is the order of sets, and hash(): sort before you loop
(`sorted(...)`), or keep a dict, whose order is that in which it was filled."""
_CLOCK = """\
With the right time this history replays. What differs is what the clock says: ask `ctx.now()`, which replays."""
#: How much of what a process wrote is told when it ends, in characters.
_LAST_WORDS = 3000


class ProcessTroubleError(Exception):
    """The other process ended, or cannot load the app; what it wrote last."""


def load_app(place: str) -> Celery:
    """Load an app as ``celery -A`` does."""
    app: Celery = find_app(place)
    return app


def places_of(app: Celery) -> list[str]:
    """Return where the app stands, the likeliest place first: modules of tests may have other names elsewhere."""
    found = [
        f"{name}:{attribute}"
        for name, module in list(sys.modules.items())
        if name != "__main__" and module is not None
        for attribute, value in list(getattr(module, "__dict__", {}).items())
        if value is app
    ]
    main = str(app.main or "").partition(".")[0]
    return sorted(found, key=lambda place: (not main or not place.startswith(main), "test" in place, place))


class ReplayCodec(Codec):
    """An app's codec that also reads what was exported with ``--decode``, in a process that may not have the keys."""

    def digest(self, text: str, place: Place, like: str | None = None) -> str:
        """Return the digest of arguments; without the key of ``like`` they count as the same."""
        try:
            return super().digest(text, place, like)
        except CodecError:
            if like is None:
                raise
            return like


class Replayer:
    """Replays histories of one app in this process."""

    def __init__(self, app: Celery) -> None:
        """Bind the app and import its modules of tasks, as a worker does; no server is asked for anything."""
        self.app = app
        app.loader.import_default_modules()
        # A binding of its own, whose store nobody uses: the app need not have one.
        self._binding = Binding(app, store=MemoryStore())
        self._codec = ReplayCodec(self._binding.codec.limit, self._binding.codec.chain, accepts_plain=True)

    def read(self, saved: SavedHistory) -> History:
        """Read a saved history.

        Raises:
            HistoryFileError: it cannot be read, or its payloads cannot.
        """
        history = saved.read()
        saved.check_payloads(history, self._codec)
        return history

    def definition(self, saved: SavedHistory, history: History) -> Definition:
        """Return the code of a history's workflow.

        Raises:
            HistoryFileError: the app does not have it.
        """
        try:
            return self._binding.definition(history.name, history.version)
        except WorkflowCodeError as error:
            raise HistoryFileError(
                f"{saved}: {self._title(history)} is not registered in the app {self.app.main or 'default'!r}. "
                "If it belongs to another app, name that (the setting durable_app of pytest). If its module is not "
                "imported, import it. If it was renamed, its open runs will be blocked: keep the old name. If it is "
                "gone and no run of it is open, delete the file"
            ) from error

    def _title(self, history: History) -> str:
        """Say what is missing: one version of a workflow, or all of it."""
        version = f"version {history.version} of " if versions_of(self.app, history.name) else ""
        return f"{version}the workflow {history.name!r}"

    def replay(self, saved: SavedHistory, history: History) -> End:
        """Replay a history in all ways.

        Raises:
            Mismatch: the code does not do what the history says.
        """
        return replay_all_ways(self.definition(saved, history), history, self._codec)


class OtherProcess:
    """A process that replays with a hash seed of its own, and with a clock that is right, then wrong.

    Args:
        seed: its ``PYTHONHASHSEED``.
        places: where the app is, as ``celery -A`` takes it; the first one that can be imported there is taken.
    """

    def __init__(self, seed: str, places: Sequence[str]) -> None:
        self.seed = seed
        self._words = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed by stop
        # What this process can import, that one can.
        paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()", *places],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )

    def replay(self, saved: SavedHistory, module: str) -> End:
        """Replay a history there. ``module`` has its workflow, should the app not import it itself.

        Raises:
            Mismatch: the code does not do there what the history says.
            ProcessTroubleError: the process ended, or cannot load the app.
        """
        request = {"path": str(saved.path.resolve()), "line": saved.line, "module": module}
        pipe_in, pipe_out = self._process.stdin, self._process.stdout
        assert pipe_in is not None  # noqa: S101 - as it was asked for
        assert pipe_out is not None  # noqa: S101 - the same
        try:
            pipe_in.write(json.dumps(request) + "\n")
            pipe_in.flush()
            line = pipe_out.readline()
        except BrokenPipeError:
            line = ""
        answer: dict[str, Any] = json.loads(line) if line else {"trouble": self._last_words()}
        if trouble := answer.get("trouble"):
            raise ProcessTroubleError(f"a process with PYTHONHASHSEED={self.seed} cannot replay it: {trouble}")
        if mismatch := answer.get("mismatch"):
            way, story, advice = mismatch
            raise Mismatch(f"{way}, in a process with PYTHONHASHSEED={self.seed}", story, advice)
        end: dict[str, Any] = answer["end"]
        return End(is_closed=end["is_closed"], waiting=end["waiting"], commands=tuple(end["commands"]))

    def stop(self) -> None:
        """End the process. May be repeated."""
        self._process.kill()
        self._process.communicate()
        self._words.close()

    def _last_words(self) -> str:
        code = self._process.wait()
        self._words.seek(0)
        return f"it ended with {code}\n{self._words.read()[-_LAST_WORDS:]}"


def serve() -> None:
    """Answer requests until there are no more (the other process)."""
    clock = WrongClock()
    with _way_back() as out:
        replayer: Replayer | None = None
        for line in sys.stdin:
            try:
                replayer = replayer or Replayer(_load_first(sys.argv[1:]))
                answer = _answer(replayer, clock, json.loads(line))
            except Exception:  # noqa: BLE001 - whatever an app raises when it is imported has to be told over there
                answer = {"trouble": traceback.format_exc()}
            out.write(json.dumps(answer) + "\n")
            out.flush()


def _way_back() -> TextIO:
    """Return the pipe for answers; what the code prints goes to stderr from now on."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def _load_first(places: Sequence[str]) -> Celery:
    *others, last = places
    for place in others:
        try:
            return load_app(place)
        except (ImportError, AttributeError):
            continue  # the app has another name, which may be one that can be imported here
    return load_app(last)


def _answer(replayer: Replayer, clock: WrongClock, request: dict[str, Any]) -> dict[str, Any]:
    saved = SavedHistory(path=Path(request["path"]), line=request["line"])
    history = replayer.read(saved)
    if history.version not in versions_of(replayer.app, history.name):
        importlib.import_module(request["module"])
    try:
        end = replayer.replay(saved, history)
    except Mismatch as mismatch:
        by_order = mismatch.way == COLD and mismatch.advice
        return {"mismatch": [mismatch.way, mismatch.story, ORDER_ADVICE if by_order else mismatch.advice]}
    for shift in SHIFTS:
        if bad := _replay_at(replayer, clock, shift, (saved, history, end)):
            return {"mismatch": bad}
    return {"end": asdict(end)}


def _replay_at(
    replayer: Replayer, clock: WrongClock, shift: timedelta, known: tuple[SavedHistory, History, End]
) -> list[str]:
    """Replay with a wrong clock; return the mismatch, if there is one."""
    saved, history, end = known
    clock.shift = shift
    way = f"with a clock that is {abs(shift).days} days {'fast' if shift > timedelta(0) else 'slow'}"
    try:
        other = replayer.replay(saved, history)
    except Mismatch as mismatch:
        return [f"{mismatch.way}, {way}", mismatch.story, _CLOCK]
    finally:
        clock.shift = timedelta(0)
    if other == end:
        return []
    story = f"At the end of the history the code {other}. With the right time it {end}."
    return [way, story, _CLOCK]
