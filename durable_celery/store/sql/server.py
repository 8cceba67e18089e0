"""The way to the database: connections, transactions that are repeated when they lose, and errors in our own words."""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import create_engine
from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

from durable_celery.errors import ConfigurationError, StoreError, StoreUnavailableError
from durable_celery.store.hearing import Ears
from durable_celery.store.sql.desk import Desk, ExpiredError
from durable_celery.store.sql.dialects import SCHEMES, Trouble, connect_arguments, prepare, trouble_of
from durable_celery.store.sql.listening import channel_of, listening
from durable_celery.store.sql.owners import free_process
from durable_celery.store.sql.schema import SCHEMA, create_tables, drop_tables, migrate, version_of
from durable_celery.store.sql.statements import Statements
from durable_celery.store.sql.tables import Tables
from durable_celery.store.sql.writing import ArrayWriter, Writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL, ColumnElement, Connection, Engine

    from durable_celery.store.protocol import Timing

__all__ = ["Server"]

T = TypeVar("T")

#: How often a verb that loses against other transactions is tried. Each try means that another one got through.
CONFLICTS = 30
#: How often a verb is tried while the database does not answer: about a second in all.
OUTAGES = 4
#: Seconds after which no verb is begun again: one that waits for a lock takes several each time.
PATIENCE = 10.0
_FIRST_WAIT, _LONGEST_WAIT = 0.05, 0.4
#: Connections kept open by each process, and how many more it may open for a while.
POOL, OVERFLOW = 5, 15


class Server:
    """One namespace in a database. Safe for threads, and across forks: a child makes its own connections."""

    def __init__(self, url: URL, namespace: str, timing: Timing, now: ColumnElement[int] | None = None) -> None:
        self.url, self.timing, self.tables = url, timing, Tables(namespace)
        #: ``postgresql``, ``mysql``, ``mariadb`` or ``sqlite``.
        self.dialect = url.get_backend_name()
        self.namespace = namespace
        self.statements = Statements(self.tables, self.dialect, now)
        kind = ArrayWriter if self.dialect == "postgresql" else Writer
        self.writer = kind(self.tables, self.dialect, self.statements.read_events)
        #: Who waits for ends, where the database tells of them.
        self.ears: Ears | None = None
        if self.dialect == "postgresql":
            self.ears = Ears(lambda: listening(self.engine, channel_of(namespace)))
        self._is_checked = False
        self._engine: Engine | None = None
        self._pid = 0
        #: Engines of the process that we were forked from. Closing their connections would end them there.
        self._inherited: list[Engine] = []

    @property
    def engine(self) -> Engine:
        """The engine of this process."""
        if self._engine is None or self._pid != os.getpid():
            if self._engine is not None:
                self._inherited.append(self._engine)
            self._engine, self._pid = self._make_engine(), os.getpid()
        return self._engine

    def transact(self, act: Callable[[Desk], T]) -> T:
        """Let a verb act in a transaction of its own, again where it loses.

        Raises:
            StoreUnavailableError: the database does not answer, or the verb lost too often.
        """
        self._check_schema()
        return self._patiently(lambda: self._once(act))

    def read(self, act: Callable[[Connection], T]) -> T:
        """Let single statements be executed, each of which is a transaction of its own.

        Raises:
            StoreUnavailableError: the database does not answer.
        """
        self._check_schema()

        def once() -> T:
            with self._plain.connect() as connection:
                answer = act(connection)
                connection.commit()
                return answer

        return self._patiently(once)

    def free(self, process: str) -> bool:
        """Give back all that a dead process holds, and forget the process. False if it is alive, or not known."""
        return self._patiently(lambda: self._once(lambda desk: free_process(desk, process)))

    def migrate(self, *, post: bool = False) -> int:
        """Bring the tables up to date, and return the number of their schema."""

        def act(connection: Connection) -> int:
            migrate(connection, self.namespace, post=post)
            return version_of(connection, self.tables)

        return self._patiently(lambda: self._in_transaction(act))

    def drop(self) -> None:
        """Drop the tables with all that they hold (tests)."""
        self._patiently(lambda: self._in_transaction(lambda connection: drop_tables(connection, self.namespace)))
        self._is_checked = False

    def _check_schema(self) -> None:
        """Refuse tables that are not there, or old; an SQLite file gets them at its first use."""
        if self._is_checked:
            return
        if self.dialect == "sqlite":
            self._patiently(lambda: self._in_transaction(lambda connection: create_tables(connection, self.namespace)))
        else:
            version = self._patiently(lambda: self._in_transaction(lambda given: version_of(given, self.tables)))
            if version < SCHEMA:
                raise self._old_schema(f"schema {version} was found, {SCHEMA} is needed")
        self._is_checked = True

    def _old_schema(self, words: str) -> ConfigurationError:
        return ConfigurationError(
            f"the tables {self.namespace}_* of durable_celery are missing in the database, or are those of another "
            f"release: {words}. Run: celery -A <app> durable migrate"
        )

    def _once(self, act: Callable[[Desk], T]) -> T:
        return self._in_transaction(lambda given: act(Desk(given, self.statements, self.writer, self.timing)))

    def _in_transaction(self, act: Callable[[Connection], T]) -> T:
        with self.engine.connect() as connection:
            if self.dialect == "sqlite":
                # SQLite would otherwise begin as a reader, and fail where another one writes meanwhile.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            answer = act(connection)
            connection.commit()
            return answer

    def _patiently(self, act: Callable[[], T]) -> T:
        conflicts = outages = 0
        began = time.monotonic()
        while True:
            try:
                return act()
            except ExpiredError as expired:
                self.free(expired.process)
            except SQLAlchemyError as error:
                trouble = trouble_of(error)
                conflicts += trouble is Trouble.CONFLICT
                outages += trouble is Trouble.AWAY
                is_passing = trouble in {Trouble.CONFLICT, Trouble.AWAY} and time.monotonic() - began < PATIENCE
                if not is_passing or conflicts >= CONFLICTS or outages >= OUTAGES:
                    raise self._told(trouble, error) from error
                if trouble is Trouble.AWAY or conflicts > 1:
                    longest = min(_FIRST_WAIT * 2 ** (conflicts + outages), _LONGEST_WAIT)
                    time.sleep(random.uniform(longest / 4, longest))  # noqa: S311 - so that losers do not meet again

    def _told(self, trouble: Trouble, error: SQLAlchemyError) -> StoreError | ConfigurationError:
        # The driver's words only: SQLAlchemy's would have the statement and its parameters, which are payloads.
        words = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        match trouble:
            case Trouble.CONFLICT:
                return StoreUnavailableError(f"the database is too busy with other transactions: {words}")
            case Trouble.AWAY:
                return StoreUnavailableError(f"the database does not answer: {words}")
            case Trouble.SCHEMA:
                return self._old_schema(words)
            case Trouble.REFUSED:
                return ConfigurationError(f"the database does not allow this: {words}")
            case _:
                return StoreError(f"the database refused: {words}")

    @property
    def _plain(self) -> Engine:
        """The engine for single statements, without BEGIN and COMMIT around them."""
        if self.dialect == "postgresql":
            return self.engine.execution_options(isolation_level="AUTOCOMMIT")
        return self.engine

    def _make_engine(self) -> Engine:
        # The default of MySQL locks the gaps between rows too, and reads what was true at the first statement.
        level = {} if self.dialect == "sqlite" else {"isolation_level": "READ COMMITTED"}
        try:
            engine = create_engine(
                self.url,
                connect_args=connect_arguments(self.url),
                pool_size=POOL,
                max_overflow=OVERFLOW,
                pool_timeout=10,
                hide_parameters=True,
                **level,
            )
        except (ImportError, NoSuchModuleError) as error:
            extra = next((extra for driver, extra in SCHEMES.values() if driver == self.url.drivername), "")
            raise ConfigurationError(
                f"the driver of {self.url.drivername} is not installed: {error}. Install durable-celery[{extra}]"
            ) from error
        prepare(engine)
        return engine
