"""Offsets: places in all that a workflow has recorded, over its runs, as one growing number."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Offset"]

#: No history is as long: the store counts its seqs up to here.
_RUN = 2**32


class Offset(NamedTuple):
    """A place in the history of one run of a workflow."""

    #: Which run, from 1.
    run: int
    #: Seq of an event in it, or 0 for its beginning.
    seq: int

    def __int__(self) -> int:
        """Return the one number that readers get: the seq in a first run, and more than any of it in later runs."""
        return (self.run - 1) * _RUN + self.seq

    @classmethod
    def of(cls, number: int) -> Offset:
        """Return the place that a number stands for."""
        run, seq = divmod(number, _RUN)
        return cls(run + 1, seq)
