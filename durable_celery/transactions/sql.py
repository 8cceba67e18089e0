"""Transactional steps with SQLAlchemy: plain sessions, scoped ones such as Flask-SQLAlchemy's, and asynchronous ones.

An ``async def`` task is run by the very same code: SQLAlchemy's asynchronous sessions are plain ones behind a greenlet.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast, overload

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    NullPool,
    Table,
    delete,
    event,
    insert,
    select,
    update,
)
from sqlalchemy import (
    inspect as inspect_database,
)
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.util import await_only

from durable_celery.columns import INNODB, LONG, exact, now_ms
from durable_celery.current import current_step
from durable_celery.errors import ConfigurationError, DurableError
from durable_celery.transactions.exactly_once import perform

if TYPE_CHECKING:
    from collections.abc import Coroutine

from durable_celery.current import StepInfo

__all__ = ["outcome_table", "transactional_step"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_MONTH = timedelta(days=30)


def outcome_table(metadata: MetaData, prefix: str = "durable") -> Table:
    """Return the table ``<prefix>_outcomes``, which a user's database needs for its transactional steps.

    Add it to the metadata of your models: ``create_all`` and Alembic's autogenerate then know of it. Its rows are
    small, one for each step, and are deleted after a month; see :func:`transactional_step`.

    ==========  ==========================================================================================
    ``step``    the step's idempotency key, and when its run began
    ``attempt``  the newest attempt that has begun
    ``outcome``  the step's result, as ``durable_codec`` leaves it; nothing while there is none
    ``at``      when the first attempt began (ms since 1970, on the worker's clock)
    ==========  ==========================================================================================
    """
    name = f"{prefix}_outcomes"
    if (known := metadata.tables.get(name)) is not None:
        return known
    return Table(
        name,
        metadata,
        # <workflow id>/<run>.<number>@<incarnation>
        Column("step", exact(320), primary_key=True),
        Column("attempt", Integer, nullable=False),
        Column("outcome", LONG),
        Column("at", BigInteger, nullable=False, index=True),
        **INNODB,
    )


_TABLE = outcome_table(MetaData())

SyncSource = Engine | sessionmaker[Session] | scoped_session[Session] | Callable[[], Session] | Callable[[], Engine]
AsyncSource = (
    AsyncEngine
    | async_sessionmaker[AsyncSession]
    | async_scoped_session[AsyncSession]
    | Callable[[], AsyncSession]
    | Callable[[], AsyncEngine]
)


class _Decorator:
    """What ``transactional_step(...)`` returns, for type checkers."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[AsyncSession, P], Coroutine[Any, Any, R]], /
    ) -> Callable[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Session, P], R], /) -> Callable[P, R]: ...
    def __call__(self, function: Callable[..., Any], /) -> Any:
        raise TypeError(function)


def transactional_step(
    database: SyncSource | AsyncSource, *, table: Table | None = None, keep: timedelta = _MONTH
) -> _Decorator:
    """Give a task a session whose transaction also holds the step's outcome: it takes effect exactly once.

    Stands below ``@app.task``. The function gets the session as its first argument, and everything that it does by it
    is committed together with its result, or not at all. A repeat after a crash finds the result and does nothing. An
    ``async def`` function gets an asynchronous session, and becomes a plain task. Called by no workflow, it is a
    function in a transaction. (worker)

    Args:
        database: an engine, a session factory, a scoped session such as Flask-SQLAlchemy's ``db.session``, or a
            function that returns an engine or a session: what is to be made in the worker's process, on first use. An
            asynchronous engine must have ``poolclass=NullPool``, because each task has an event loop of its own.
        table: the table of outcomes, if it is not ``durable_outcomes``; see :func:`outcome_table`.
        keep: after how long rows are deleted. Must be longer than any message or worker may be late.

    Raises:
        ConfigurationError: when it is executed: the table is missing, or the database commits by itself.
    """
    home = _Home(database, _TABLE if table is None else table, keep)

    def decorate(function: Callable[..., Any]) -> Any:
        if inspect.iscoroutinefunction(function):

            def entry(*args: Any, **kwargs: Any) -> Any:
                return asyncio.run(home.run_async(function, args, kwargs))
        else:

            def entry(*args: Any, **kwargs: Any) -> Any:
                return home.run(function, args, kwargs)

        functools.update_wrapper(entry, function)
        del entry.__wrapped__  # type: ignore[attr-defined] # update_wrapper sets it; Celery would read the signature there
        signature = inspect.signature(function)
        entry.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
        entry.durable_settles = True  # type: ignore[attr-defined] # tells the worker that it knows what was lost
        return entry

    return cast("_Decorator", decorate)


class _Home:
    """Where the transactions of a step take place."""

    def __init__(self, database: Any, table: Table, keep: timedelta) -> None:
        self.database, self.table, self.keep = database, table, keep

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a plain function with a session."""
        with self._session() as session:
            return self._execute(session, current_step(), lambda: function(session, *args, **kwargs))

    async def run_async(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a coroutine function with an asynchronous session."""
        made = self._made()
        session = AsyncSession(made) if isinstance(made, AsyncEngine) else made
        if not isinstance(session, AsyncSession):
            raise ConfigurationError(
                f"an `async def` step takes an AsyncEngine, or what makes an AsyncSession, not {self.database!r}"
            )
        # Celery's current task is that of a greenlet, and what follows stands in another.
        step = current_step()
        try:
            return await session.run_sync(
                lambda sync: self._execute(sync, step, lambda: await_only(function(session, *args, **kwargs)))
            )
        finally:
            await (self.database.remove if isinstance(self.database, async_scoped_session) else session.close)()

    @contextmanager
    def _session(self) -> Generator[Session]:
        made = self._made()
        session = Session(made) if isinstance(made, Engine) else made
        if not isinstance(session, Session):
            raise ConfigurationError(f"a step takes an engine, or what makes a session, not {self.database!r}")
        try:
            yield session
        finally:
            # A scoped session is shared with the code of the task; the next task gets a new one.
            (self.database.remove if isinstance(self.database, scoped_session) else session.close)()

    def _made(self) -> Any:
        """Return an engine or a session."""
        return self.database if isinstance(self.database, Engine | AsyncEngine) else self.database()

    def _execute(self, session: Session, step: StepInfo | None, body: Callable[[], T]) -> T:
        ledger = _SqlLedger(session, self.table, self.keep)
        return ledger.work(body) if step is None else perform(step, ledger, body)


class _SqlLedger:
    """The rows of outcomes in the database of a session."""

    passing = (OperationalError, InterfaceError)

    def __init__(self, session: Session, table: Table, keep: timedelta) -> None:
        self.session, self.table, self._keep = session, table, keep
        bind = session.get_bind(clause=table)
        if isinstance(bind, Connection):
            raise ConfigurationError("the session of a transactional step is bound to an engine, not to a connection")
        if session.in_transaction():
            raise DurableError("the session of a transactional step is in a transaction before the step begins")
        self.engine = bind
        own = bind.get_execution_options().get("isolation_level")
        if "AUTOCOMMIT" in {own, getattr(bind.dialect, "_on_connect_isolation_level", None)}:
            raise ConfigurationError("the engine of a transactional step commits each statement by itself (AUTOCOMMIT)")
        if bind.dialect.is_async and not isinstance(bind.pool, NullPool):
            raise ConfigurationError(
                "an asynchronous engine in Celery tasks needs poolclass=NullPool: each has an event loop of its own"
            )

    # -- transactions of their own -----------------------------------------------------------------------------------

    def add(self, key: str, attempt: int) -> bool:
        """See :meth:`Ledger.add`."""
        row = {"step": key, "attempt": attempt, "at": now_ms()}
        try:
            with self._connection() as connection:
                connection.execute(insert(self.table).values(row))
        except IntegrityError:
            return False
        return True

    def renew(self, key: str, attempt: int) -> bool:
        """See :meth:`Ledger.renew`."""
        rows = self.table.c
        condition = (rows.step == key) & (rows.attempt <= attempt) & rows.outcome.is_(None)
        with self._connection() as connection:
            return bool(connection.execute(update(self.table).where(condition).values(attempt=attempt)).rowcount)

    def find(self, key: str) -> tuple[int, str | None] | None:
        """See :meth:`Ledger.find`."""
        rows = self.table.c
        with self._connection() as connection:
            found = connection.execute(select(rows.attempt, rows.outcome).where(rows.step == key)).one_or_none()
        return None if found is None else (found.attempt, found.outcome)

    def clear(self) -> None:
        """See :meth:`Ledger.clear`."""
        before = now_ms() - round(self._keep.total_seconds() * 1000)
        with self._connection() as connection:
            connection.execute(delete(self.table).where(self.table.c.at < before))

    @contextmanager
    def _connection(self) -> Generator[Connection]:
        try:
            with self.engine.begin() as connection:
                yield connection
        except (ProgrammingError, OperationalError) as error:
            if error.connection_invalidated or inspect_database(self.engine).has_table(self.table.name):
                raise
            raise ConfigurationError(
                f"the database of a transactional step has no table {self.table.name}: add "
                "durable_celery.outcome_table(metadata) to your models' metadata, and create it with them"
            ) from error

    # -- the transaction of the step ---------------------------------------------------------------------------------

    def work(self, body: Callable[[], T]) -> T:
        """See :meth:`Ledger.work`."""
        session, is_over = self.session, False

        def refuse(_: Session) -> None:
            if not is_over and not session.in_nested_transaction():
                raise DurableError(
                    "a transactional step does not commit: the library does, with the step's outcome. For savepoints "
                    "use begin_nested(), to have the database's answer use flush()"
                )

        event.listen(session, "before_commit", refuse)
        try:
            value = body()
            is_over = True
            session.commit()
        except BaseException:
            session.rollback()
            raise
        finally:
            event.remove(session, "before_commit", refuse)
        return value

    def keep(self, key: str, attempt: int, outcome: str) -> bool:
        """See :meth:`Ledger.keep`."""
        # What the database has against the user's rows is the user's error, and comes before.
        self.session.flush()
        rows = self.table.c
        condition = (rows.step == key) & (rows.attempt == attempt) & rows.outcome.is_(None)
        change = update(self.table).where(condition).values(outcome=outcome)
        result: Any = self.session.execute(change, execution_options={"synchronize_session": False})
        return bool(result.rowcount)
