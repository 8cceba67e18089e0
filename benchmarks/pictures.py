"""Draw figures of ``benchmarks/results``: ``python -m benchmarks.pictures [directory]``; needs the extra ``bench``.

The newest file of each kind is taken: ``growth-*.json`` for how costs grow, the others for ratios.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib import pyplot as plt  # pyright: ignore[reportMissingImports]

from benchmarks.growth import exponent
from benchmarks.report import RESULTS, number

#: Ratios that are drawn: name of the figure, and what it is held against.
_RATIOS = {
    "W1 steps/s / F": "remote steps / raw tasks (F)",
    "W1 steps/s / C": "remote steps / steps of a chain",
    "W1 local steps/s / F": "local steps / raw tasks (F)",
    "W4 starts / raw publishes": "starts / raw publishes",
    "W4 starts by start_many / raw publishes": "start_many / raw publishes",
}


def draw_growth(curves: dict[str, dict[str, list[float]]], target: Path) -> None:
    """Draw one panel for each curve, on logarithmic scales, with its exponent."""
    shown = {name: points for name, points in curves.items() if len(points) > 1}
    columns = 4
    rows = -(-len(shown) // columns)
    picture, panels = plt.subplots(rows, columns, figsize=(4 * columns, 3 * rows), squeeze=False)
    for panel in panels.flat[len(shown) :]:
        panel.set_axis_off()
    for panel, (name, points) in zip(panels.flat, shown.items(), strict=False):
        middles = [(int(size), median(values)) for size, values in points.items()]
        panel.loglog(*zip(*middles, strict=True), marker="o")
        panel.set_ylim(min(value for _, value in middles) / 3, max(value for _, value in middles) * 3)
        panel.minorticks_off()
        panel.set_xticks([size for size, _ in middles], [f"{size:,}" for size, _ in middles])
        panel.set_title(f"{name}\n(exponent {exponent(middles):.2f})", fontsize=8)
        panel.grid(visible=True, alpha=0.3)
    _save(picture, target)


def draw_ratios(figures: list[dict[str, Any]], target: Path) -> None:
    """Draw the ratios, with the range of their rounds."""
    found = {figure["name"]: figure for figure in figures if figure["name"] in _RATIOS}
    names = [name for name in _RATIOS if name in found]
    middles = [found[name]["median"] for name in names]
    ranges = [
        [middle - min(found[name]["values"]) for name, middle in zip(names, middles, strict=True)],
        [max(found[name]["values"]) - middle for name, middle in zip(names, middles, strict=True)],
    ]
    picture, panel = plt.subplots(figsize=(9, 0.6 * len(names) + 1))
    bars = panel.barh([_RATIOS[name] for name in names], middles, xerr=ranges, color="tab:green", alpha=0.7)
    panel.bar_label(bars, [number(middle) for middle in middles], padding=12)
    panel.axvline(1, color="black", linewidth=0.8)
    panel.invert_yaxis()
    _save(picture, target)


def _save(picture: Any, target: Path) -> None:
    picture.tight_layout()
    # Without a date: the same figures make the same file.
    picture.savefig(target, metadata={"Date": None})
    print(target)


def main() -> None:
    """Draw what there is."""
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures")
    directory.mkdir(parents=True, exist_ok=True)
    plt.rcParams |= {"svg.hashsalt": "durable_celery", "svg.fonttype": "none"}
    if files := sorted(RESULTS.glob("growth-*.json")):
        draw_growth(json.loads(files[-1].read_text())["curves"], directory / "growth.svg")
    if files := sorted(RESULTS.glob("[0-9]*.json")):
        draw_ratios(json.loads(files[-1].read_text())["figures"], directory / "ratios.svg")


if __name__ == "__main__":
    main()
