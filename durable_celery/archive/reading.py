"""A store and an archive as one, for clients: what the store has forgotten is looked for in the archive."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

from durable_celery.archive.keeping import CURSOR
from durable_celery.store.protocol import RunPage

if TYPE_CHECKING:
    from durable_celery.archive.keeping import Archive
    from durable_celery.events import Recorded
    from durable_celery.store.protocol import RunRecord, RunStatus, Store

__all__ = ["with_archive"]


def with_archive(store: Store, archive: Archive, retention: float) -> Store:
    """Return a store whose reading verbs know the archive; it is written to as ever.

    Args:
        store: where runs live.
        archive: where they are kept when they are closed.
        retention: for how many seconds the store keeps a closed run at least.
    """
    return cast("Store", _Both(store, archive, retention))


class _Both:
    def __init__(self, store: Store, archive: Archive, retention: float) -> None:
        self._store, self._archive, self._retention = store, archive, retention

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get(self, workflow_id: str) -> RunRecord | None:
        """See :meth:`Store.get`."""
        return self._store.get(workflow_id) or self._archive.get(workflow_id)

    def history(self, workflow_id: str, *, run: int | None = None, after: int = 0, limit: int = 1000) -> list[Recorded]:
        """See :meth:`Store.history`."""
        if events := self._store.history(workflow_id, run=run, after=after, limit=limit):
            return events
        record = self._store.get(workflow_id)
        if record is not None and (run is None or run >= record.run):
            # There is nothing more yet.
            return []
        return self._archive.history(workflow_id, run=run, after=after, limit=limit)

    def runs(
        self, *, status: RunStatus | None = None, name: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> RunPage:
        """See :meth:`Store.runs`: first those of the store, then those that only the archive has."""
        found: tuple[RunRecord, ...] = ()
        if cursor is None or not cursor.startswith(CURSOR):
            page = self._store.runs(status=status, name=name, cursor=cursor, limit=limit)
            if page.cursor is not None:
                return page
            found, cursor = page.runs, CURSOR
            if len(found) >= limit:
                return RunPage(runs=found, cursor=cursor)
        # What ended later than this is in the store all the same; what was delivered late may be.
        before = round((time.time() - self._retention) * 1000)
        more = self._archive.runs(before=before, status=status, name=name, cursor=cursor, limit=limit - len(found))
        gone = tuple(run for run in more.runs if self._store.get(run.workflow_id) is None)
        return RunPage(runs=(*found, *gone), cursor=more.cursor)
