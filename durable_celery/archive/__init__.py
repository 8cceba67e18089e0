"""The archive: closed runs with their histories, in tables of an SQL database, for as long as people want to keep them.

``keeping`` has the tables' verbs, ``reading`` shows store and archive as one to clients, ``archiver`` moves.
Invariant: what the archive has of a run never changes.
"""

from durable_celery.archive.keeping import Archive
from durable_celery.archive.reading import with_archive

__all__ = ["Archive", "with_archive"]
