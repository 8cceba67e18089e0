"""Replay tests: every saved history of a folder is replayed against today's code.

``celery -A app durable export`` saves histories. :func:`replay_histories` replays them; the pytest fixture
``durable_histories`` does so with one test for each. A history is replayed from its start, turn by turn and several
turns at a time, in this process and in others with another hash seed, where the clock is right and then wrong. Nothing
runs but workflow code: no step, no local step. No server is asked for anything.

Invariant: what is reported names the file, the way in which it was replayed, and the event.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from durable_celery.errors import DurableError
from durable_celery.testing.replayer import (
    ORDER_ADVICE,
    OtherProcess,
    ProcessTroubleError,
    Replayer,
    load_app,
    places_of,
)
from durable_celery.testing.replays import End, History, Mismatch
from durable_celery.testing.saved import HistoryFileError, SavedHistory, find_histories

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery import Celery

__all__ = ["HistoryFileError", "HistoryReplay", "ReplayError", "SavedHistory", "find_histories", "replay_histories"]

#: Hash seeds of the other processes. A small set has few orders: two more processes see another one more often.
SEEDS = ("1", "2")


class ReplayError(DurableError, AssertionError):
    """Today's code does not do what a saved history says."""


class HistoryReplay:
    """Replays saved histories of one app; the other processes are started once. A context manager.

    Args:
        app: the app, or where it is, as ``celery -A`` takes it.
        place: where other processes find it, if not where it stands in this one (an app factory makes another one).
        seeds: hash seeds of the other processes; none of them spares the processes, and finds less.
    """

    def __init__(self, app: Celery | str, *, place: str = "", seeds: Sequence[str] = SEEDS) -> None:
        self._replayer = Replayer(load_app(app) if isinstance(app, str) else _real(app))
        place = place or (app if isinstance(app, str) else "")
        self._places = [place] if place else places_of(self._replayer.app)
        self._seeds = seeds
        self._others: list[OtherProcess] = []

    def replay(self, saved: SavedHistory) -> None:
        """Replay one history in all ways.

        Raises:
            ReplayError: the code does not do what the history says.
            HistoryFileError: the history cannot be read, or its workflow is not known.
        """
        history = self._replayer.read(saved)
        module = self._replayer.definition(saved, history).function.__module__
        try:
            end = self._replayer.replay(saved, history)
            for other in self._other_processes():
                _compare(end, other.replay(saved, module), other.seed)
        except Mismatch as mismatch:
            raise ReplayError(_story(saved, history, mismatch)) from None
        except ProcessTroubleError as trouble:
            self.close()
            raise ReplayError(f"{saved}: {trouble}") from None

    def close(self) -> None:
        """End the other processes."""
        while self._others:
            self._others.pop().stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _other_processes(self) -> Sequence[OtherProcess]:
        if self._seeds and not self._places:
            raise HistoryFileError(
                f"the app {self._replayer.app.main!r} stands in no module, so no other process can load it. Give its "
                "place instead, as `celery -A` takes it: 'module:attribute'"
            )
        if not self._others:
            # All are started before the first one is asked, so that they load the app at the same time.
            self._others = [OtherProcess(seed, self._places) for seed in self._seeds]
        return self._others


def replay_histories(app: Celery | str, path: str | os.PathLike[str], *, seeds: Sequence[str] = SEEDS) -> list[str]:
    """Replay all saved histories of a folder (with its sub-folders), or of a file.

    Args:
        app: the app, or where it is, as ``celery -A`` takes it.
        path: a folder, a ``.json`` file (one history) or a ``.jsonl`` file (one on each line).
        seeds: see :class:`HistoryReplay`.

    Returns:
        What was replayed: the names of the files.

    Raises:
        ReplayError: the code does not do what some of them say; all that were found are told.
        HistoryFileError: there are none, or the only trouble is with files that cannot be read.
    """
    found = find_histories(Path(path))
    troubles: list[DurableError] = []
    with HistoryReplay(app, seeds=seeds) as replays:
        for saved in found:
            try:
                replays.replay(saved)
            except (ReplayError, HistoryFileError) as error:
                troubles.append(error)
    if not troubles:
        return [str(saved) for saved in found]
    kind = ReplayError if any(isinstance(error, ReplayError) for error in troubles) else HistoryFileError
    head = f"{len(troubles)} of {len(found)} saved histories of {path} do not replay"
    raise kind("\n\n".join([head, *map(str, troubles)]))


def _compare(here: End, there: End, seed: str) -> None:
    if here != there:
        story = f"At the end of the history the code {there}. In the process of the test it {here}."
        raise Mismatch(f"in a process with PYTHONHASHSEED={seed}", story, ORDER_ADVICE)


def _story(saved: SavedHistory, history: History, mismatch: Mismatch) -> str:
    head = [
        f"{saved}: today's code does not do what this history says",
        f"workflow {history.workflow_id!r} ({history.name}), {len(history.events)} events, replayed {mismatch.way}",
    ]
    return "\n".join([*head, "", mismatch.story, *(["", mismatch.advice] if mismatch.advice else [])])


def _real(app: Celery) -> Any:
    """Return the app behind a proxy such as ``celery.current_app``."""
    proxy: Any = app
    return proxy._get_current_object() if hasattr(proxy, "_get_current_object") else app  # noqa: SLF001 - Celery's
