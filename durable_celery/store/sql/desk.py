"""One transaction of the store: the rows that it has locked and read, what it changes, and how that is written.

A verb locks a run, decides in Python what follows (:mod:`.rules`), and writes once, at its end. On PostgreSQL that
write is one statement whatever it consists of; elsewhere it is one for each table.

Two things make the reading right. A statement that had to wait for a row lock sees that row as it is now, and all
others as they were when it began: so only rows that the lock covers are believed. And an owner who was read as alive is
believed, because an owner's end only moves away; one who seems dead is asked again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from durable_celery.events import Event, Recorded, decode
from durable_celery.store.sql.tables import CommandRow, EventRow, Place, RunRow, process_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Connection

    from durable_celery.store.protocol import StepKey, Timing
    from durable_celery.store.sql.statements import Statements
    from durable_celery.store.sql.writing import Writer

__all__ = ["PAGE", "Desk", "ExpiredError", "Page"]

#: Most events in one answer.
PAGE = 200

#: workflow id, run, after which seq, up to which seq
Page = tuple[str, int, int, int]


class ExpiredError(Exception):
    """Control flow: a process that takes something in hand, or is renewed, has expired and must lose what it held."""

    def __init__(self, process: str) -> None:
        super().__init__(process)
        self.process = process


class Desk:
    """The rows that one transaction has before it. Not for more than one verb."""

    def __init__(self, connection: Connection, statements: Statements, writer: Writer, timing: Timing) -> None:
        self.connection, self.statements, self.writer, self.timing = connection, statements, writer, timing
        #: The database's clock when the rows were locked.
        self.now = 0
        self.runs: dict[str, RunRow] = {}
        self.commands: dict[Place, CommandRow] = {}
        #: The events that steps were scheduled by.
        self.scheduled: dict[Place, Event] = {}
        #: process -> when it expires, or None where it is not known
        self._ends: dict[str, int | None] = {}
        #: Those that were asked for after the locks were taken.
        self._asked: set[str] = set()
        self._created: set[str] = set()
        self._changed: set[str] = set()
        self._deleted: set[str] = set()
        self._changed_commands: set[Place] = set()
        self._deleted_commands: set[Place] = set()
        self._deleted_logs: set[tuple[str, int]] = set()
        self._events: list[EventRow] = []
        self._keys: list[dict[str, str]] = []
        self._joined: list[dict[str, Any]] = []
        self._forgotten: list[dict[str, str]] = []

    # -- reading -----------------------------------------------------------------------------------------------------

    def read(self, ids: Sequence[str]) -> None:
        """Read the clock, and runs without a lock."""
        for row in self.ask(self.statements.read_starts, ids=ids):
            self.now = row.now
            if row.run_workflow_id is not None:
                self.note_run(row)

    def lock(self, workflow_id: str, *, mine: str = "", key: str = "") -> tuple[RunRow | None, bool]:
        """Lock a run; tell whether an input with a key was accepted (False is to be proved by the write)."""
        values = {"workflow_id": workflow_id, "mine": process_of(mine), "key": key}
        row = self.ask(self.statements.lock_run, **values).first()
        self._note_mine(row, mine)
        return None if row is None else self.note_run(row), bool(row and row.accepted)

    def lock_command(self, key: StepKey, *, mine: str = "") -> tuple[RunRow | None, CommandRow | None]:
        """Lock a run with a command of it, or of an earlier one."""
        values = {"workflow_id": key.workflow_id, "execution": key.run, "number": key.number}
        row = self.ask(self.statements.lock_command, **values, mine=process_of(mine)).first()
        if row is None:
            return None, None
        self._note_mine(row, mine)
        run, place = self.note_run(row), (key.run, key.number)
        if row.command_workflow_id is not None:
            return run, self.note_command(row)
        # It may have come while we waited for the lock.
        has_come = (row.was_run, row.was_number) < place <= (run.run, run.last_number)
        return run, self.command((key.workflow_id, *place)) if has_come else None

    def command(self, place: Place) -> CommandRow | None:
        """Return a command of a locked run."""
        if place not in self.commands:
            values = dict(zip(("workflow_id", "execution", "number"), place, strict=True))
            row = self.ask(self.statements.read_command, **values).first()
            return None if row is None else self.note_command(row)
        return self.commands[place]

    def read_commands(self, workflow_id: str) -> None:
        """Read all commands of a locked run, without those that earlier runs have left."""
        for row in self.ask(self.statements.read_commands, workflow_id=workflow_id):
            self.note_command(row)

    def read_carried(self, run: RunRow, *, kept: Sequence[int], after: int, last: int) -> dict[int, str]:
        """Read all commands of a locked run; return texts of some of its events, and of those after a seq, by seq."""
        place = {"workflow_id": run.workflow_id, "page_run": run.run}
        texts: dict[int, str] = {}
        for row in self.ask(self.statements.read_carried, **place, kept=kept, after=after, last=last):
            if row.input_seq is None:
                self.note_command(row)
            else:
                texts[row.input_seq] = row.header if row.payload is None else f"{row.header}\n{row.payload}"
        return texts

    def events(self, page: Page, most: int = PAGE) -> tuple[Recorded, ...]:
        """Read events."""
        return _recorded(self.ask(self.statements.read_events, **_page_values(page, most)))

    def is_alive(self, process: str) -> bool:
        """Tell whether a process is known and has not expired."""
        self._ends.setdefault(process, None)
        if self._seems_dead(process) and process not in self._asked:
            # It may have come, or been renewed, while we waited for a lock; and so may others that we ask for later.
            doubtful = sorted(name for name in self._ends if self._seems_dead(name))
            self._ends |= dict.fromkeys(doubtful)
            for row in self.ask(self.statements.read_owners, processes=doubtful):
                self._ends[row.process] = row.ends_at
            self._asked.update(doubtful)
        return not self._seems_dead(process)

    def _seems_dead(self, process: str) -> bool:
        ends = self._ends[process]
        return ends is None or ends <= self.now

    def ask(self, statement: Any, **values: Any) -> Any:
        """Execute a statement."""
        return self.connection.execute(statement, values)

    def note_run(self, row: Any) -> RunRow:
        """Keep a run that was read, with the clock and the end of its owner."""
        self.now = max(self.now, row.now)
        run = self.runs.setdefault(row.run_workflow_id, RunRow.read(row, "run_"))
        if run.process is not None and run.process not in self._ends:
            self._ends[run.process] = row.owner_ends
        return run

    def note_command(self, row: Any) -> CommandRow:
        """Keep a command that was read, with the event that scheduled it."""
        place = (row.command_workflow_id, row.command_run, row.command_number)
        if place not in self.commands:
            command = self.commands[place] = CommandRow.read(row, "command_")
            if command.process is not None:
                self._ends.setdefault(command.process, None)
            if row.command_scheduled is not None:
                self.scheduled[place] = decode(row.command_seq, f"0 {row.command_scheduled}").event
            elif row.header is not None:
                self.scheduled[place] = recorded(row.command_seq, row.at, row.header, row.payload).event
        return self.commands[place]

    def _note_mine(self, row: Any, mine: str) -> None:
        if row is not None and mine:
            self._ends[process_of(mine)] = row.mine_ends

    # -- changing ----------------------------------------------------------------------------------------------------

    def create(self, run: RunRow) -> None:
        """Add a run."""
        self.runs[run.workflow_id] = run
        self._created.add(run.workflow_id)

    def touch(self, run: RunRow) -> None:
        """Note that a run has changed."""
        self._changed.add(run.workflow_id)

    def put(self, command: CommandRow) -> None:
        """Add a command, or note that it has changed."""
        self.commands[command.place] = command
        self._changed_commands.add(command.place)
        self._deleted_commands.discard(command.place)

    def drop(self, command: CommandRow) -> None:
        """Take a command away."""
        self.commands.pop(command.place, None)
        self._changed_commands.discard(command.place)
        self._deleted_commands.add(command.place)

    def drop_log(self, workflow_id: str, run: int) -> None:
        """Take the log of an earlier run away."""
        self._deleted_logs.add((workflow_id, run))

    def delete(self, run: RunRow) -> None:
        """Delete a run with all that belongs to it; what else was to be written of it is not."""
        self._deleted.add(run.workflow_id)
        self._changed.discard(run.workflow_id)
        self._changed_commands = {place for place in self._changed_commands if place[0] != run.workflow_id}
        self._deleted_commands = {place for place in self._deleted_commands if place[0] != run.workflow_id}
        self._deleted_logs = {log for log in self._deleted_logs if log[0] != run.workflow_id}
        self._events = [event for event in self._events if event.workflow_id != run.workflow_id]
        self.commands = {place: command for place, command in self.commands.items() if place[0] != run.workflow_id}

    def is_deleted(self, run: RunRow) -> bool:
        """Tell whether the run is being deleted."""
        return run.workflow_id in self._deleted

    def append(self, run: RunRow, text: str, at: int | None = None) -> Recorded:
        """Add an event, as :func:`durable_celery.events.encode` has it, to the end of a run's history; now, or then."""
        header, separator, payload = text.partition("\n")
        run.length += 1
        self.touch(run)
        row = EventRow(
            workflow_id=run.workflow_id,
            run=run.run,
            seq=run.length,
            at=self.now if at is None else at,
            header=header,
            payload=payload if separator else None,
        )
        self._events.append(row)
        return recorded(row.seq, row.at, row.header, row.payload)

    def note_key(self, workflow_id: str, key: str) -> None:
        """Note the key of an accepted input."""
        self._keys.append({"workflow_id": workflow_id, "input_key": key})

    def join(self, process: str) -> None:
        """Make a process known before it takes something in hand.

        Raises:
            ExpiredError: it was known and has expired.
        """
        if self.is_alive(process):
            return
        if self._ends[process] is not None:
            raise ExpiredError(process)
        ends_at = self.now + round(self.timing.owner_ttl * 1000)
        self._ends[process] = ends_at
        self._joined.append({"process": process, "ends_at": ends_at})

    def forget(self, process: str) -> None:
        """Make a process unknown; the database refuses it where somebody has given it something meanwhile."""
        self._forgotten.append({"process": process})

    def appended(self, run: RunRow, after: int) -> tuple[Recorded, ...]:
        """Return what this transaction has added to a history after a seq."""
        return tuple(
            recorded(row.seq, row.at, row.header, row.payload)
            for row in self._events
            if (row.workflow_id, row.run) == (run.workflow_id, run.run) and row.seq > after
        )

    # -- writing -----------------------------------------------------------------------------------------------------

    def write(self, page: Page | None = None) -> tuple[Recorded, ...]:
        """Write all that has changed; return a page of events that were there before."""
        pieces: dict[str, Sequence[dict[str, Any]]] = {
            "joined": self._joined,
            "created": [self.runs[name].values() for name in sorted(self._created)],
            "changed": [self.runs[name].values() for name in sorted(self._changed - self._created)],
            "events": [row.values() for row in self._events],
            "commands": [self.commands[place].values() for place in sorted(self._changed_commands)],
            "dropped": [
                {"workflow_id": name, "run": run, "number": number}
                for name, run, number in sorted(self._deleted_commands)
            ],
            "logs": [{"workflow_id": name, "run": run} for name, run in sorted(self._deleted_logs)],
            "keys": self._keys,
            "deleted": [{"workflow_id": name} for name in sorted(self._deleted)],
            "forgotten": self._forgotten,
        }
        given = {name: rows for name, rows in pieces.items() if rows}
        found = self.writer.write(self.connection, given, None if page is None else _page_values(page))
        return _recorded(found)


def recorded(seq: int, at: int, header: str, payload: str | None) -> Recorded:
    """Return an event from its columns."""
    return decode(seq, f"{at} {header}" if payload is None else f"{at} {header}\n{payload}")


def _recorded(rows: Iterable[Any]) -> tuple[Recorded, ...]:
    return tuple(recorded(row.seq, row.at, row.header, row.payload) for row in rows)


def _page_values(page: Page, most: int = PAGE) -> dict[str, Any]:
    workflow_id, run, after, last = page
    return {"page_id": workflow_id, "page_run": run, "page_after": after, "page_last": min(last, after + most)}
