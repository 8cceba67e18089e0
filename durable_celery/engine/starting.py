"""Starts: the same start may come twice, and its arguments are known again whatever key their digest was made under."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from durable_celery.errors import WorkflowConflictError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from durable_celery.store.protocol import NewRun, Started, Store

__all__ = ["start_all", "start_run"]

#: How many starts go to the store at once.
_BATCH = 500


def start_run(store: Store, new: NewRun, digests: Iterable[str]) -> Started:
    """Start a run, or find the one that the same arguments started; ``digests`` are all those they may be known by.

    One call of the store, but for a conflict: the run that has the id may have been started before the key changed.

    Raises:
        WorkflowConflictError: the id is taken by another workflow or other arguments; nothing was written.
    """
    conflict: WorkflowConflictError | None = None
    for digest in digests:
        try:
            return store.start(replace(new, digest=digest))
        except WorkflowConflictError as error:
            conflict = conflict or error
    assert conflict is not None  # noqa: S101 - there is always a digest
    raise conflict


def start_all(store: Store, starts: Sequence[tuple[NewRun, Sequence[str]]]) -> list[WorkflowConflictError]:
    """Start runs in few round trips, each with the digests that its arguments may be known by.

    The agenda sends their messages. Returns why some were refused; all others are started.
    """
    conflicts: list[WorkflowConflictError] = []
    for begin in range(0, len(starts), _BATCH):
        batch = starts[begin : begin + _BATCH]
        answers = store.start_all([replace(new, digest=digests[0], unsent=True) for new, digests in batch])
        for (new, digests), answer in zip(batch, answers, strict=True):
            if isinstance(answer, WorkflowConflictError):
                # Asked again alone: the run may have been started before the key changed.
                try:
                    start_run(store, replace(new, unsent=True), digests)
                except WorkflowConflictError as conflict:
                    conflicts.append(conflict)
    return conflicts
