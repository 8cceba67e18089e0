"""What differs between PostgreSQL, MariaDB/MySQL and SQLite: clocks, connections, upserts, and how errors are told.

Everything else of the store is the same SQL for all of them.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Engine, event, literal_column
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from durable_celery.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import URL, ColumnElement, Insert, Table

__all__ = ["SCHEMES", "Trouble", "clock", "connect_arguments", "prepare", "trouble_of", "upsert", "url_of"]

#: URL schemes of the databases that this store knows, the driver that each needs, and the extra that brings it.
SCHEMES = {
    "postgresql": ("postgresql+psycopg", "postgresql"),
    "postgres": ("postgresql+psycopg", "postgresql"),
    "postgresql+psycopg": ("postgresql+psycopg", "postgresql"),
    "mysql": ("mysql+pymysql", "mysql"),
    "mysql+pymysql": ("mysql+pymysql", "mysql"),
    "mariadb": ("mariadb+pymysql", "mysql"),
    "mariadb+pymysql": ("mariadb+pymysql", "mysql"),
    "sqlite": ("sqlite+pysqlite", ""),
    "sqlite+pysqlite": ("sqlite+pysqlite", ""),
}

#: Seconds that a statement waits for a lock. Verbs hold theirs for milliseconds: this much is a client that hangs.
LOCK_TIMEOUT = 5
#: Seconds after which the server ends a transaction whose client does nothing: it may be stopped, or gone.
IDLE_TIMEOUT = 10


class Trouble(Enum):
    """What an error of the database means to whoever asked."""

    #: Another transaction won; the verb is to be repeated.
    CONFLICT = "conflict"
    #: No answer, or a refusal for now. The verb may have taken effect.
    AWAY = "away"
    #: The tables are missing, or are those of another release.
    SCHEMA = "schema"
    #: The server does not let us in, or does not allow this.
    REFUSED = "refused"
    #: Anything else: a fault of ours.
    FAULT = "fault"


def url_of(text: str) -> URL:
    """Return the URL with the driver that this store is tested with.

    Raises:
        ConfigurationError: it is no URL of a database that this store knows.
    """
    scheme, separator, rest = text.partition("://")
    plain = scheme.removeprefix("sqla+").removeprefix("db+")
    if plain != scheme:
        # The driver is then for kombu or Celery; the store has its own.
        scheme = plain.partition("+")[0]
    if not separator or scheme not in SCHEMES:
        raise ConfigurationError(
            f"durable_store has the scheme {scheme!r}: an SQL store takes postgresql+psycopg://, mysql+pymysql:// or "
            "sqlite:///<file>"
        )
    try:
        url = make_url(f"{SCHEMES[scheme][0]}://{rest}")
    except (ArgumentError, ValueError) as error:
        # Without the text, which may have a password.
        raise ConfigurationError(f"durable_store is no URL of a database: {type(error).__name__}") from error
    if url.get_backend_name() == "sqlite" and url.database in {None, "", ":memory:"}:
        raise ConfigurationError(
            "durable_store is an SQLite database in memory: it ends with its process, and no other sees it. "
            "Name a file, such as sqlite:////var/lib/shop/durable.db"
        )
    return url


def connect_arguments(url: URL) -> dict[str, Any]:
    """Return what the driver is told, so that a server that hangs is noticed."""
    match url.get_backend_name():
        case "postgresql":
            # What of this the URL says itself stays as it is.
            keep: dict[str, Any] = {
                "connect_timeout": 5,
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "tcp_user_timeout": 10_000,
            }
            keep |= {"application_name": "durable_celery"}
            return {name: value for name, value in keep.items() if name not in url.query}
        case "sqlite":
            return {"timeout": LOCK_TIMEOUT, "check_same_thread": False}
        case _:
            return {"connect_timeout": 5, "read_timeout": 3 * LOCK_TIMEOUT, "write_timeout": 3 * LOCK_TIMEOUT}


def prepare(engine: Engine) -> None:
    """Set up each new connection of an engine."""
    words = {
        "postgresql": (
            f"SET lock_timeout = '{LOCK_TIMEOUT}s'; SET idle_in_transaction_session_timeout = '{IDLE_TIMEOUT}s'",
        ),
        "sqlite": ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "PRAGMA foreign_keys = ON"),
    }.get(
        engine.dialect.name,
        # Without a time zone of our own, an hour of each autumn would come twice.
        (f"SET innodb_lock_wait_timeout = {LOCK_TIMEOUT}, time_zone = '+00:00'",),
    )

    def connected(connection: Any, _: Any) -> None:
        if engine.dialect.name == "sqlite":
            # The driver would begin transactions of the wrong kind by itself.
            connection.isolation_level = None
        cursor = connection.cursor()
        for word in words:
            cursor.execute(word)
        cursor.close()
        if engine.dialect.name != "sqlite":
            connection.commit()

    event.listen(engine, "connect", connected)


def clock(name: str, *, moves: bool = True) -> ColumnElement[int]:
    """Return the database's time in ms since 1970.

    With ``moves`` it is the time at which the row was reached: a statement may have waited for a lock. Without, it is
    that of the statement's beginning, which an index can be searched by.
    """
    text = {
        "postgresql": f"(extract(epoch FROM {'clock' if moves else 'statement'}_timestamp()) * 1000)::bigint",
        "sqlite": "CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)",
    }.get(name, f"CAST(unix_timestamp({'sysdate' if moves else 'now'}(3)) * 1000 AS SIGNED)")
    return literal_column(text, BigInteger)


def upsert(name: str, table: Table) -> Insert:
    """Return an insert that takes the place of a row with the same primary key."""
    keys = [column.name for column in table.primary_key]
    others = [column.name for column in table.columns if column.name not in keys]
    if name == "postgresql":
        on_postgresql = postgresql.insert(table)
        changes = {column: on_postgresql.excluded[column] for column in others}
        return on_postgresql.on_conflict_do_update(index_elements=keys, set_=changes)
    if name == "sqlite":
        on_sqlite = sqlite.insert(table)
        changes = {column: on_sqlite.excluded[column] for column in others}
        return on_sqlite.on_conflict_do_update(index_elements=keys, set_=changes)
    on_mysql = mysql.insert(table)
    return on_mysql.on_duplicate_key_update({column: on_mysql.inserted[column] for column in others})


#: SQLSTATE of PostgreSQL (or its class of two letters), numbers of MySQL, words of SQLite.
_MEANINGS: tuple[tuple[Trouble, re.Pattern[str]], ...] = (
    (Trouble.CONFLICT, re.compile(r"(40001|40P01|55P03|1213|1205|1020)$|database (table )?is locked")),
    (Trouble.SCHEMA, re.compile(r"(42P01|42703|3F000|1146|1054)$|no such (table|column)|has no column named")),
    (Trouble.REFUSED, re.compile(r"(28\w{3}|3D000|42501|1045|1044|1049|1142|1143)$|attempt to write a readonly")),
    (
        Trouble.AWAY,
        re.compile(
            r"(08\w{3}|53\w{3}|57P0\d|25006|25P03|58\w{3}"
            r"|10(21|40|53)|1114|1203|1290|1836|1927|1969|2002|2003|2006|2013|2014|2055|4031)$"
            r"|unable to open|disk (is full|I/O error)|database or disk is full"
        ),
    ),
)
#: libpq gives no code for a connection that it did not get.
_NO_ENTRY = re.compile(
    r"authentication failed|(database|role) \".*\" does not exist|no password supplied|not permitted"
)


def trouble_of(error: Exception) -> Trouble:
    """Return what an error of SQLAlchemy means."""
    if isinstance(error, IntegrityError):
        # A row that another transaction has just written, or a process that another has just forgotten.
        return Trouble.CONFLICT
    if not isinstance(error, DBAPIError):
        return Trouble.AWAY if isinstance(error, PoolTimeoutError) else Trouble.FAULT
    code = _code_of(error)
    if known := next((trouble for trouble, pattern in _MEANINGS if pattern.search(code)), None):
        return known
    if _NO_ENTRY.search(str(error.orig)):
        return Trouble.REFUSED
    # The drivers' own words without a code: of an operational error they are about the connection.
    is_lost = isinstance(error, InterfaceError) or (isinstance(error, OperationalError) and not code)
    is_lost = is_lost or error.connection_invalidated
    return Trouble.AWAY if is_lost else Trouble.FAULT


def _code_of(error: DBAPIError) -> str:
    """Return PostgreSQL's SQLSTATE, MySQL's number, SQLite's words; "" where there is none."""
    origin: Any = error.orig
    first = origin.args[0] if origin is not None and origin.args else ""
    # PyMySQL knows SQLSTATEs as well, but MySQL's own numbers say more.
    return str(first) if isinstance(first, int) else str(getattr(origin, "sqlstate", first) or "")
