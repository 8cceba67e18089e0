"""What many histories contained, in a table: so that one sees that they bite."""

from __future__ import annotations

from collections import Counter

#: Headings, with the beginnings of the names that belong below them.
_GROUPS = (
    ("size", ("runs", "events", "store calls", "steps executed", "steps executed again", "steps claimed again")),
    ("faults of store calls", ("fault: ",)),
    ("deaths", ("kill", "dies in user code")),
    ("workers that stand still at a call", ("pause: ", "goes on")),
    ("broker", ("broker ", "forged message")),
    ("clock and hearts", ("clock jumps", "beat")),
    ("clients", ("client ",)),
    ("refused by the store", ("refused: ",)),
    ("races", ("race: ",)),
    ("verbs", ("verb: ",)),
)


def summarise(tally: Counter[str], *, seconds: float, wall: float) -> str:
    """Return the table of what was counted."""
    histories = tally["histories"] or 1
    speed = histories / max(seconds, 0.001)
    times = f"{wall:.0f} s of wall time, {seconds:.0f} s of CPU time: {speed:,.0f} histories/s per core"
    lines = [f"{histories:,} histories in {times}"]
    for heading, beginnings in _GROUPS:
        names = sorted(name for name in tally if name.startswith(beginnings))
        if names:
            total = sum(tally[name] for name in names)
            lines.append(f"{heading}" + ("" if heading == "size" else f": {total:,}"))
            lines += [
                f"  {_short(name, beginnings):<28} {tally[name]:>14,}  {tally[name] / histories:>8.3f}"
                for name in names
            ]
    return "\n".join([*lines, "(the last column: per history)"])


def _short(name: str, beginnings: tuple[str, ...]) -> str:
    return next((name[len(start) :] for start in beginnings if start.endswith(": ") and name.startswith(start)), name)
