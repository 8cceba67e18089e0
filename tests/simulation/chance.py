"""Choices: each is a number below a bound, taken from a seed and written down, or taken from what was written down.

A history is a function of its choices. They stand in streams by topic, so that taking one away from the program does
not change what the following ones of the schedule mean. Choice 0 is the plainest everywhere, and what is missing is 0:
so a shorter list with smaller numbers is a simpler history, and shrinking needs to know nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")
#: Topic -> its choices.
Choices = Mapping[str, Sequence[int]]


class Stream:
    """The choices of one topic."""

    def __init__(self, seed: str, given: Sequence[int] | None) -> None:
        self.given = given
        #: All that was chosen, in order.
        self.taken: list[int] = []
        self._random = random.Random(seed).random if given is None else None

    def below(self, bound: int) -> int:
        """Choose a number from 0 to ``bound - 1``."""
        if self._random is not None:
            value = int(self._random() * bound)
        else:
            given, place = self.given or (), len(self.taken)
            value = min(given[place], bound - 1) if place < len(given) else 0
        self.taken.append(value)
        return value

    def pick(self, things: Sequence[T]) -> T:
        """Choose one of several; the first is the plainest, and one that stands there twice is twice as likely."""
        return things[self.below(len(things))]


class Chance:
    """All choices of one history."""

    def __init__(self, seed: int, given: Choices | None = None) -> None:
        self.seed = seed
        self.shape = self._stream("shape", given)
        self.program = self._stream("program", given)
        self.moves = self._stream("moves", given)

    def _stream(self, topic: str, given: Choices | None) -> Stream:
        return Stream(f"{self.seed}/{topic}", None if given is None else given.get(topic, ()))

    @property
    def choices(self) -> dict[str, list[int]]:
        """What was chosen so far."""
        return {topic: getattr(self, topic).taken for topic in ("shape", "program", "moves")}
