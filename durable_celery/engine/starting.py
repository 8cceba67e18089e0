"""Starts: the same start may come twice, and its arguments are known again whatever key their digest was made under."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from durable_celery.errors import WorkflowConflictError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from durable_celery.store.protocol import NewRun, Started, Store

__all__ = ["start_run"]


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
