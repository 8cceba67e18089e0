"""Does the simulator see anything? Known mistakes are put into the product, one at a time, and it has to find each.

``python -m tests.simulation.mutants`` prints the table of the mutants, and how many histories each took.
"""

from __future__ import annotations

import gc
import logging
import sys
from dataclasses import dataclass

from tests.simulation.chaos import Chaos, ViolationError
from tests.simulation.engine_mutants import OF_THE_ENGINE
from tests.simulation.mutation import Mutant
from tests.simulation.store_mutants import OF_THE_STORE

__all__ = ["MUTANTS", "Catch", "hunt"]

#: All mutants.
MUTANTS: tuple[Mutant, ...] = (*OF_THE_STORE, *OF_THE_ENGINE)
#: After so many histories without a violation a mutant is not caught.
LONGEST = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Catch:
    """The history that gave a mutant away."""

    seed: int
    #: What the simulator said, in one line.
    found: str

    @property
    def histories(self) -> int:
        """How many were lived through, this one included."""
        return self.seed + 1


def hunt(mutant: Mutant, longest: int = LONGEST) -> Catch | None:
    """Live through histories from seed 0 until one gives the mutant away; None if none does."""
    with mutant.applied():
        for seed in range(longest):
            found = violation(seed)
            if found:
                return Catch(seed=seed, found=found)
    return None


def violation(seed: int) -> str:
    """Live through one history; return what is wrong with it in one line, or nothing."""
    try:
        Chaos(seed).live()
    except ViolationError as error:
        found = error.found[0].splitlines()[0]
    else:
        return ""
    # A history that was broken off leaves suspended code behind, which must not end within the next one.
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook
    return found


def main() -> None:
    """Print the table as Markdown."""
    logging.disable(logging.CRITICAL)
    lines = ["| Mutant | Breaks | Histories | What the simulator said |", "| --- | --- | ---: | --- |"]
    for mutant in MUTANTS:
        catch = hunt(mutant)
        told = f"{catch.histories} | {_cell(catch.found)}" if catch else "- | **not caught**"
        lines.append(f"| {mutant.name} | {mutant.rule} | {told} |")
        sys.stderr.write(f"{lines[-1]}\n")
    sys.stdout.write("\n".join(lines) + "\n")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")[:110]


if __name__ == "__main__":
    main()
