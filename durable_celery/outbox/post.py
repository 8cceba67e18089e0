"""Where callers put entries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from durable_celery.errors import ConfigurationError

if TYPE_CHECKING:
    from durable_celery.outbox.entries import Entry, Outbox

__all__ = ["Post"]


class Post:
    """Takes what callers add in their transactions."""

    def __init__(self, *, is_relayed: bool, prefix: str) -> None:
        self._is_relayed, self._prefix = is_relayed, prefix
        #: How many entries this process has added.
        self.count = 0

    def add(self, session: object, entry: Entry) -> None:
        """Add an entry to the transaction of a session.

        Raises:
            ConfigurationError: no worker relays, the table is missing, or it is no session.
        """
        if not self._is_relayed:
            raise ConfigurationError(
                "nobody would relay this: set durable_outbox to the URL of your database, for the workers to look there"
            )
        self._outbox(session).add(entry)
        self.count += 1

    def _outbox(self, session: Any) -> Outbox:
        if hasattr(session, "add_to_outbox"):
            outbox: Outbox = session.add_to_outbox()
            return outbox
        # SQLAlchemy takes long to import, and is not everybody's.
        from durable_celery.outbox.tables import outbox_in

        return outbox_in(session, self._prefix)
