"""The tables of durable_celery.

In an Alembic tree of your own the namespace of the tables is an option of its ``env.py``:
``context.configure(..., durable_namespace="shop")``. Without it, it is ``durable``.
"""

from alembic import op

from durable_celery.store.sql.schema import create_tables, drop_tables

revision = "durable_0001"
down_revision = None
branch_labels = ("durable_celery",)
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    create_tables(op.get_bind(), op.get_context().opts.get("durable_namespace", "durable"))


def downgrade() -> None:
    """Drop the tables with all runs."""
    drop_tables(op.get_bind(), op.get_context().opts.get("durable_namespace", "durable"))
