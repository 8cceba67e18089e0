"""The tables of one namespace, and the rows that a transaction holds in its hands.

=============  ==========================================================================================
``_runs``      one row for each workflow id, of its newest run; whoever changes anything of it locks that row first
``_events``    the histories: one row for each event, never changed
``_commands``  what is open: steps without an outcome, timers, marks of steps that the workflow cancelled, and, under
               the number 0, of the logs of earlier runs until they go
``_inputs``    keys of the inputs that were accepted
``_owners``    the processes that are known, and when each of them expires
``_schema``    the number of this form of the tables
=============  ==========================================================================================

There is no table for the agenda: whatever falls due has its time in its own row (``due_at`` of a run, ``next_at`` of
a command, ``ends_at`` of an owner). Nor is there one for what a process holds: the row of a lease or a claim names its
process, under a foreign key, so the database itself refuses that something is held by a process that is not known, and
that a process is forgotten which still holds something.

Instants are milliseconds since 1970 on the database's clock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any, Self

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    types,
)
from sqlalchemy.dialects.mysql import VARBINARY

from durable_celery.columns import INNODB, LONG
from durable_celery.errors import ConfigurationError
from durable_celery.store.limits import KINDS

__all__ = ["NAMESPACE", "CommandRow", "EventRow", "Place", "RunRow", "Tables", "process_of"]

#: workflow id, run and number of a command
Place = tuple[str, int, int]

#: What may be the first part of a table's name on every database.
NAMESPACE = re.compile(r"[a-z][a-z0-9_]{0,39}")
#: MySQL's own default would take "A" for "a", and a text for one with a space behind it.
_MYSQL: dict[str, Any] = INNODB | {"mysql_collate": "utf8mb4_bin"}


class Name(types.TypeDecorator[str]):
    """A text that rows are found by: compared and ordered byte by byte, on every database."""

    impl = String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length

    def load_dialect_impl(self, dialect: Dialect) -> types.TypeEngine[Any]:
        """Return bytes for MySQL, and a text under the collation of bytes for PostgreSQL. SQLite compares bytes."""
        length = self.length
        if dialect.name in {"mysql", "mariadb"}:
            return dialect.type_descriptor(VARBINARY(length))
        if dialect.name == "postgresql":
            return dialect.type_descriptor(Text(collation="C"))
        return dialect.type_descriptor(String(length))

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        """Return what the driver is given."""
        return value.encode() if value is not None and dialect.name in {"mysql", "mariadb"} else value

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Return the text that the driver gave."""
        return value.decode() if isinstance(value, bytes) else value


class Tables:
    """The tables under one prefix.

    Raises:
        ConfigurationError: the namespace cannot be part of a table's name on every database.
    """

    def __init__(self, namespace: str, metadata: MetaData | None = None) -> None:
        if not NAMESPACE.fullmatch(namespace):
            raise ConfigurationError(
                f"namespace {namespace!r} cannot name tables: in an SQL store it takes up to 40 lower-case letters, "
                "digits and underscores, a letter first"
            )
        self.namespace = namespace
        self.metadata = metadata or MetaData()
        self.owners = Table(
            f"{namespace}_owners",
            self.metadata,
            Column("process", Name(512), primary_key=True),
            Column("ends_at", BigInteger, nullable=False),
            **_MYSQL,
        )
        self.schema = Table(
            f"{namespace}_schema",
            self.metadata,
            Column("version", Integer, primary_key=True, autoincrement=False),
            **_MYSQL,
        )
        self.runs = self._runs(namespace)
        self.commands = self._commands(namespace)
        self.events = Table(
            f"{namespace}_events",
            self.metadata,
            Column("workflow_id", Name(255), primary_key=True),
            Column("run", Integer, primary_key=True, autoincrement=False),
            Column("seq", Integer, primary_key=True, autoincrement=False),
            Column("at", BigInteger, nullable=False),
            Column("header", LONG, nullable=False),
            Column("payload", LONG),
            **_MYSQL,
        )
        self.inputs = Table(
            f"{namespace}_inputs",
            self.metadata,
            Column("workflow_id", Name(255), primary_key=True),
            Column("input_key", Name(1100), primary_key=True),
            **_MYSQL,
        )

    def _runs(self, namespace: str) -> Table:
        table = Table(
            f"{namespace}_runs",
            self.metadata,
            Column("workflow_id", Name(255), primary_key=True),
            Column("run", Integer, nullable=False),
            Column("name", LONG, nullable=False),
            Column("digest", LONG, nullable=False),
            Column("parent", LONG),
            Column("envelope", LONG, nullable=False),
            Column("created_at", BigInteger, nullable=False),
            Column("status", String(16), nullable=False),
            Column("closed_at", BigInteger),
            Column("length", Integer, nullable=False),
            Column("read_to", Integer, nullable=False),
            Column("token", BigInteger, nullable=False),
            Column("owner", LONG),
            Column("process", Name(512), ForeignKey(self.owners.c.process)),
            Column("waiting", LONG, nullable=False),
            Column("reason", LONG, nullable=False),
            Column("failures", Integer, nullable=False),
            Column("delivered", Boolean, nullable=False),
            Column("cancel_requested", Boolean, nullable=False),
            Column("gate", String(8), nullable=False),
            Column("last_number", Integer, nullable=False),
            Column("sends", Integer, nullable=False),
            Column("due_at", BigInteger),
            Column("begun", BigInteger, nullable=False),
            Column("past_until", BigInteger, nullable=False),
            **_MYSQL,
        )
        for columns in (("due_at",), ("process",)):
            _index(table, *columns, partial=True)
        _index(table, "created_at", "workflow_id")
        _index(table, "status", "created_at", "workflow_id")
        return table

    def _commands(self, namespace: str) -> Table:
        table = Table(
            f"{namespace}_commands",
            self.metadata,
            Column("workflow_id", Name(255), primary_key=True),
            Column("run", Integer, primary_key=True, autoincrement=False),
            Column("number", Integer, primary_key=True, autoincrement=False),
            Column("kind", String(8), nullable=False),
            Column("state", String(16), nullable=False),
            Column("seq", Integer, nullable=False),
            Column("attempt", Integer, nullable=False),
            Column("lost", Integer, nullable=False),
            Column("owner", LONG),
            Column("process", Name(512), ForeignKey(self.owners.c.process)),
            Column("retries", Integer, nullable=False),
            Column("override", LONG),
            Column("error", LONG),
            Column("progress", LONG),
            Column("scheduled", LONG),
            Column("not_before", BigInteger, nullable=False),
            Column("sends", Integer, nullable=False),
            Column("due_at", BigInteger),
            *[Column(f"{kind}_at", BigInteger) for kind in KINDS],
            Column("next_at", BigInteger),
            **_MYSQL,
        )
        for column in ("next_at", "process"):
            _index(table, column, partial=True)
        return table


def _index(table: Table, *columns: str, partial: bool = False) -> None:
    """Add an index; a partial one leaves out the many rows that have nothing in the column."""
    where = table.c[columns[0]].isnot(None) if partial else None
    name = f"{table.name}_{columns[0]}"
    Index(name, *[table.c[column] for column in columns], postgresql_where=where, sqlite_where=where)


def process_of(owner: str) -> str:
    """Return the process part of an owner text ``<process>#<call>``."""
    return owner.partition("#")[0]


class Row:
    """A row of a table, as a transaction sees and changes it."""

    __slots__ = ()

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the columns, in the order of the fields."""
        return tuple(item.name for item in fields(cls))  # type: ignore[arg-type]  # every subclass is a dataclass

    def values(self) -> dict[str, Any]:
        """Return what is written."""
        return {name: getattr(self, name) for name in self.names()}

    @classmethod
    def read(cls, row: Any, prefix: str) -> Self:
        """Return the row from a result whose columns have a prefix."""
        return cls(**{name: getattr(row, prefix + name) for name in cls.names()})


@dataclass(slots=True, kw_only=True)
class RunRow(Row):
    """A run."""

    workflow_id: str
    #: Which execution of the workflow id this is; its events stand under this number.
    run: int = 1
    name: str
    digest: str
    parent: str | None = None
    envelope: str
    created_at: int
    status: str
    closed_at: int | None = None
    length: int = 0
    #: The seq up to which turns have read.
    read_to: int = 0
    token: int = 0
    owner: str | None = None
    #: The process of ``owner``.
    process: str | None = None
    waiting: str = ""
    reason: str = ""
    failures: int = 0
    delivered: bool = False
    cancel_requested: bool = False
    #: "" where the code may begin at once, else "shut", later "open".
    gate: str = ""
    #: The number of the newest command.
    last_number: int = 0
    #: How often its message was sent since something last happened to it.
    sends: int = 1
    #: When its message is sent (again): the run is marked woken. Of a delivered run: when it is deleted.
    due_at: int | None = None
    #: Token of the turn that ended the run before this one; 0 for the first.
    begun: int = 0
    #: When the last log of an earlier run goes.
    past_until: int = 0

    def values(self) -> dict[str, Any]:
        """Return what is written."""
        self.process = None if self.owner is None else process_of(self.owner)
        return Row.values(self)


@dataclass(slots=True, kw_only=True)
class CommandRow(Row):
    """An open step, a timer, the mark of a cancelled step, or that of the log of an earlier run."""

    workflow_id: str
    run: int
    number: int
    #: "task", "workflow", "timer" or "log".
    kind: str
    #: A :class:`StepState`, "timer", "cancelled" or "log".
    state: str
    #: Seq of its ``StepScheduled``; 0 for a timer; of a log, its length.
    seq: int = 0
    attempt: int = 0
    lost: int = 0
    owner: str | None = None
    #: The process of ``owner``.
    process: str | None = None
    retries: int = 0
    override: str | None = None
    error: str | None = None
    #: What the last heartbeat saved.
    progress: str | None = None
    #: A copy of its ``StepScheduled``, where the step may outlive the log.
    scheduled: str | None = None
    #: When the next attempt may begin; 0 is at once.
    not_before: int = 0
    sends: int = 1
    #: When the timer fires, the step's message is sent (again), or the log goes.
    due_at: int | None = None
    #: When the limits of the step's time pass, those that run now.
    whole_at: int | None = None
    start_at: int | None = None
    attempt_at: int | None = None
    heartbeat_at: int | None = None
    #: When the first of all these is.
    next_at: int | None = None

    @property
    def place(self) -> Place:
        """Where it stands in the table."""
        return self.workflow_id, self.run, self.number

    @property
    def ends(self) -> dict[str, int]:
        """When the limits pass that run now."""
        ends = {kind: getattr(self, f"{kind}_at") for kind in KINDS}
        return {kind: at for kind, at in ends.items() if at is not None}

    @property
    def alarm_at(self) -> int | None:
        """When the nearest of them passes."""
        return min(self.ends.values(), default=None)

    def end(self, kind: str, at: int | None) -> None:
        """Let a limit pass at an instant, or not at all."""
        setattr(self, f"{kind}_at", at)

    def values(self) -> dict[str, Any]:
        """Return what is written; what follows from other columns is derived here and nowhere else."""
        self.process = None if self.owner is None else process_of(self.owner)
        self.next_at = min((at for at in (self.due_at, self.alarm_at) if at is not None), default=None)
        # Two bases with slots: super() without arguments does not find its class.
        return Row.values(self)


@dataclass(slots=True, kw_only=True)
class EventRow(Row):
    """One event of a history."""

    workflow_id: str
    run: int
    seq: int
    at: int
    header: str
    payload: str | None
