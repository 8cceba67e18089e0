"""How a transaction's changes are written: all at once, at its end.

PostgreSQL takes all of it in one statement: each kind of change is a data-modifying CTE over arrays, one for each
column. So a write is one round trip whatever a verb has to write, and the same few plans however many rows it has. The
parts of such a statement all see what was there before it, and none may meet a row that another one changes; a
:class:`~durable_celery.store.sql.desk.Desk` sees to that. The other databases take a statement for each kind of change.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import (
    ARRAY,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    delete,
    func,
    insert,
    literal_column,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql

from durable_celery.store.protocol import RunStatus
from durable_celery.store.sql.dialects import upsert
from durable_celery.store.sql.listening import channel_of
from durable_celery.store.sql.tables import CommandRow, EventRow, RunRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Column, Connection, Table

    from durable_celery.store.sql.statements import Query
    from durable_celery.store.sql.tables import Tables

    #: For each kind of change, by its name in :attr:`Writer.kinds`, the values of the rows, by column.
    Changes = Mapping[str, Sequence[Mapping[str, Any]]]

__all__ = ["ArrayWriter", "Writer"]

#: What never changes about a run.
_FIXED = {"workflow_id", "name", "digest", "parent", "envelope", "created_at"}


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of change. ``ignore`` is an insert that leaves alone what is there."""

    act: Literal["insert", "ignore", "upsert", "update", "delete"]
    table: Table
    #: The columns whose values a row has; of a delete, those by which rows are found.
    names: tuple[str, ...]


class Writer:
    """Writes a statement for each kind of change, with its rows one after the other.

    Args:
        tables: The tables.
        dialect: What kind of database it is.
        read_events: Asks for a page of events.
    """

    def __init__(self, tables: Tables, dialect: str, read_events: Query) -> None:
        self.tables, self.dialect, self.read_events = tables, dialect, read_events

    @cached_property
    def kinds(self) -> dict[str, tuple[Kind, ...]]:
        """What can be written, in the order in which it is: an owner before what it holds, a run's things before it."""
        tables = self.tables
        owner, run = ("process", "ends_at"), ("workflow_id",)
        of_a_run = (tables.events, tables.inputs, tables.commands, tables.runs)
        return {
            "joined": (Kind("ignore", tables.owners, owner),),
            "renewed": (Kind("upsert", tables.owners, owner),),
            "created": (Kind("insert", tables.runs, RunRow.names()),),
            "changed": (Kind("update", tables.runs, RunRow.names()),),
            "events": (Kind("insert", tables.events, EventRow.names()),),
            "commands": (Kind("upsert", tables.commands, CommandRow.names()),),
            "dropped": (Kind("delete", tables.commands, ("workflow_id", "run", "number")),),
            "logs": (Kind("delete", tables.events, ("workflow_id", "run")),),
            "keys": (Kind("insert", tables.inputs, ("workflow_id", "input_key")),),
            "deleted": tuple(Kind("delete", table, run) for table in of_a_run),
            "forgotten": (Kind("delete", tables.owners, ("process",)),),
        }

    def write(self, connection: Connection, changes: Changes, page: Mapping[str, Any] | None = None) -> Iterable[Any]:
        """Write changes, none of which is empty; return a page of events that were there before."""
        for name, rows in changes.items():
            values = [{_parameter(key): value for key, value in row.items()} for row in rows]
            for statement in self._statements[name]:
                connection.execute(statement, values)
        return () if page is None else connection.execute(self.read_events, page).all()

    @cached_property
    def _statements(self) -> dict[str, list[Any]]:
        return {name: [self._statement(kind) for kind in kinds] for name, kinds in self.kinds.items()}

    def _statement(self, kind: Kind) -> Any:
        table = kind.table
        # Named apart from the columns: SQLAlchemy keeps their own names to itself.
        values: dict[str, Any] = {
            name: bindparam(_parameter(name), type_=table.c[name].type) for name in kind.names if name in table.c
        }
        match kind.act:
            case "insert":
                return insert(table).values(values)
            case "ignore":
                return insert(table).values(values).prefix_with("OR IGNORE" if self.dialect == "sqlite" else "IGNORE")
            case "upsert":
                return upsert(self.dialect, table).values(values)
            case "update":
                changing = {name: value for name, value in values.items() if name not in _FIXED}
                return update(table).where(_is_row(table, values)).values(changing)
            case "delete":
                return delete(table).where(and_(*[table.c[name] == value for name, value in values.items()]))


class ArrayWriter(Writer):
    """Writes all in one statement (PostgreSQL)."""

    def write(self, connection: Connection, changes: Changes, page: Mapping[str, Any] | None = None) -> Iterable[Any]:
        """See :meth:`Writer.write`."""
        arrays = {f"{name}_{key}": [row[key] for row in rows] for name, rows in changes.items() for key in rows[0]}
        if not arrays and page is None:
            return ()
        shape = (tuple(changes), page is not None)
        if shape not in self._at_once:
            self._at_once[shape] = self._combined(*shape)
        found = connection.execute(self._at_once[shape], {**arrays, **(page or {})}).all()
        return () if page is None else found

    @cached_property
    def _at_once(self) -> dict[tuple[tuple[str, ...], bool], Query]:
        return {}

    def _combined(self, names: tuple[str, ...], has_page: bool) -> Query:  # noqa: FBT001 - a part of the key
        parts = [
            self._part(kind, name).cte(f"{name}_{number}")
            for name in names
            for number, kind in enumerate(self.kinds[name])
        ]
        return (self.read_events if has_page else select(literal_column("1"))).add_cte(*parts)

    @cached_property
    def _told(self) -> Any:
        """Notifies of a run that is closed, until its end is delivered."""
        runs = self.tables.runs.c
        is_closed = runs.status.in_([status.value for status in RunStatus if status.is_closed])
        told = func.pg_notify(channel_of(self.tables.namespace), runs.workflow_id)
        return case((and_(is_closed, ~runs.delivered), cast(told, Text)), else_=None).label("told")

    def _part(self, kind: Kind, prefix: str) -> Any:
        table = kind.table
        rows = _rows(prefix, [table.c[name] for name in kind.names])
        chosen = select(*rows.c)
        match kind.act:
            case "insert":
                return insert(table).from_select(list(kind.names), chosen)
            case "ignore":
                return postgresql.insert(table).from_select(list(kind.names), chosen).on_conflict_do_nothing()
            case "upsert":
                return upsert(self.dialect, table).from_select(list(kind.names), chosen)
            case "update":
                changing = {name: rows.c[name] for name in kind.names if name not in _FIXED}
                changed = update(table).where(_is_row(table, rows.c)).values(changing)
                # Who waits for the end is told by the statement that writes it.
                return changed.returning(self._told) if table is self.tables.runs else changed
            case "delete":
                return delete(table).where(tuple_(*[table.c[name] for name in kind.names]).in_(chosen))


def _is_row(table: Table, values: Any) -> Any:
    return and_(*[item == values[item.name] for item in table.primary_key])


def _parameter(name: str) -> str:
    return f"new_{name}"


def _rows(prefix: str, columns: Sequence[Column[Any]]) -> Any:
    """Return rows that are made of one array for each column."""
    arrays = [bindparam(f"{prefix}_{item.name}", type_=ARRAY(item.type)) for item in columns]
    named = [column(item.name, item.type) for item in columns]
    return func.unnest(*arrays).table_valued(*named, name=f"given_{prefix}").render_derived()
