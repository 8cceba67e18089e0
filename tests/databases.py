"""Databases for tests: an SQLite file, and the PostgreSQL and MariaDB servers that others use at the same time.

Tests keep apart by the names of their tables. Plain functions without pytest but for the skip; the fixtures stand in
`conftest.py`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from durable_celery.store.sql import SqlStore
from durable_celery.store.sql.dialects import connect_arguments, url_of
from tests.servers import require_service

#: name -> the variable that names the server, and where it is by default.
SERVERS = {
    "postgresql": ("DURABLE_TEST_POSTGRESQL_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/test"),
    "mariadb": ("DURABLE_TEST_MARIADB_URL", "mariadb+pymysql://root@127.0.0.1:3306/test"),
}


@dataclass(frozen=True, slots=True)
class Database:
    """A place for the tables of one namespace."""

    url: str
    namespace: str

    def store(self) -> SqlStore:
        """Return a store over the tables."""
        return SqlStore(self.url, namespace=self.namespace)


def server_url(name: str) -> str:
    """Return the URL of a database server that answers; without one, skip the test (fail in CI)."""
    variable, default = SERVERS[name]
    url = os.environ.get(variable, default)
    require_service(name, lambda: answers(url), f"start one at {default}, or name one in {variable}")
    return url


def answers(url: str) -> bool:
    """Tell whether a database lets us in."""
    engine = create_engine(url, connect_args=connect_arguments(url_of(url)))
    try:
        with engine.connect():
            return True
    except SQLAlchemyError:
        return False
    finally:
        engine.dispose()


@contextmanager
def tables_at(url: str) -> Generator[Database]:
    """Give tables with names of their own, and drop them afterwards."""
    database = Database(url, f"t_{uuid.uuid4().hex[:12]}")
    store = database.store()
    store.migrate()
    try:
        yield database
    finally:
        store._server.drop()
        with store._server.engine.begin() as connection:
            # Alembic's own, which knows which revisions were run.
            connection.execute(text(f"DROP TABLE IF EXISTS {database.namespace}_alembic"))
        store.close()
