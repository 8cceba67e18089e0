"""The outbox as a table, with SQLAlchemy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy import inspect as inspect_database
from sqlalchemy.exc import OperationalError, ProgrammingError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from durable_celery.columns import INNODB, LONG, now_ms
from durable_celery.errors import ConfigurationError, StoreUnavailableError
from durable_celery.outbox.entries import Entry, Later, Parked

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable_celery.outbox.entries import Outbox, Verdict

__all__ = ["SqlOutbox", "SqlShelf", "outbox_in", "outbox_table", "table_of"]

_METADATA = MetaData()

#: SQLite counts by itself only what it calls INTEGER.
_NUMBER = BigInteger().with_variant(Integer(), "sqlite")


def outbox_table(metadata: MetaData, prefix: str = "durable") -> Table:
    """Return the table ``<prefix>_outbox``, which a user's database needs for ``start_in`` and ``signal_in``.

    Add it to the metadata of your models: ``create_all`` and Alembic's autogenerate then know of it. It is empty but
    for what was just committed, and what could not be relayed.

    ==============  ==================================================================================================
    ``id``          grows
    ``kind``        ``start`` or ``signal``
    ``workflow_id``  of the run
    ``body``        what is started or signalled (JSON), with payloads as ``durable_codec`` leaves them
    ``at``          when it was added (ms since 1970)
    ``not_before``  when it is tried next (ms since 1970); nothing: it is parked, because it cannot be relayed
    ``tries``       how often that was in vain
    ``error``       why
    ==============  ==================================================================================================
    """
    name = f"{prefix}_outbox"
    if (known := metadata.tables.get(name)) is not None:
        return known
    return Table(
        name,
        metadata,
        Column("id", _NUMBER, primary_key=True),
        Column("kind", String(16), nullable=False),
        Column("workflow_id", String(255), nullable=False),
        Column("body", LONG, nullable=False),
        Column("at", BigInteger, nullable=False),
        Column("not_before", BigInteger, index=True),
        Column("tries", Integer, nullable=False),
        Column("error", LONG),
        # A number that was used again might be deleted by a relay that had the row before in hand.
        sqlite_autoincrement=True,
        **INNODB,
    )


def outbox_in(session: object, prefix: str) -> Outbox:
    """Return the outbox of a session's transaction.

    Raises:
        ConfigurationError: it is no session.
    """
    if isinstance(session, AsyncSession | AsyncConnection | async_scoped_session):
        raise ConfigurationError(
            "with an asynchronous session: await session.run_sync(lambda session: workflow.start_in(session, ...))"
        )
    if isinstance(session, Session | scoped_session | Connection):
        return SqlOutbox(session, table_of(prefix))
    raise ConfigurationError(f"start_in and signal_in take a session or connection of SQLAlchemy, not {session!r}")


def table_of(prefix: str) -> Table:
    """Return the table with a prefix, in a metadata of our own."""
    return outbox_table(_METADATA, prefix)


class SqlOutbox:
    """The transaction of a session, or of a connection."""

    def __init__(self, session: Any, table: Table) -> None:
        self.session, self.table = session, table

    def add(self, entry: Entry) -> None:
        """See :meth:`Outbox.add`.

        Raises:
            ConfigurationError: there seems to be no such table.
        """
        row = {"kind": entry.kind, "workflow_id": entry.workflow_id, "body": entry.body, "at": entry.at}
        try:
            self.session.execute(insert(self.table).values(**row, not_before=entry.at, tries=0))
        except (ProgrammingError, OperationalError) as error:
            raise ConfigurationError(f"{_missing(self.table)} ({error.orig})") from error


class SqlShelf:
    """The outbox of an engine's database."""

    def __init__(self, engine: Engine, table: Table) -> None:
        self.engine, self.table = engine, table

    def check(self) -> None:
        """See :meth:`Shelf.check`."""
        try:
            is_there = inspect_database(self.engine).has_table(self.table.name)
        except SQLAlchemyError as error:
            raise self._away(error) from error
        if not is_there:
            raise ConfigurationError(_missing(self.table))

    def hand_out(self, take: Callable[[Entry], Verdict], limit: int) -> int:
        """See :meth:`Shelf.hand_out`."""
        rows = self.table.c
        due = select(self.table).where(rows.not_before <= now_ms()).order_by(rows.id).limit(limit)
        done, is_sqlite = list[int](), self.engine.dialect.name == "sqlite"
        try:
            if is_sqlite and not self._has(due):
                return 0
            with self.engine.begin() as connection:
                if is_sqlite:
                    # It has no locks on rows: to write, if only nothing, takes the one on all.
                    connection.execute(update(self.table).where(rows.id == -1).values(tries=0))
                found = connection.execute(due.with_for_update(skip_locked=True)).all()
                for row in found:
                    verdict = take(
                        Entry(kind=row.kind, workflow_id=row.workflow_id, body=row.body, at=row.at, tries=row.tries)
                    )
                    if verdict is None:
                        done.append(row.id)
                    else:
                        connection.execute(update(self.table).where(rows.id == row.id).values(_after(row, verdict)))
                if done:
                    connection.execute(delete(self.table).where(rows.id.in_(done)))
        except SQLAlchemyError as error:
            raise self._away(error) from error
        return len(found)

    def _has(self, due: Select[Any]) -> bool:
        with self.engine.begin() as connection:
            return connection.execute(due.limit(1)).first() is not None

    def _away(self, error: Exception) -> StoreUnavailableError:
        return StoreUnavailableError(f"the outbox at {self.engine.url!r}: {error}")


def _after(row: Any, verdict: Later | Parked) -> dict[str, Any]:
    """Return what changes in the row of an entry that was not relayed."""
    not_before = now_ms() + round(verdict.seconds * 1000) if isinstance(verdict, Later) else None
    return {"tries": row.tries + 1, "not_before": not_before, "error": verdict.why}


def _missing(table: Table) -> str:
    return (
        f"the database has no table {table.name}: add durable_celery.outbox_table(metadata) to your models' metadata, "
        "and create it with them"
    )
