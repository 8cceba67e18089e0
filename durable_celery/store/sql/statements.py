"""What the store asks its database: the same on all databases, but for their clocks and for what a lock covers.

Statements are built once for each store, and SQLAlchemy compiles each once. How changes are written stands in
:mod:`.writing`.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Integer,
    and_,
    bindparam,
    cast,
    exists,
    func,
    null,
    or_,
    select,
    true,
    union,
    union_all,
    update,
)

from durable_celery.store.protocol import StepState
from durable_celery.store.sql.dialects import clock
from durable_celery.store.sql.tables import CommandRow, RunRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import CTE, ColumnElement, Select, Table

    #: A select of any columns.
    Query = Select[*tuple[Any, ...]]

    from durable_celery.store.sql.tables import Tables

__all__ = ["Statements"]


class Statements:
    """The SQL over one set of tables, for one kind of database.

    Args:
        tables: The tables.
        dialect: ``postgresql``, ``mysql``, ``mariadb`` or ``sqlite``.
        now: The clock, where it is not the database's (simulations).
    """

    def __init__(self, tables: Tables, dialect: str, now: ColumnElement[int] | None = None) -> None:
        self.tables, self.dialect = tables, dialect
        self.now = clock(dialect) if now is None else now
        self.began = clock(dialect, moves=False) if now is None else now

    # -- reading and locking -----------------------------------------------------------------------------------------

    @cached_property
    def read_run(self) -> Query:
        """A run with the clock and the end of its owner. Takes workflow_id."""
        return self._run.where(self.tables.runs.c.workflow_id == bindparam("workflow_id"))

    @cached_property
    def read_starts(self) -> Query:
        """The clock, and those of some runs that there are, without a lock. Takes ids."""
        runs = self.tables.runs
        clock_row = select(self.now.label("now")).subquery()
        columns = [runs.c[name].label(f"run_{name}") for name in RunRow.names()]
        joined = clock_row.outerjoin(runs, runs.c.workflow_id.in_(bindparam("ids", expanding=True)))
        return select(*columns, clock_row.c.now, null().label("owner_ends")).select_from(joined)

    @cached_property
    def lock_run(self) -> Query:
        """The same under its lock, with the end of ``mine`` and whether the input ``key`` was accepted."""
        found = self.read_run.add_columns(self._ends_of(bindparam("mine"), "mine_ends"), self._accepted)
        return found.with_for_update(of=self._of(self.tables.runs))

    @cached_property
    def read_key(self) -> Query:
        """Whether an input was accepted. Takes workflow_id and key."""
        return select(self._accepted)

    @cached_property
    def lock_command(self) -> Query:
        """A run under lock, and a command of it, if there is one, with the event that scheduled it.

        ``was_run`` and ``was_number`` are those of the newest command when the statement began: of later ones it has
        seen nothing. Takes execution and number as well.
        """
        runs = self.tables.runs
        before = runs.alias("before")
        was = [
            select(before.c[name]).where(before.c.workflow_id == runs.c.workflow_id).scalar_subquery().label(label)
            for name, label in (("run", "was_run"), ("last_number", "was_number"))
        ]
        run = self.read_run.add_columns(self._ends_of(bindparam("mine"), "mine_ends"), *was)
        if self.dialect != "postgresql":
            return self._with_commands(run, self._is_named, isouter=True).with_for_update()
        # PostgreSQL locks nothing on the optional side of a join, but takes one such part after the other.
        locked = run.with_for_update().cte("locked")
        return self._with_held(locked, self._is_named)

    @cached_property
    def read_commands(self) -> Query:
        """All commands of a workflow's present run, with the events that scheduled them."""
        return self._with_commands(self.read_run, self._is_newest)

    @cached_property
    def read_command(self) -> Query:
        """A command of any run. Takes workflow_id, execution and number."""
        return self._with_commands(self.read_run, self._is_named)

    @cached_property
    def read_all(self) -> Query:
        """A run with all its commands, or with none: the record as people see it."""
        found = self._with_commands(self.read_run, self._is_newest, isouter=True)
        return found.order_by(self.tables.commands.c.number)

    @cached_property
    def read_events(self) -> Query:
        """A page of a history."""
        events = self.tables.events
        return (
            select(events.c.seq, events.c.at, events.c.header, events.c.payload)
            .where(
                events.c.workflow_id == bindparam("page_id"),
                events.c.run == bindparam("page_run"),
                events.c.seq > bindparam("page_after"),
                events.c.seq <= bindparam("page_last"),
            )
            .order_by(events.c.seq)
        )

    @cached_property
    def read_carried(self) -> Any:
        """What a run that continues needs: its commands, as :attr:`read_commands`, and events of its history.

        The events, by their seqs or between two, come in rows that have nothing else but an ``input_seq``. Takes
        workflow_id, page_run, kept, after and last.
        """
        events = self.tables.events
        is_new = and_(events.c.seq > bindparam("after"), events.c.seq <= bindparam("last"))
        commands: Any = self.read_commands.add_columns(self._nothing(events.c.seq).label("input_seq"))
        own: dict[str, Any] = {name: events.c[name] for name in ("at", "header", "payload")}
        own["input_seq"] = events.c.seq
        columns = [own.get(item.name, self._nothing(item)).label(item.name) for item in commands.selected_columns]
        inputs = select(*columns).where(
            events.c.workflow_id == bindparam("workflow_id"),
            events.c.run == bindparam("page_run"),
            or_(events.c.seq.in_(bindparam("kept", expanding=True)), is_new),
        )
        return union_all(commands, inputs)

    def _nothing(self, like: Any) -> Any:
        """Return a NULL in the place of a column; PostgreSQL wants to know of which type."""
        return cast(null(), like.type) if self.dialect == "postgresql" else null()

    @cached_property
    def history(self) -> Query:
        """A page of a history. Takes workflow_id, execution (None is the present run), after and last."""
        runs, events = self.tables.runs, self.tables.events
        execution = func.coalesce(bindparam("execution", type_=Integer), runs.c.run)
        joined = runs.join(events, and_(events.c.workflow_id == runs.c.workflow_id, events.c.run == execution))
        return (
            select(events.c.seq, events.c.at, events.c.header, events.c.payload)
            .select_from(joined)
            .where(
                runs.c.workflow_id == bindparam("workflow_id"),
                events.c.seq > bindparam("after"),
                events.c.seq <= bindparam("last"),
            )
            .order_by(events.c.seq)
        )

    def runs(self, *, status: str | None, name: str | None, place: tuple[int, str] | None, limit: int) -> Query:
        """Return the newest runs after a place in the list."""
        runs = self.tables.runs
        found = self._run.order_by(runs.c.created_at.desc(), runs.c.workflow_id.desc()).limit(limit)
        if status is not None:
            found = found.where(runs.c.status == status)
        if name is not None:
            found = found.where(runs.c.name == name)
        if place is not None:
            created_at, workflow_id = place
            is_same = and_(runs.c.created_at == created_at, runs.c.workflow_id < workflow_id)
            found = found.where(runs.c.created_at <= created_at, or_(runs.c.created_at < created_at, is_same))
        return found

    # -- what falls due ----------------------------------------------------------------------------------------------

    @cached_property
    def look(self) -> Query:
        """The clock, when the first of each kind falls due and the first that is not yet, a dead process, how many."""
        runs, commands, owners = self.tables.runs, self.tables.commands, self.tables.owners
        columns = {"runs": runs.c.due_at, "commands": commands.c.next_at, "owners": owners.c.ends_at}
        firsts = [select(func.min(column)).scalar_subquery().label(name) for name, column in columns.items()]
        nexts = [
            select(func.min(column)).where(column > self.began).scalar_subquery().label(f"next_{name}")
            for name, column in columns.items()
        ]
        ends_at = owners.c.ends_at
        dead = select(owners.c.process).where(ends_at <= self.began).order_by(ends_at, owners.c.process).limit(1)
        known = select(func.count()).select_from(owners).scalar_subquery().label("processes")
        return select(self.began.label("now"), *firsts, *nexts, dead.scalar_subquery().label("dead"), known)

    @cached_property
    def lock_due_runs(self) -> Query:
        """The runs that are due and that nobody else works on. Takes until and limit."""
        runs = self.tables.runs
        found = self._run.where(runs.c.due_at <= bindparam("until")).order_by(runs.c.due_at).limit(_limit())
        return found.with_for_update(of=self._of(runs), skip_locked=True)

    @cached_property
    def lock_due_commands(self) -> Query:
        """The commands that are due, with their runs, and that nobody else works on. Takes until and limit."""
        runs, commands = self.tables.runs, self.tables.commands
        found = self._with_commands(self._run, commands.c.next_at <= bindparam("until"))
        found = found.order_by(commands.c.next_at).limit(_limit())
        return found.with_for_update(of=self._of(runs, commands), skip_locked=True)

    def published_runs(self, *, latest: bool) -> Query:
        """Lock the runs whose message was published and is to be sent again. Takes after, until and limit."""
        due_at = self.tables.runs.c.due_at
        is_published = and_(self.tables.runs.c.sends > 0, self.tables.runs.c.delivered.is_(False))
        found = self.lock_due_runs.where(is_published, due_at > bindparam("after"))
        return found.order_by(None).order_by(due_at.desc()) if latest else found

    def published_steps(self, *, latest: bool) -> Query:
        """Lock the steps whose message was published and is to be sent again, with their runs: after, until, limit."""
        commands, due_at = self.tables.commands, self.tables.commands.c.due_at
        is_published = and_(commands.c.sends > 0, commands.c.state.in_((StepState.PENDING, StepState.CANCELLING)))
        is_soon = and_(due_at > bindparam("after"), due_at <= bindparam("until"))
        found = self.lock_due_commands.where(is_published, is_soon)
        return found.order_by(None).order_by(due_at.desc()) if latest else found

    # -- owners ------------------------------------------------------------------------------------------------------

    def owners(self, hosts: Iterable[str]) -> Query:
        """The known processes of hosts, or all, with the clock: one row without a process where there is none."""
        owners = self.tables.owners
        clock_row = select(self.began.label("now")).subquery()
        theirs = [owners.c.process.startswith(f"{host}:", autoescape=True) for host in hosts]
        joined = clock_row.outerjoin(owners, or_(*theirs) if theirs else true())
        return select(clock_row.c.now, owners.c.process, owners.c.ends_at).select_from(joined)

    @cached_property
    def read_owners(self) -> Query:
        """When processes expire. Takes processes."""
        owners = self.tables.owners
        return select(owners.c.process, owners.c.ends_at).where(owners.c.process.in_(_processes()))

    @cached_property
    def lock_owner(self) -> Query:
        """When a process expires, under its lock: nobody puts anything into its hands, nor renews it."""
        owners = self.tables.owners
        found = select(owners.c.ends_at, self.now.label("now")).where(owners.c.process == bindparam("process"))
        return found.with_for_update()

    @cached_property
    def lock_held(self) -> Any:
        """The runs of which a process holds anything, under lock, in the order of their ids."""
        runs, commands = self.tables.runs, self.tables.commands
        mine: Any = bindparam("process")
        held = union(
            select(runs.c.workflow_id).where(runs.c.process == mine),
            select(commands.c.workflow_id).where(commands.c.process == mine),
        )
        found = self._run.where(runs.c.workflow_id.in_(held))
        return found.order_by(runs.c.workflow_id).with_for_update(of=self._of(runs))

    @cached_property
    def held_commands(self) -> Query:
        """The steps that a process has claimed, with their runs."""
        return self._with_commands(self._run, self.tables.commands.c.process == bindparam("process"))

    @cached_property
    def lock_all_held(self) -> Any:
        """:attr:`lock_held`, :attr:`held_commands` under lock, and :attr:`lock_owner`, at once (PostgreSQL).

        Each part waits for the one before it. A row for each run and step; where there is none, one for the process.
        """
        owners = self.tables.owners
        is_mine = owners.c.process == bindparam("process")
        runs = self.lock_held.cte("locked")
        held = self._with_held(runs, self.tables.commands.c.process == bindparam("process")).cte("found")
        count = select(func.count()).select_from(held).scalar_subquery()
        owner = select(owners.c.ends_at.label("expires")).where(is_mine, count >= 0).with_for_update().cte("owner")
        return select(held, owner.c.expires, self.now.label("clock")).select_from(owner.outerjoin(held, true()))

    @cached_property
    def expire_owners(self) -> Any:
        """Let processes expire. Takes ends_at and processes."""
        owners = self.tables.owners
        gone = owners.c.process.in_(_processes())
        return update(owners).where(gone).values(ends_at=bindparam("ends"))

    # -- parts -------------------------------------------------------------------------------------------------------

    @cached_property
    def _run(self) -> Query:
        runs = self.tables.runs
        columns = [runs.c[name].label(f"run_{name}") for name in RunRow.names()]
        return select(*columns, self.now.label("now"), self._ends_of(runs.c.process, "owner_ends"))

    @property
    def _accepted(self) -> Any:
        inputs = self.tables.inputs
        mine = exists().where(inputs.c.workflow_id == bindparam("workflow_id"), inputs.c.input_key == bindparam("key"))
        return mine.label("accepted")

    @property
    def _is_named(self) -> Any:
        commands = self.tables.commands
        return and_(commands.c.run == bindparam("execution"), commands.c.number == bindparam("number"))

    @property
    def _is_newest(self) -> Any:
        return self.tables.commands.c.run == self.tables.runs.c.run

    def _with_commands(self, found: Query, which: Any, *, isouter: bool = False) -> Query:
        """Add commands, with the events that scheduled them, to a select of runs."""
        runs, commands, events = self.tables.runs, self.tables.commands, self.tables.events
        joined = runs.join(commands, and_(commands.c.workflow_id == runs.c.workflow_id, which), isouter=isouter)
        joined = joined.outerjoin(events, _schedules(events, commands.c.workflow_id, commands.c.run, commands.c.seq))
        columns = (*self._command_columns, events.c.at, events.c.header, events.c.payload)
        return found.add_columns(*columns).select_from(joined)

    def _with_held(self, locked: CTE, which: Any) -> Query:
        """Add commands, under lock, to runs that are locked already; each run at least once (PostgreSQL)."""
        commands, events = self.tables.commands, self.tables.events
        is_of = commands.c.workflow_id == locked.c.run_workflow_id
        held = select(*self._command_columns).select_from(commands.join(locked, and_(is_of, which)))
        steps = held.with_for_update(of=commands).cte("held")
        joined = locked.outerjoin(steps, steps.c.command_workflow_id == locked.c.run_workflow_id)
        named = (steps.c.command_workflow_id, steps.c.command_run, steps.c.command_seq)
        joined = joined.outerjoin(events, _schedules(events, *named))
        return select(locked, steps, events.c.at, events.c.header, events.c.payload).select_from(joined)

    @property
    def _command_columns(self) -> list[Any]:
        return [self.tables.commands.c[name].label(f"command_{name}") for name in CommandRow.names()]

    def _ends_of(self, process: Any, name: str) -> Any:
        owners = self.tables.owners.alias()
        return select(owners.c.ends_at).where(owners.c.process == process).scalar_subquery().label(name)

    def _of(self, *tables: Table) -> Sequence[Table] | None:
        # MariaDB locks what it reads; on the others the rows that are only looked at stay free.
        return tables if self.dialect == "postgresql" else None


def _schedules(events: Table, workflow_id: Any, run: Any, seq: Any) -> Any:
    return and_(events.c.workflow_id == workflow_id, events.c.run == run, events.c.seq == seq)


def _processes() -> Any:
    return bindparam("processes", expanding=True)


def _limit() -> Any:
    return bindparam("limit", type_=Integer)
