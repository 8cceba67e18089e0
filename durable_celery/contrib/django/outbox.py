"""``start_in`` and ``signal_in`` in a transaction of Django's: ``checkout.start_in(outbox(), ...)``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from django.db import DatabaseError, InterfaceError, connections, transaction

from durable_celery.contrib.django.tables import missing
from durable_celery.errors import ConfigurationError, StoreUnavailableError
from durable_celery.outbox import Entry, Later

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable_celery.outbox import Outbox, Verdict

__all__ = ["DjangoShelf", "outbox"]


def outbox(using: str = "default") -> Any:
    """Return what stands for the current transaction, to be given to ``start_in`` and ``signal_in``.

    Args:
        using: the database.
    """
    return _DjangoOutbox(using)


class _DjangoOutbox:
    def __init__(self, using: str) -> None:
        self.using = using

    def add_to_outbox(self) -> Outbox:
        """Return itself: so it is told from a session."""
        return self

    def add(self, entry: Entry) -> None:
        """See :meth:`Outbox.add`."""
        _rows(self.using).create(
            kind=entry.kind, workflow_id=entry.workflow_id, body=entry.body, at=entry.at, not_before=entry.at, tries=0
        )


class DjangoShelf:
    """The outbox of a Django database."""

    def __init__(self, using: str) -> None:
        self.using = using

    def check(self) -> None:
        """See :meth:`Shelf.check`."""
        connection = self._fresh()
        try:
            names = connection.introspection.table_names()
        except (DatabaseError, InterfaceError) as error:
            raise self._away(error) from error
        if "durable_outbox" not in names:
            raise ConfigurationError(missing(self.using, "durable_outbox"))

    def hand_out(self, take: Callable[[Entry], Verdict], limit: int) -> int:
        """See :meth:`Shelf.hand_out`."""
        connection = self._fresh()
        atomic: Any = transaction.atomic
        now = round(time.time() * 1000)
        has_locks = connection.features.has_select_for_update_skip_locked
        try:
            due = _rows(self.using).filter(not_before__lte=now).order_by("id")
            if not has_locks and not due.exists():
                return 0
            with atomic(using=self.using):
                if has_locks:
                    due = due.select_for_update(skip_locked=True)
                else:
                    # SQLite has no locks on rows: to write, if only nothing, takes the one on all.
                    _rows(self.using).filter(id=-1).update(tries=0)
                found = list(due[:limit])
                for row in found:
                    self._settle(row, take)
        except (DatabaseError, InterfaceError) as error:
            raise self._away(error) from error
        return len(found)

    def _settle(self, row: Any, take: Callable[[Entry], Verdict]) -> None:
        verdict = take(Entry(kind=row.kind, workflow_id=row.workflow_id, body=row.body, at=row.at, tries=row.tries))
        if verdict is None:
            row.delete()
            return
        row.tries, row.error, row.not_before = row.tries + 1, verdict.why, None
        if isinstance(verdict, Later):
            row.not_before = round((time.time() + verdict.seconds) * 1000)
        row.save()

    def _fresh(self) -> Any:
        connection = connections[self.using]
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()
        return connection

    def _away(self, error: Exception) -> StoreUnavailableError:
        return StoreUnavailableError(f'the outbox in Django\'s database "{self.using}": {error}')


def _rows(using: str) -> Any:
    # Models can be imported only when Django has its settings.
    from durable_celery.contrib.django.models import OutboxEntry

    model: Any = OutboxEntry
    return model.objects.using(using)
