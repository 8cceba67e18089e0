"""The outbox: starts and signals that are rows in a transaction of the user's own database, until a worker relays them.

Invariant: a row names all that it asks for, and asks for it under an id or a key. So it may be relayed twice, and a
relay that dies between the store and the row's deletion does no harm.

``tables`` and ``shelves`` know SQLAlchemy, and are imported by who needs them.
"""

from durable_celery.outbox.entries import Entry, Later, Outbox, Parked, Shelf, Verdict, signal_entry, start_entry
from durable_celery.outbox.post import Post

__all__ = ["Entry", "Later", "Outbox", "Parked", "Post", "Shelf", "Verdict", "signal_entry", "start_entry"]
