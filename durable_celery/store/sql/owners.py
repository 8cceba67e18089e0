"""Processes: who is known, and what becomes of what a dead one held."""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable_celery.store.protocol import hosts_of
from durable_celery.store.sql.desk import ExpiredError
from durable_celery.store.sql.rules import free_lease, free_step, milliseconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from durable_celery.store.sql.desk import Desk
    from durable_celery.store.sql.server import Server

__all__ = ["free_process", "renew"]


def free_process(desk: Desk, process: str) -> bool:
    """Give back all that a dead process holds, and forget the process. False if it is alive, or not known.

    Runs are locked first, in the order of their ids, and the owner after them, as everywhere. Under the owner's lock
    nobody gives it anything more; had somebody done so in between, the foreign key refuses to forget it, and all is
    done again.
    """
    ends_at = (_lock_at_once if desk.statements.dialect == "postgresql" else _lock)(desk, process)
    if ends_at is None or ends_at > desk.now:
        return False
    for command in list(desk.commands.values()):
        if command.process == process:
            free_step(desk, desk.runs[command.workflow_id], command)
    for run in desk.runs.values():
        if run.process == process:
            free_lease(desk, run)
    desk.forget(process)
    desk.write()
    return True


def _lock_at_once(desk: Desk, process: str) -> int | None:
    """Lock and read all that a process holds; return when it expires."""
    rows = desk.ask(desk.statements.lock_all_held, process=process).all()
    for row in rows:
        desk.now = max(desk.now, row.clock)
        if row.run_workflow_id is not None:
            desk.note_run(row)
        if row.command_workflow_id is not None:
            desk.note_command(row)
    return rows[0].expires if rows else None


def _lock(desk: Desk, process: str) -> int | None:
    for row in desk.ask(desk.statements.lock_held, process=process):
        desk.note_run(row)
    owner = desk.ask(desk.statements.lock_owner, process=process).first()
    for row in desk.ask(desk.statements.held_commands, process=process):
        if row.run_workflow_id in desk.runs:
            desk.note_command(row)
    desk.now = max(desk.now, owner.now if owner else 0)
    return owner.ends_at if owner else None


def renew(connection: Connection, server: Server, owners: Sequence[str], gone: Sequence[str]) -> tuple[str, ...]:
    """Keep processes alive, expire those that are gone, return the known ones of their hosts.

    Raises:
        ExpiredError: a process has expired that is to be kept: it must lose what it held first.
    """
    rows = connection.execute(server.statements.owners(sorted(hosts_of([*owners, *gone])))).all()
    now, known = rows[0].now, {row.process: row.ends_at for row in rows if row.process is not None}
    for process in owners:
        if known.get(process, now + 1) <= now:
            raise ExpiredError(process)
    ends_at = now + milliseconds(server.timing.owner_ttl)
    kept = [{"process": process, "ends_at": ends_at} for process in sorted(owners)]
    if kept:
        server.writer.write(connection, {"renewed": kept})
    if ended := [process for process in gone if process in known or process in owners]:
        connection.execute(server.statements.expire_owners, {"processes": sorted(ended), "ends": now})
    return tuple(sorted({*known, *owners}))
