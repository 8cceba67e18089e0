"""Shrinking: from a history that fails to one that fails and is short.

A history is a list of choices by topic (see :mod:`tests.simulation.chance`): less of them, and smaller ones, are a
simpler history. So blocks of choices are taken away, set to 0 and lowered, as long as something still goes wrong. The
method is that of Hypothesis' shrinker, in small.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from tests.simulation.chance import Choices
from tests.simulation.chaos import ViolationError

#: Tells what goes wrong in the history of some choices: the failure, or None if all is well.
Attempt = Callable[[Choices], ViolationError | None]


class Shrinker:
    """Looks for the shortest failing history, for as long as it may."""

    def __init__(self, attempt: Attempt, failure: ViolationError, *, seconds: float = 60.0) -> None:
        self.attempt, self.best = attempt, failure
        self.choices = _tidy(failure.chaos.chance.choices)
        self.attempts = 0
        self._deadline = time.monotonic() + seconds

    def shrink(self) -> ViolationError:
        """Return the failure of the simplest history that was found."""
        is_better = True
        while is_better and not self._is_late():
            # What can go wrong is little: faults first, then the program, then the shape of the system.
            is_better = False
            for topic in ("moves", "program", "shape"):
                is_better |= self._shrink_topic(topic)
        return self.best

    def _shrink_topic(self, topic: str) -> bool:
        found = False
        for size in (64, 32, 16, 8, 5, 4, 3, 2, 1):
            found |= self._each_block(topic, size, _nothing)
        for size in (4, 1):
            found |= self._each_block(topic, size, _zero)
        for lower in (_one, _half, _less):
            found |= self._each_block(topic, 1, lower)
        return found

    def _each_block(self, topic: str, size: int, change: Callable[[list[int]], list[int]]) -> bool:
        found, end = False, len(self.choices[topic])
        while end > 0 and not self._is_late():
            values = self.choices[topic]
            end = min(end, len(values))
            begin = max(0, end - size)
            changed = [*values[:begin], *change(values[begin:end]), *values[end:]]
            if changed != values and self._try({**self.choices, topic: changed}):
                found = True
            else:
                end -= 1
        return found

    def _try(self, choices: dict[str, list[int]]) -> bool:
        self.attempts += 1
        failure = self.attempt(choices)
        if failure is None or failure.kind != self.best.kind:
            return False
        taken = _tidy(failure.chaos.chance.choices)
        if _weight(taken) >= _weight(self.choices):
            return False
        self.best, self.choices = failure, taken
        return True

    def _is_late(self) -> bool:
        return time.monotonic() > self._deadline


def _nothing(_: list[int]) -> list[int]:
    return []


def _zero(block: list[int]) -> list[int]:
    return [0] * len(block)


def _one(block: list[int]) -> list[int]:
    return [min(value, 1) for value in block]


def _half(block: list[int]) -> list[int]:
    return [value // 2 for value in block]


def _less(block: list[int]) -> list[int]:
    return [max(value - 1, 0) for value in block]


def _tidy(choices: dict[str, list[int]]) -> dict[str, list[int]]:
    """Leave out the zeros at the end: what is missing is 0."""
    return {topic: values[: len(values) - _zeros(values)] for topic, values in choices.items()}


def _zeros(values: list[int]) -> int:
    return next((n for n, value in enumerate(reversed(values)) if value), len(values))


def _weight(choices: dict[str, list[int]]) -> tuple[int, ...]:
    return tuple(_weights(choices))


def _weights(choices: dict[str, list[int]]) -> Iterator[int]:
    yield sum(map(len, choices.values()))
    yield sum(map(sum, choices.values()))
