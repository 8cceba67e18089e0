"""Making the tables, and telling whether they are those that this release needs.

The number of the schema stands in the table ``<namespace>_schema``, written by the revisions themselves, so that it is
right whoever runs them: ``celery durable migrate``, or the user's own Alembic tree. A number above ours is accepted: a
new schema serves the release before it, which still runs while the new one is deployed.

So a change comes as a pair of revisions. The first adds what the new release needs and takes nothing from the old one:
it is run before the deploy. The second, with ``phase = "post"`` in its module, takes away what only the old release
used: it is run after the deploy (``migrate --post``), or before the next one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import insert, select

from durable_celery.errors import ConfigurationError
from durable_celery.store.sql.tables import Tables

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["SCHEMA", "VERSIONS", "create_tables", "drop_tables", "migrate", "version_of"]

#: The number of the newest schema.
SCHEMA = 1
#: Where the Alembic revisions lie: a value for ``version_locations`` of another tree.
VERSIONS = Path(__file__).with_name("migrations") / "versions"


def version_of(connection: Connection, tables: Tables) -> int:
    """Return the number of the schema, or 0 where the tables are empty of it."""
    numbers = connection.execute(select(tables.schema.c.version)).scalars()
    return max(numbers, default=0)


def create_tables(connection: Connection, namespace: str) -> None:
    """Create what is missing, and note the number of the schema. May be repeated."""
    tables = Tables(namespace)
    tables.metadata.create_all(connection)
    if version_of(connection, tables) < SCHEMA:
        connection.execute(insert(tables.schema).values(version=SCHEMA))


def drop_tables(connection: Connection, namespace: str) -> None:
    """Drop the tables with all that they hold."""
    Tables(namespace).metadata.drop_all(connection)


def migrate(connection: Connection, namespace: str, *, post: bool = False, versions: Path = VERSIONS) -> None:
    """Run the Alembic revisions that are still to be run; the caller commits.

    Args:
        connection: to the database.
        namespace: what the tables' names begin with.
        post: also what the release before this one cannot stand.
        versions: where the revisions lie (tests).

    Raises:
        ConfigurationError: Alembic is not installed.
    """
    try:
        from alembic import command
        from alembic.config import Config
        from alembic.script import ScriptDirectory
    except ImportError as error:
        raise ConfigurationError(
            "the tables of an SQL store are made by Alembic, which is not installed. "
            "Install durable-celery[postgresql], durable-celery[mysql] or alembic"
        ) from error
    config = Config()
    config.set_main_option("script_location", str(VERSIONS.parent).replace("%", "%%"))
    config.set_main_option("version_locations", str(versions).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    config.attributes.update(connection=connection, namespace=namespace)
    revisions = ScriptDirectory.from_config(config).walk_revisions()
    # Head first. What comes before a pair's first half was done with the release before, or is done now.
    harmless = (script for script in revisions if post or getattr(script.module, "phase", "pre") != "post")
    command.upgrade(config, next(harmless).revision)
