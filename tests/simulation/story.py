"""The story of a failing history: who did what, what went wrong, what the histories hold, which invariant is broken."""

from __future__ import annotations

import json
from typing import Any

from durable_celery.codec import summary
from durable_celery.events import Recorded, TimerStarted
from durable_celery.testing.world import EPOCH
from tests.simulation.chance import Choices
from tests.simulation.chaos import Chaos, ViolationError
from tests.simulation.shrink import Shrinker
from tests.simulation.stores import MEMORY, Place

#: What is told of an event besides its kind and payload.
_TOLD = ("number", "target", "name", "task", "attempt", "cause")


def attempt(seed: int, choices: Choices | None = None, *, place: Place = MEMORY) -> ViolationError | None:
    """Live through a history; return what went wrong."""
    try:
        Chaos(seed, choices, place=place).live()
    except ViolationError as failure:
        return failure
    return None


def explain(failure: ViolationError, *, seconds: float = 60.0) -> str:
    """Shrink a failing history and tell its story."""
    seed, place = failure.chaos.seed, failure.chaos.place
    shrinker = Shrinker(lambda choices: attempt(seed, choices, place=place), failure, seconds=seconds)
    shrinker.shrink()
    return tell(seed, shrinker.choices, place=place)


def tell(seed: int, choices: Choices | None = None, *, place: Place = MEMORY) -> str:
    """Live through a history once more and write down what happens."""
    chaos, lines = Chaos(seed, choices, place=place), list[str]()
    chaos.narrate = lines.append
    found = ["nothing is wrong"]
    try:
        chaos.live()
    except ViolationError as failure:
        found = failure.found
    given = {topic: list(values) for topic, values in (choices or {}).items()}
    return "\n".join(
        [
            f"seed {seed} on {place.name}, {len(chaos.world.processes)} workers; the program: {json.dumps(chaos.tree)}",
            *([f"choices {json.dumps(given)}"] if given else []),
            "",
            *_numbered(lines),
            "",
            *_histories(chaos),
            "",
            *found,
        ]
    )


def _numbered(lines: list[str]) -> list[str]:
    """Number what happened; the store calls that it made stand indented below it."""
    numbered, number = [], 0
    for line in lines:
        number += not line.startswith(" ")
        numbered.append(f"      {line}" if line.startswith(" ") else f"{number:>4}  {line}")
    return numbered


def _histories(chaos: Chaos) -> list[str]:
    world, lines = chaos.world, []
    for name in world.store.run_table:
        record = world.record(name)
        owner = f", held by {record.owner.partition('#')[0]}" if record.owner else ""
        lines.append(f"{name} ({record.name}): {record.status}, read {record.read} of {record.length}{owner}")
        lines += [f"  {item.seq:>3}  +{(item.at - EPOCH) / 1000:<8g} {_words(item)}" for item in world.history(name)]
    agenda = {entry: f"+{(due - EPOCH) / 1000:g}" for entry, due in world.pending.items()}
    return [*lines, f"agenda: {agenda or 'empty'}"]


def _words(item: Recorded) -> str:
    event: Any = item.event
    given = {what: getattr(event, what, None) for what in _TOLD}
    parts = [type(event).__name__, *(f"{what} {value}" for what, value in given.items() if value is not None)]
    if isinstance(event, TimerStarted):
        parts.append(f"due +{(event.due_at - EPOCH) / 1000:g}")
    return ", ".join(parts) + (f": {summary(event.payload)}" if event.payload else "")
