"""Saved histories: which files hold them, and what is in one.

``*.json`` is one history in the exported form of :mod:`durable_celery.events`; ``*.jsonl`` has one on each line.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from durable_celery.codec import place_of
from durable_celery.errors import DurableError
from durable_celery.events import RunStarted, history_from_json
from durable_celery.testing.replays import History

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from durable_celery.codec import Codec
    from durable_celery.events import Recorded

__all__ = ["HistoryFileError", "SavedHistory", "find_histories"]


class HistoryFileError(DurableError):
    """A saved history cannot be read; which one, why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedHistory:
    """The place of one history: a file, or a line of a file."""

    path: Path
    #: Number of the line of a ``.jsonl`` file, from 1.
    line: int | None = None

    def __str__(self) -> str:
        return str(self.path) if self.line is None else f"{self.path}:{self.line}"

    def read(self) -> History:
        """Read the history; its payloads stay as they are.

        Raises:
            HistoryFileError: there is no whole history of a known form.
        """
        try:
            form = json.loads(self._text())
            history = history_from_json(form)
            workflow_id, run = form["workflow_id"], form.get("run", 1)
        except OSError as error:
            raise HistoryFileError(f"{self}: cannot be opened: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise HistoryFileError(f"{self}: {_complaint(error)}") from error
        self._check(workflow_id, history)
        started = history[0].event
        assert isinstance(started, RunStarted)  # noqa: S101 - as was checked
        return History(workflow_id=workflow_id, name=started.name, events=history, run=run)

    def check_payloads(self, history: History, codec: Codec) -> None:
        """Find out whether the codec reads all of them.

        Raises:
            HistoryFileError: it does not.
        """
        for item in history.events:
            try:
                codec.decode(item.event.payload, place_of(item.event, history.workflow_id, history.run))
            except DurableError as error:
                raise HistoryFileError(
                    f"{self}: the payload of event {item.seq} ({type(item.event).__name__}) cannot be read: {error}. "
                    "Save histories with `celery -A app durable export`, which cuts nothing; where payloads are "
                    "encrypted, the app of the test needs the keys, or export them with --decode"
                ) from error

    def _text(self) -> str:
        text = self.path.read_text(encoding="utf-8")
        return text if self.line is None else text.splitlines()[self.line - 1]

    def _check(self, workflow_id: Any, history: Sequence[Recorded]) -> None:
        if not isinstance(workflow_id, str) or not history or not isinstance(history[0].event, RunStarted):
            raise HistoryFileError(f"{self}: the history does not begin with RunStarted; it is no whole history")
        for place, item in enumerate(history, 1):
            if item.seq != place:
                raise HistoryFileError(f"{self}: event {place} is missing: event {item.seq} stands in its place")


def _complaint(error: Exception) -> str:
    """Say what is wrong with a file, from what its reader stumbled over."""
    match error:
        case json.JSONDecodeError():
            return f"it is no JSON: {error}"
        case UnicodeDecodeError():
            return "it is no text"
        case ValueError():
            return f"{error}. A newer durable_celery wrote it: upgrade, or save the history again"
        case KeyError():
            return f"it is no history: {error} is missing, or not known to this release"
        case _:
            return f"it is no history: {error}"


def find_histories(place: Path) -> list[SavedHistory]:
    """Return the histories of a file, or of a folder and all below it, in the order of their names.

    Raises:
        HistoryFileError: there is no such place, or nothing is in it.
    """
    if not place.exists():
        raise HistoryFileError(f"{place} does not exist. {_EXPORT}")
    if place.is_dir():
        files = sorted(path for path in place.rglob("*") if path.suffix in {".json", ".jsonl"} and path.is_file())
    else:
        files = [place]
    found = [saved for path in files for saved in _in_file(path)]
    if not found:
        raise HistoryFileError(f"{place} has no histories. {_EXPORT}")
    return found


_EXPORT = "Save some: `celery -A app durable export --output FOLDER`"


def _in_file(path: Path) -> list[SavedHistory]:
    if path.suffix != ".jsonl":
        return [SavedHistory(path=path)]
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [SavedHistory(path=path, line=number) for number, line in enumerate(lines, 1) if line.strip()]
