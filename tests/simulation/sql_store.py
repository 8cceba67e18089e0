"""The SQL store on a real database, under a clock that is moved by hand, and open to looks.

Every statement that needs the time has it as one expression, the database's clock. The simulation gives another one: a
parameter that is read from the manual clock whenever a statement is executed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from sqlalchemy import BigInteger, Engine, bindparam, cast, delete, event

from durable_celery.events import Recorded
from durable_celery.store.protocol import Timing
from durable_celery.store.sql import SqlStore
from durable_celery.testing.world import Clock
from tests.databases import Database
from tests.simulation.monitor import Row
from tests.store.invariants import Entry, read_sql


class SimulatedSqlStore(SqlStore):
    """The store, with what the simulation looks at. A look is kept until something is written."""

    def __init__(self, database: Database, engine: Engine, *, timing: Timing, clock: Clock) -> None:
        # The cast tells PostgreSQL what the parameter is where nothing else does.
        now: Any = cast(bindparam("manual_now", callable_=lambda: clock.now, type_=BigInteger), BigInteger)
        super().__init__(database.url, namespace=database.namespace, timing=timing, now=now)
        # All histories share the connections, not the statements: those are bound to the clock.
        self._server._engine, self._server._pid, self._server._is_checked = engine, os.getpid(), True
        tables = self._server.tables
        with engine.begin() as connection:
            for table in (tables.events, tables.inputs, tables.commands, tables.runs, tables.owners):
                connection.execute(delete(table))
        self._seen: tuple[list[str], dict[Entry, int], dict[str, set[Entry]]] | None = None
        self._logs: dict[tuple[str, int], list[Recorded]] = {}

    def forget(self) -> None:
        """Something was written: look again."""
        self._seen = None

    @property
    def run_table(self) -> dict[str, None]:
        """All ids."""
        return dict.fromkeys(sorted(self._look()[0], key=lambda name: (name.count("/"), name)))

    @property
    def agenda(self) -> dict[Entry, int]:
        """All that falls due."""
        return self._look()[1]

    @property
    def held(self) -> dict[str, list[str]]:
        """What processes have in hand."""
        return {process: [process] for process in sorted(self._look()[2])}

    def rows(self) -> Iterable[Row]:
        """Give all runs; of their histories only what is new is read, and the last event that was known."""
        rows: list[Row] = []
        for name in self.run_table:
            record = self.get(name)
            if record is None:
                continue
            for run in range(1, record.run + 1):
                log = self._logs.setdefault((name, run), [])
                begin = max(0, len(log) - 1)
                log[begin:] = self.history(name, run=run, after=begin)
                rows.append((name, run, log, record if run == record.run else None))
        return rows

    def _look(self) -> tuple[list[str], dict[Entry, int], dict[str, set[Entry]]]:
        if self._seen is None:
            self._seen = read_sql(self)
        return self._seen


class SqlPlace:
    """Makes the stores of one place; each empties its tables, so only the newest is looked at."""

    def __init__(self, database: Database) -> None:
        self.database = database
        own = database.store()
        self.engine = own._server.engine
        # What the simulation proves has nothing to do with the disk.
        if own._server.dialect == "sqlite":
            event.listen(self.engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous = OFF"))
        self.newest: SimulatedSqlStore | None = None
        event.listen(self.engine, "after_cursor_execute", self._note)

    def make(self, timing: Timing, clock: Clock) -> SimulatedSqlStore:
        """Return an empty store."""
        self.newest = SimulatedSqlStore(self.database, self.engine, timing=timing, clock=clock)
        return self.newest

    def _note(self, _: Any, __: Any, statement: str, *___: Any) -> None:
        if self.newest is not None and not statement.startswith(("SELECT", "BEGIN")):
            self.newest.forget()
