"""Figures, what they are held against, and how they are shown and kept."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["Figure", "save", "show"]

RESULTS = Path(__file__).with_name("results")


@dataclass
class Figure:
    """One thing that was measured several times."""

    #: What it is, with its unit: ``W1 steps/s``.
    name: str
    values: Sequence[float]
    #: What ``must`` and ``excellent`` say of it: ``>=`` or ``<=``; empty for figures without a target.
    direction: str = ""
    must: float | None = None
    excellent: float | None = None
    #: The single measurements that ratios were made of.
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def middle(self) -> float:
        """The median."""
        return median(self.values)

    @property
    def verdict(self) -> str:
        """How the median stands to its targets."""
        if self.must is None:
            return ""
        if self.excellent is not None and self._meets(self.excellent):
            return "excellent"
        return "must" if self._meets(self.must) else "MISSED"

    def _meets(self, target: float) -> bool:
        return self.middle >= target if self.direction == ">=" else self.middle <= target

    def row(self) -> str:
        """Return the figure as a row of a Markdown table."""
        spread = f"{number(min(self.values))} - {number(max(self.values))}" if len(self.values) > 1 else ""
        targets = f"{self.direction} {number(self.must)}" if self.must is not None else ""
        if self.must is not None and self.excellent is not None:
            targets += f" ({number(self.excellent)})"
        return f"| {self.name} | {number(self.middle)} | {spread} | {targets} | {self.verdict} |"


def number(value: float) -> str:
    """Return a number with three digits that mean something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def show(figures: Sequence[Figure]) -> str:
    """Return a Markdown table."""
    head = "| figure | median | range | must (excellent) | verdict |\n| --- | ---: | ---: | --- | --- |"
    return "\n".join([head, *(figure.row() for figure in figures)])


def settings() -> dict[str, Any]:
    """Return what the figures depend on."""
    packages = ("celery", "kombu", "redis", "durable-celery")
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cpus": len(__import__("os").sched_getaffinity(0)),
        **{name: version(name) for name in packages},
    }


def save(figures: Sequence[Figure], facts: dict[str, Any]) -> Path:
    """Write all figures to a file of their own."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    form = {**settings(), **facts, "figures": [{**asdict(figure), "median": figure.middle} for figure in figures]}
    path.write_text(json.dumps(form, indent=1) + "\n")
    return path
