"""Batches: many things alike, a few at a time, for as long as enough of them succeed.

Nothing here issues a command: items are steps and branches that others start. A batch reacts to its items in the order
in which their outcomes were recorded, so its decisions are replayed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, Generic, Self, TypeVar

from durable_celery.errors import BatchFailedError, InvalidRequestError
from durable_celery.workflow.handles import drop_all
from durable_celery.workflow.machine import Machine

__all__ = ["BatchItem", "BatchResult", "ItemStatus", "Tolerance", "items_of", "run_batch"]

R = TypeVar("R")
T = TypeVar("T")


class ItemStatus(StrEnum):
    """How an item of a batch ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    #: It was going on when the batch was decided, and was cancelled.
    CANCELLED = "cancelled"
    #: The batch was decided before it began.
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """When a batch is decided before all of its items have ended. What is not set does not count.

    Raises:
        InvalidRequestError: a number cannot be meant.
    """

    #: The batch fails with more failed items than this.
    failures: int | None = None
    #: The batch fails when more than this percentage (0 to 100) of all its items have failed.
    percent: float | None = None
    #: The batch succeeds as soon as so many items have, and fails as soon as so many cannot any more.
    successes: int | None = None

    def __post_init__(self) -> None:
        if (self.failures or 0) < 0 or (self.successes or 0) < 0 or not 0 <= (self.percent or 0) <= 100:  # noqa: PLR2004 - percent
            raise InvalidRequestError(f"a tolerance has failures >= 0, successes >= 0 and 0 <= percent <= 100: {self}")

    @classmethod
    def of(cls, given: Tolerance | int | None) -> Self | Tolerance | None:
        """Return what ``tolerate=`` was given as a tolerance; a number is the failures that are tolerated."""
        if isinstance(given, bool) or not isinstance(given, Tolerance | int | None):
            raise InvalidRequestError(f"tolerate takes a number of failures or a Tolerance, not {given!r}")
        return cls(failures=given) if isinstance(given, int) else given

    def is_broken(self, failed: int, total: int) -> bool:
        """Tell whether so many failures are too many."""
        return (
            (self.failures is not None and failed > self.failures)
            or (self.percent is not None and failed * 100 > self.percent * total)
            or (self.successes is not None and total - failed < self.successes)
        )

    def is_reached(self, completed: int) -> bool:
        """Tell whether so many successes are enough."""
        return self.successes is not None and completed >= self.successes

    def __str__(self) -> str:
        told = {"failures": self.failures, "percent": self.percent, "successes": self.successes}
        return ", ".join(f"{name} {value:g}" for name, value in told.items() if value is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchItem(Generic[R]):
    """One item of a batch and how it ended."""

    #: Its place in what was given, from 0.
    index: int
    status: ItemStatus
    #: What it returned, if it completed.
    value: R | None = None
    #: What it raised, if it failed.
    error: BaseException | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult(Generic[R]):
    """How a batch ended: its items in the order given."""

    items: tuple[BatchItem[R], ...]
    #: What was tolerated, or None: then no failure is.
    tolerance: Tolerance | None = None

    @property
    def results(self) -> list[R]:
        """What the completed items returned, in the order given."""
        return [item.value for item in self.items if item.status is ItemStatus.COMPLETED]  # type: ignore[misc]  # set then

    @property
    def errors(self) -> list[BaseException]:
        """What the failed items raised, in the order given."""
        return [item.error for item in self.items if item.error is not None]

    @property
    def is_successful(self) -> bool:
        """Whether there were no more failures than were tolerated."""
        return not (self.tolerance or Tolerance(failures=0)).is_broken(len(self.errors), len(self.items))

    def raise_if_failed(self) -> Self:
        """Return this result if the batch was successful.

        Raises:
            BatchFailedError: there were more failures than were tolerated; the first one is its cause.
        """
        if not self.is_successful:
            allowed = f"tolerated: {self.tolerance}" if self.tolerance else "none is tolerated"
            first = next(item for item in self.items if item.error is not None)
            raise BatchFailedError(
                f"{len(self.errors)} of {len(self.items)} items failed, {allowed}; "
                f"the first in order is item {first.index}: {first.error!r}"
            ) from first.error
        return self


def items_of(given: Iterable[T]) -> list[T]:
    """Return the items of a batch in their order.

    Raises:
        InvalidRequestError: they have none.
    """
    if isinstance(given, set | frozenset):
        raise InvalidRequestError("the items of a batch are given as a set, whose order is not replayed: sort them")
    return list(given)


async def run_batch(
    machine: Machine,
    begin: Callable[[int], Awaitable[R]],
    total: int,
    *,
    max_concurrency: int | None,
    tolerance: Tolerance | None,
) -> BatchResult[R]:
    """Run the items of a batch and return how they ended; ``begin`` starts one and gives what to wait for.

    What is cancelled is waited for until it has cleaned up. A cancellation of the batch cancels all of its items.

    Raises:
        InvalidRequestError: ``max_concurrency`` is no number from 1.
        Exception: an item could not be started; those that were are cancelled.
    """
    if max_concurrency is not None and (isinstance(max_concurrency, bool) or max_concurrency < 1):
        raise InvalidRequestError(f"max_concurrency is a number of items from 1, not {max_concurrency!r}")
    batch: _Batch[R] = _Batch(machine, begin, total, tolerance)
    try:
        await batch.run(max_concurrency or total)
    finally:
        if not machine.at_rest:
            await batch.drop()
    return batch.result()


class _Batch(Generic[R]):
    """The state of a batch that is going on."""

    def __init__(
        self, machine: Machine, begin: Callable[[int], Awaitable[R]], total: int, tolerance: Tolerance | None
    ) -> None:
        self.machine, self.begin, self.total, self.tolerance = machine, begin, total, tolerance
        #: What was begun and whose end was not noted yet.
        self.running: dict[int, asyncio.Future[R]] = {}
        self.ended: dict[int, BatchItem[R]] = {}
        self.begun = self.completed = self.failed = 0
        #: Indexes of what has ended, in the order of their outcomes, and what wakes who looks for them.
        self._news: deque[int] = deque()
        self._bell: asyncio.Future[None] | None = None

    async def run(self, limit: int) -> None:
        while not self.is_decided and (self.running or self.begun < self.total):
            while self.begun < self.total and len(self.running) < limit:
                self._begin_next()
            if not self._news:
                self._bell = self.machine.loop.create_future()
                await self._bell
            while self._news and not self.is_decided:
                self._note(self._news.popleft())

    @property
    def is_decided(self) -> bool:
        tolerance = self.tolerance
        return tolerance is not None and (
            tolerance.is_reached(self.completed) or tolerance.is_broken(self.failed, self.total)
        )

    async def drop(self) -> None:
        """Cancel what is still going on."""
        await drop_all(list(self.running.values()))

    def result(self) -> BatchResult[R]:
        items = [self.ended.get(index) or self._unended(index) for index in range(self.total)]
        return BatchResult(items=tuple(items), tolerance=self.tolerance)

    def _begin_next(self) -> None:
        index = self.begun
        future = asyncio.ensure_future(self.begin(index))
        self.begun += 1
        self.running[index] = future
        future.add_done_callback(partial(self._ring, index))

    def _ring(self, index: int, _: object) -> None:
        self._news.append(index)
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    def _note(self, index: int) -> None:
        future = self.running.pop(index)
        error = asyncio.CancelledError() if future.cancelled() else future.exception()
        if error is None:
            self.completed += 1
            item = BatchItem(index=index, status=ItemStatus.COMPLETED, value=future.result())
        else:
            self.failed += 1
            item = BatchItem(index=index, status=ItemStatus.FAILED, error=error)
        self.ended[index] = item

    def _unended(self, index: int) -> BatchItem[Any]:
        return BatchItem(index=index, status=ItemStatus.CANCELLED if index < self.begun else ItemStatus.SKIPPED)
