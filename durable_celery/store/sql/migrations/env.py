"""Alembic's way in: runs the revisions over the connection that :mod:`durable_celery.store.sql.schema` gives."""

from alembic import context

_given = context.config.attributes
context.configure(
    connection=_given["connection"],
    version_table=f"{_given['namespace']}_alembic",
    durable_namespace=_given["namespace"],
)
with context.begin_transaction():
    context.run_migrations()
