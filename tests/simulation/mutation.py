"""Mutation: a method of the product with one wrong line, for as long as a ``with`` block lasts.

A mutant is a piece of text and what stands in its place. So it is as small as the mistake that it plays, the rest of
the method stays what it is, and a method that changes takes its mutants along, or says that one has to be looked at.
"""

from __future__ import annotations
import __future__

import inspect
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["Mutant"]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One mistake that an engineer could make."""

    #: What goes wrong, in plain words.
    name: str
    #: The rule of the protocol, or the invariant, that it breaks.
    rule: str
    #: The function or method that has the mistake.
    where: Callable[..., object]
    #: Text of its source that is right. It occurs once.
    right: str
    #: What stands there instead.
    wrong: str = ""

    @contextmanager
    def applied(self) -> Generator[None]:
        """Put the mistake into the product; for calls that begin from now on."""
        *path, name = self.where.__qualname__.split(".")
        place: Any = sys.modules[self.where.__module__]
        for part in path:
            place = getattr(place, part)
        original = place.__dict__[name]
        setattr(place, name, self._mutated(original))
        try:
            yield
        finally:
            setattr(place, name, original)

    def _mutated(self, original: Callable[..., object]) -> Callable[..., object]:
        source, module = inspect.getsource(original), sys.modules[original.__module__]
        if source.count(self.right) != 1:
            raise LookupError(
                f"{self.where.__qualname__} has {self.right!r} {source.count(self.right)} times, not once"
            )
        text = source.replace(self.right, self.wrong)
        if text.startswith(" "):
            text = f"if True:\n{text}"
        found: dict[str, Callable[..., object]] = {}
        flags = __future__.annotations.compiler_flag
        code = compile(text, f"<mutant: {self.name}>", "exec", flags=flags, dont_inherit=True)
        exec(code, module.__dict__, found)  # noqa: S102 - it is our own source, but for one line
        return found[original.__name__]
