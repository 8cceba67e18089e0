"""The Alembic tree of the SQL store; run by :mod:`durable_celery.store.sql.schema`."""
