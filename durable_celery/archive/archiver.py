"""The archiver: in each worker, it sees to it that closed runs are in the archive before the store forgets them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from durable_celery.client import read_history
from durable_celery.dispatch import version_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from durable_celery.archive.keeping import Archive, Key
    from durable_celery.store.protocol import RunRecord, Store

__all__ = ["Archiver"]

_log = logging.getLogger(__name__)
_PAGE = 200
#: Seconds between two looks, of all workers together: a tenth of the retention, within these.
_SHORTEST, _LONGEST = 1.0, 300.0


class Archiver:
    """Copies what is closed and delivered; the store's own retention then deletes it there."""

    def __init__(self, store: Store, archive: Archive, retention: float) -> None:
        self.store, self.archive = store, archive
        self.interval = min(max(retention / 10, _SHORTEST), _LONGEST)

    def archive_runs(self) -> float:
        """Look for runs to keep, if it is time; return the seconds until the next look."""
        if self.archive.may_look(self.interval):
            moved = self.look()
            if moved:
                _log.info("%s runs were put into the archive", moved)
        return self.interval

    def look(self) -> int:
        """Put all that is closed into the archive, and is not there yet; return how many runs that were."""
        cursor, moved = None, 0
        while True:
            page = self.store.runs(cursor=cursor, limit=_PAGE)
            wanted = {key: run for run in page.runs for key in _closed(run)}
            for key in sorted(wanted.keys() - self.archive.known(wanted)):
                moved += self._keep(wanted[key], key)
            cursor = page.cursor
            if cursor is None:
                return moved

    def _keep(self, record: RunRecord, key: Key) -> bool:
        run = key[2]
        history = read_history(self.store, record.workflow_id, run)
        # The store may have forgotten it since it was listed, or long ago if it is an earlier run.
        if not history:
            return False
        return self.archive.keep(record, run, version_of(record.envelope), history)


def _closed(record: RunRecord) -> Iterator[Key]:
    """Yield the runs of a workflow that will not change any more."""
    last = record.run if record.status.is_closed and record.delivered else record.run - 1
    for run in range(1, last + 1):
        yield record.workflow_id, record.created_at, run
