"""The archive of one namespace in an SQL database: what is put there, and what is read."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, func, insert, or_, select, text, tuple_, update
from sqlalchemy import inspect as inspect_database
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from durable_celery.archive.tables import ArchiveTables
from durable_celery.columns import now_ms
from durable_celery.databases import engine_of
from durable_celery.errors import ConfigurationError, InvalidRequestError, StoreUnavailableError
from durable_celery.events import encode
from durable_celery.store.protocol import RunPage, RunRecord, RunStatus
from durable_celery.store.sql.desk import recorded

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from sqlalchemy import Connection

    from durable_celery.events import Event, Recorded

__all__ = ["CONTINUED", "CURSOR", "Archive", "Key"]

#: (workflow id, when it was started, run)
Key = tuple[str, int, int]
#: The status of a run that went on as the next one.
CONTINUED = "continued"
#: What the cursors of an archive begin with.
CURSOR = "archive:"
#: Rows that one statement inserts.
_ROWS = 500


class Archive:
    """Closed runs that a store forgets, or has forgotten.

    Raises, from any verb:
        StoreUnavailableError: the database does not answer.
    """

    def __init__(self, source: Any, namespace: str) -> None:
        """Name the archive; nothing is connected yet.

        Raises:
            ConfigurationError: ``durable_archive`` names no database, or the namespace cannot name tables.
        """
        self.engine, self.tables = engine_of(source, "durable_archive"), ArchiveTables(namespace)

    # -- tables ----------------------------------------------------------------------------------------------------

    def migrate(self) -> None:
        """Make the tables and the view, if they are not there."""
        with self._connection() as connection:
            self.tables.metadata.create_all(connection)
            if not connection.execute(select(self.tables.state.c.id)).first():
                connection.execute(insert(self.tables.state).values(id=1, looked_at=0))
            if self.tables.steps not in inspect_database(connection).get_view_names():
                connection.execute(text(self.tables.view))

    def check(self) -> None:
        """Look whether the tables are there.

        Raises:
            ConfigurationError: they are not.
        """
        with self._connection() as connection:
            if not inspect_database(connection).has_table(self.tables.runs.name):
                raise ConfigurationError(
                    f"the database of durable_archive has no tables {self.tables.prefix}_*: make them with "
                    "'celery -A <app> durable migrate'"
                )

    # -- keeping ---------------------------------------------------------------------------------------------------

    def may_look(self, interval: float) -> bool:
        """Tell whether nobody has looked for runs to move within ``interval`` seconds; then this is a look."""
        state, now = self.tables.state, now_ms()
        condition = state.c.looked_at <= now - round(interval * 1000)
        with self._connection() as connection:
            return bool(connection.execute(update(state).where(condition).values(looked_at=now)).rowcount)

    def known(self, keys: Iterable[Key]) -> set[Key]:
        """Return those of some runs that are here."""
        wanted, runs = list(keys), self.tables.runs.c
        if not wanted:
            return set()
        columns = (runs.workflow_id, runs.created_at, runs.run)
        with self._connection() as connection:
            return {tuple(row) for row in connection.execute(select(*columns).where(tuple_(*columns).in_(wanted)))}

    def keep(self, record: RunRecord, run: int, version: int, history: Sequence[Recorded]) -> bool:
        """Put a run here, with its history; return whether it is new. It is one transaction."""
        key = {"workflow_id": record.workflow_id, "created_at": record.created_at, "run": run}
        is_last = run == record.run
        row = {
            **key,
            "name": record.name,
            "version": version,
            "status": str(record.status) if is_last else CONTINUED,
            "closed_at": (record.closed_at if is_last else None) or history[-1].at,
            "parent": record.parent,
            "length": len(history),
            "record": json.dumps(asdict(record), default=str),
            "archived_at": now_ms(),
        }
        events = [{**key, **_event_row(item)} for item in history]
        try:
            with self._connection() as connection:
                connection.execute(insert(self.tables.runs).values(row))
                for start in range(0, len(events), _ROWS):
                    connection.execute(insert(self.tables.events), events[start : start + _ROWS])
        except IntegrityError:
            # Somebody else was faster.
            return False
        return True

    # -- reading ---------------------------------------------------------------------------------------------------

    def get(self, workflow_id: str) -> RunRecord | None:
        """Return the record of the newest workflow with this id."""
        runs = self.tables.runs.c
        newest = select(runs.record).where(runs.workflow_id == workflow_id, runs.status != CONTINUED)
        with self._connection() as connection:
            found = connection.execute(newest.order_by(runs.created_at.desc()).limit(1)).scalar_one_or_none()
        return None if found is None else _record(found)

    def history(self, workflow_id: str, *, run: int | None = None, after: int = 0, limit: int = 1000) -> list[Recorded]:
        """Return events of the newest workflow with this id: of its last run, or the one with this number."""
        runs, events = self.tables.runs.c, self.tables.events.c
        which = select(runs.created_at, runs.run).where(runs.workflow_id == workflow_id)
        if run is not None:
            which = which.where(runs.run == run)
        with self._connection() as connection:
            key = connection.execute(which.order_by(runs.created_at.desc(), runs.run.desc()).limit(1)).first()
            if key is None:
                return []
            wanted = and_(
                events.workflow_id == workflow_id,
                events.created_at == key.created_at,
                events.run == key.run,
                events.seq > after,
            )
            columns = select(events.seq, events.at, events.header, events.payload)
            rows = connection.execute(columns.where(wanted).order_by(events.seq).limit(limit)).all()
        return [recorded(*row) for row in rows]

    def runs(
        self, *, before: int, status: RunStatus | None, name: str | None, cursor: str | None, limit: int
    ) -> RunPage:
        """Return workflows that ended before a moment (ms since 1970), the newest first."""
        runs = self.tables.runs.c
        query = select(runs.record, runs.created_at, runs.workflow_id)
        query = query.where(runs.status != CONTINUED, runs.closed_at <= before)
        if status is not None:
            query = query.where(runs.status == str(status))
        if name is not None:
            query = query.where(runs.name == name)
        if (place := _place(cursor)) is not None:
            at, workflow_id = place
            older = and_(runs.created_at == at, runs.workflow_id < workflow_id)
            query = query.where(or_(runs.created_at < at, older))
        query = query.order_by(runs.created_at.desc(), runs.workflow_id.desc()).limit(limit)
        with self._connection() as connection:
            rows = connection.execute(query).all()
        last = f"{CURSOR}{rows[-1].created_at}:{rows[-1].workflow_id}" if len(rows) == limit else None
        return RunPage(runs=tuple(_record(row.record) for row in rows), cursor=last)

    def count(self) -> int:
        """Return how many runs are here."""
        with self._connection() as connection:
            return connection.execute(select(func.count()).select_from(self.tables.runs)).scalar_one()

    @contextmanager
    def _connection(self) -> Generator[Connection]:
        try:
            with self.engine.begin() as connection:
                yield connection
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            raise StoreUnavailableError(f"the archive at {self.engine.url!r}: {error}") from error


def _event_row(item: Recorded) -> dict[str, Any]:
    header, _, payload = encode(item.event).partition("\n")
    event: Event = item.event
    return {
        "seq": item.seq,
        "at": item.at,
        "kind": type(event).__name__,
        "number": getattr(event, "number", None),
        "task": getattr(event, "task", None),
        "attempt": getattr(event, "attempt", None),
        "header": header,
        "payload": None if event.payload is None else payload,
    }


def _record(text_: str) -> RunRecord:
    form: Any = json.loads(text_)
    form |= {"status": RunStatus(form["status"]), "steps": ()}
    return RunRecord(**form)


def _place(cursor: str | None) -> tuple[int, str] | None:
    """Return the place that a cursor of an archive names; None is its beginning.

    Raises:
        InvalidRequestError: it is no such cursor.
    """
    text_ = (cursor or CURSOR).removeprefix(CURSOR)
    if not text_:
        return None
    at, _, workflow_id = text_.partition(":")
    if not at.isdecimal():
        raise InvalidRequestError(f"{cursor!r} is no cursor of a list of runs")
    return int(at), workflow_id
