"""The store on PostgreSQL, MariaDB/MySQL or SQLite: each verb is one transaction.

A verb locks the row of its run, decides, and writes once (:mod:`.desk`). The longer verbs stand in :mod:`.runs` and
:mod:`.steps`, what verbs share in :mod:`.rules`, what is due in :mod:`.sweep`, processes in :mod:`.owners`. The
database's clock is the only clock.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from durable_celery.errors import WorkflowConflictError
from durable_celery.events import (
    Event,
    Recorded,
    StepCompleted,
    StepFailed,
)
from durable_celery.store.protocol import (
    Appended,
    Claim,
    Committed,
    Finding,
    Finished,
    Finishing,
    Lease,
    Mail,
    NewRun,
    PendingStep,
    Refusal,
    Refused,
    RunPage,
    RunRecord,
    RunStatus,
    Started,
    StepKey,
    StepState,
    Sweep,
    Timing,
    Turn,
)
from durable_celery.store.sql import rules, runs, steps
from durable_celery.store.sql.checks import QUESTIONS, check_database
from durable_celery.store.sql.desk import Desk, recorded
from durable_celery.store.sql.dialects import url_of
from durable_celery.store.sql.owners import renew
from durable_celery.store.sql.rules import milliseconds, record_of, storable
from durable_celery.store.sql.server import Server
from durable_celery.store.sql.sweep import hasten, settle
from durable_celery.store.sql.tables import CommandRow, RunRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractContextManager

    from sqlalchemy import ColumnElement, Connection

    from durable_celery.store.hearing import Ear

__all__ = ["SqlStore"]


class SqlStore:
    """A :class:`~durable_celery.store.protocol.Store` on an SQL database; safe for threads and across forks.

    Args:
        url: A ``postgresql+psycopg://``, ``mysql+pymysql://`` or ``sqlite:///`` URL.
        namespace: First part of the names of all tables. Stores with different namespaces never meet.
        timing: The waits that go into the agenda.
        now: A clock in the place of the database's (simulations).

    No connection is made before the first verb.

    Raises:
        ConfigurationError: the URL or the namespace is not one for this store.
    """

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "durable",
        timing: Timing = Timing(),  # noqa: B008 - frozen
        now: ColumnElement[int] | None = None,
    ) -> None:
        self.timing = timing
        self._server = Server(url_of(url), namespace, timing, now)

    def migrate(self, *, post: bool = False) -> int:
        """Bring the tables up to date, and return the number of their schema (operator). May be repeated.

        Raises:
            ConfigurationError: Alembic is not installed, or the database does not allow it.
            StoreUnavailableError: the database does not answer.
        """
        return self._server.migrate(post=post)

    def findings(self) -> list[Finding]:
        """Return what is to be said about the database's settings.

        Raises:
            ConfigurationError: the tables are missing or old.
            StoreUnavailableError: the database does not answer.
        """
        kind = "mysql" if self._server.dialect == "mariadb" else self._server.dialect

        def ask(connection: Connection) -> dict[str, str]:
            answers = (connection.exec_driver_sql(question).all() for question in QUESTIONS[kind])
            return {str(name): str(value) for rows in answers for name, value in rows}

        return check_database(kind, self._server.read(ask))

    def close(self) -> None:
        """Close the connections of this process; the next verb makes new ones."""
        self._server.engine.dispose()

    # -- the life of a run -------------------------------------------------------------------------------------------

    def start(self, new: NewRun) -> Started:
        """See :meth:`Store.start`."""
        (answer,) = self.start_all([new])
        if isinstance(answer, WorkflowConflictError):
            raise answer
        return answer

    def start_all(self, news: Sequence[NewRun]) -> list[Started | WorkflowConflictError]:
        """See :meth:`Store.start_all`."""
        return self._server.transact(lambda desk: runs.start(desk, news)) if news else []

    def append(self, workflow_id: str, event: Event, *, key: str, room: int = 0) -> Appended:
        """See :meth:`Store.append`."""
        return self._server.transact(lambda desk: runs.append(desk, workflow_id, event, key, room))

    def take(self, workflow_id: str, owner: str, *, known: int) -> Turn | Refused:
        """See :meth:`Store.take`."""

        def act(desk: Desk) -> Turn | Refused:
            run, _ = desk.lock(workflow_id, mine=owner)
            if run is None:
                return Refused(reason=Refusal.UNKNOWN)
            if run.delivered:
                return Refused(reason=Refusal.FINISHED)
            if rules.is_held(desk, run, owner):
                return Refused(reason=Refusal.HELD)
            rules.grant(desk, run, owner)
            return runs.turn_of(desk, run, known, run.length)

        return self._server.transact(act)

    def commit(
        self,
        lease: Lease,
        outputs: Sequence[Event],
        *,
        read: int,
        waiting: str,
        hold: bool,
        begin: int | None = None,
        finishing: Finishing | None = None,
        mail: Sequence[Mail] = (),  # noqa: ARG002 - the broker is elsewhere
    ) -> Committed:
        """See :meth:`Store.commit`."""
        return self._server.transact(
            lambda desk: runs.commit(
                desk, lease, outputs, read=read, waiting=waiting, hold=hold, begin=begin, finishing=finishing
            ),
        )

    def release(self, workflow_id: str, owner: str, *, delay: float, reason: str = "") -> None:
        """See :meth:`Store.release`."""

        def act(desk: Desk) -> None:
            run, _ = desk.lock(workflow_id)
            if run is None or run.owner != owner:
                return
            rules.give_back(desk, run)
            run.failures, run.reason = run.failures + 1, storable(reason)
            if reason and not rules.is_closed(run):
                run.status = RunStatus.BLOCKED.value
            rules.arm(desk, run, desk.now + milliseconds(delay), sends=0)
            desk.write()

        self._server.transact(act)

    def deliver(self, lease: Lease) -> None:
        """See :meth:`Store.deliver`."""

        def act(desk: Desk) -> None:
            run, _ = desk.lock(lease.workflow_id)
            if run is None or run.owner != lease.owner or not rules.is_closed(run):
                return
            rules.give_back(desk, run)
            # Not before the logs of its earlier runs, should the retention have become shorter.
            until = max(desk.now + milliseconds(self.timing.retention), run.past_until)
            run.delivered, run.due_at = True, until
            desk.write()

        self._server.transact(act)

    # -- the life of a step ------------------------------------------------------------------------------------------

    def claim(
        self, key: StepKey, owner: str, *, progress: str | None = None, known: int | None = None
    ) -> Claim | Refused:
        """See :meth:`Store.claim`."""
        return self._server.transact(lambda desk: steps.claim(desk, key, owner, progress, known))

    def finish(
        self,
        key: StepKey,
        outcome: StepCompleted | StepFailed,
        *,
        token: int | None,
        take_over: str | None = None,
        known: int = 0,
    ) -> Finished:
        """See :meth:`Store.finish`."""
        return self._server.transact(
            lambda desk: steps.finish(desk, key, outcome, token=token, take_over=take_over, known=known),
        )

    def postpone(
        self,
        key: StepKey,
        owner: str,
        *,
        delay: float | None,
        error: str,
        retries: int | None = None,
        override: str | None = None,
    ) -> bool:
        """See :meth:`Store.postpone`."""
        return self._server.transact(
            lambda desk: steps.postpone(desk, key, owner, delay=delay, error=error, retries=retries, override=override),
        )

    def settle(self, key: StepKey, *, cancel: bool = False) -> None:
        """See :meth:`Store.settle`."""

        def act(desk: Desk) -> None:
            run, step = desk.lock_command(key)
            if run is None or step is None:
                return
            if step.state == StepState.CANCELLING and cancel:
                rules.forget_step(desk, run, step, mark=True)
            elif step.state == StepState.PENDING and not cancel:
                step.state, step.due_at = StepState.CHILD, None
                desk.put(step)
                if not rules.is_needed(run, step.run):
                    # Nobody waits for the child's end.
                    rules.forget_step(desk, run, step)
            desk.write()

        self._server.transact(act)

    # -- what falls due ----------------------------------------------------------------------------------------------

    def renew(self, owners: Sequence[str], gone: Sequence[str] = ()) -> tuple[str, ...]:
        """See :meth:`Store.renew`."""
        server = self._server
        return server.read(lambda connection: renew(connection, server, owners, gone))

    def sweep(self, limit: int = 100) -> Sweep:
        """See :meth:`Store.sweep`. A dead process, or what is due of one kind, is a transaction; there may be more."""
        server = self._server
        look = server.read(lambda connection: connection.execute(server.statements.look).one())
        if look.dead is not None:
            is_freed = server.free(look.dead)
            return Sweep(messages=(), more=True, next_in=0.0, counts={"owner": 1} if is_freed else {})
        # A moment after now stands for none.
        runs_at, commands_at = (look.now + 1 if at is None else at for at in (look.runs, look.commands))
        has_runs, has_commands = runs_at <= look.now, commands_at <= look.now
        if not (has_runs or has_commands):
            return _swept(look.now, [look.runs, look.commands, look.owners], processes=look.processes)
        # Of one kind at a time, whichever has waited longer: so a sweep is three statements at most.
        is_of_runs = runs_at <= commands_at
        settled = server.transact(
            lambda desk: settle(desk, look.now, limit, is_of_runs=is_of_runs),
        )
        nexts = [look.next_runs, look.next_commands, look.next_owners, settled.next_at]
        return _swept(
            settled.now,
            [look.now, *nexts] if settled.is_full or (has_runs and has_commands) else nexts,
            messages=tuple(settled.messages),
            counts=settled.counts,
            processes=look.processes,
        )

    def hasten(self, oldest: int, newest: int = 0) -> None:
        """See :meth:`Store.hasten`."""
        server = self._server
        now = server.read(lambda connection: connection.execute(server.statements.look).one()).now
        for is_of_runs in (True, False):
            for limit, latest in ((oldest, False), (newest, True)):
                if limit:
                    server.transact(partial(hasten, now=now, limit=limit, latest=latest, is_of_runs=is_of_runs))

    def ear(self, workflow_id: str) -> AbstractContextManager[Ear] | None:
        """Return what hears of the end of a run, or None where the database tells of none (client)."""
        return None if self._server.ears is None else self._server.ears.ear(workflow_id)

    # -- looking -----------------------------------------------------------------------------------------------------

    def get(self, workflow_id: str) -> RunRecord | None:
        """See :meth:`Store.get`."""
        statement = self._server.statements.read_all
        rows = self._server.read(lambda connection: connection.execute(statement, {"workflow_id": workflow_id}).all())
        if not rows:
            return None
        commands = (CommandRow.read(row, "command_") for row in rows if row.command_number is not None)
        pending = tuple(_pending(step) for step in commands if step.state in steps.STEP_STATES)
        return record_of(RunRow.read(rows[0], "run_"), pending)

    def history(self, workflow_id: str, *, run: int | None = None, after: int = 0, limit: int = 1000) -> list[Recorded]:
        """See :meth:`Store.history`."""
        values = {"workflow_id": workflow_id, "execution": run, "after": after, "last": after + limit}
        statement = self._server.statements.history
        rows = self._server.read(lambda connection: connection.execute(statement, values).all())
        return [recorded(row.seq, row.at, row.header, row.payload) for row in rows]

    def runs(
        self, *, status: RunStatus | None = None, name: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> RunPage:
        """See :meth:`Store.runs`."""
        created_at, _, last = (cursor or "").partition(":")
        place = (int(created_at), last) if cursor else None
        # One more than asked for tells whether another page follows.
        statement = self._server.statements.runs(
            status=None if status is None else status.value, name=name, place=place, limit=limit + 1
        )
        rows = self._server.read(lambda connection: connection.execute(statement).all())
        found = tuple(record_of(RunRow.read(row, "run_")) for row in rows[:limit])
        more = len(rows) > limit
        return RunPage(runs=found, cursor=f"{found[-1].created_at}:{found[-1].workflow_id}" if more else None)


def _pending(step: CommandRow) -> PendingStep:
    return PendingStep(
        number=step.number,
        state=StepState(step.state),
        attempt=step.attempt,
        lost=step.lost,
        owner=step.owner,
        error=step.error,
        due_at=step.not_before or None,
        progress=step.progress,
    )


def _swept(now: int, times: Iterable[int | None], **found: Any) -> Sweep:
    next_at = min((at for at in times if at is not None), default=None)
    more, next_in = next_at is not None and next_at <= now, None if next_at is None else max(0, next_at - now) / 1000
    return Sweep(more=more, next_in=next_in, **found)
