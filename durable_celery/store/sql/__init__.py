"""The SQL store. Only this room knows SQLAlchemy; it is imported when a setting names an SQL database."""

from durable_celery.store.sql.store import SqlStore

__all__ = ["SqlStore"]
