"""How the demo looks: a log of what happens, and below it, on a terminal, a board that is redrawn in place.

Where there is no terminal, or a narrow one, each change of a run or step becomes a line. NO_COLOR is honoured.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

#: Label and text of a line of the board.
Row = tuple[str, str]

WIDTH = 78
#: Seconds between two looks.
FRAME = 0.05
PATIENCE = 60.0

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}
_MARKS = {"done": "green", "up": "green", "running": "yellow", "waiting": "dim", "lost": "red", "killed": "red"}


class View:
    """Writes to standard output."""

    def __init__(self, *, is_live: bool | None = None) -> None:
        fits = sys.stdout.isatty() and shutil.get_terminal_size().columns > WIDTH
        self.is_live = fits if is_live is None else is_live
        self.has_colour = self.is_live and "NO_COLOR" not in os.environ
        self._rows: Callable[[], Sequence[Row]] = list
        self._drawn: list[str] = []
        self._said: dict[str, str] = {}
        self._began = time.monotonic()

    def title(self, text: str) -> None:
        self._print("", self._style(text, "bold"), self._style("─" * WIDTH, "dim"))

    def text(self, *lines: str) -> None:
        self._print(*lines)

    def board(self, rows: Callable[[], Sequence[Row]]) -> None:
        """Show these rows from now on, and count the time from here."""
        self._rows, self._drawn, self._said, self._began = rows, [], {}, time.monotonic()

    def say(self, text: str, style: str = "") -> None:
        """Add a line to the log."""
        line = f"{self._clock()}  {self._style(text, style)}"
        if self.is_live:
            self._redraw(self._board(), above=[line])
        else:
            self._print(*self._changes(), line)

    def wait(self, condition: Callable[[], T], what: str) -> T:
        """Wait until the condition is true, and keep the board up to date meanwhile."""
        deadline = time.monotonic() + PATIENCE
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise SystemExit(f"waited {PATIENCE:g} s in vain for {what}")
            self.refresh()
            time.sleep(FRAME)
        self.refresh()
        return value

    def refresh(self) -> None:
        """Bring the board up to date."""
        if not self.is_live:
            self._print(*self._changes())
        elif (board := self._board()) != self._drawn:
            self._redraw(board)

    def end_board(self) -> None:
        """Leave the board as it is now, and forget it."""
        self.refresh()
        if not self.is_live:
            self._print("")
        self._rows, self._drawn = list, []

    def verdict(self, text: str, *, holds: bool) -> None:
        self._print(self._style(f"{'✔' if holds else '✘'} {text}", "green" if holds else "red"))

    def _board(self) -> list[str]:
        return ["", *(f"  {label:<28} {self._paint(text)}" for label, text in self._rows()), ""]

    def _redraw(self, board: list[str], above: Sequence[str] = ()) -> None:
        # Up to the first line of the board, and clear from there.
        erase = f"\x1b[{len(self._drawn)}F\x1b[J" if self._drawn else ""
        sys.stdout.write(erase)
        self._print(*above, *board)
        self._drawn = board

    def _changes(self) -> list[str]:
        rows = self._rows()
        changed = [f"{self._clock()}    {label:<28} {text}" for label, text in rows if self._said.get(label) != text]
        self._said = dict(rows)
        return changed

    def _paint(self, text: str) -> str:
        first, _, rest = text.partition(" ")
        return f"{self._style(first, _MARKS.get(first, ''))} {rest}"

    def _clock(self) -> str:
        return self._style(f"{time.monotonic() - self._began:6.1f} s", "dim")

    def _style(self, text: str, style: str) -> str:
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self.has_colour and style else text

    def _print(self, *lines: str) -> None:
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in lines))
        sys.stdout.flush()
