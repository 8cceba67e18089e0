"""Processes: who is known, and what becomes of what a dead one held."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    ids = list(desk.ask(desk.statements.held_ids, process=process).scalars())
    if ids:
        for row in desk.ask(desk.statements.lock_runs, ids=ids):
            desk.note_run(row)
    owner = desk.ask(desk.statements.lock_owner, process=process).first()
    if owner is None:
        return False
    desk.now = max(desk.now, owner.now)
    if owner.ends_at > desk.now:
        return False
    for row in desk.ask(desk.statements.held_commands, process=process):
        if row.run_workflow_id in desk.runs:
            free_step(desk, desk.runs[row.run_workflow_id], desk.note_command(row))
    for run in desk.runs.values():
        if run.process == process:
            free_lease(desk, run)
    desk.write()
    desk.ask(desk.statements.forget_owner, process=process)
    return True


def renew(connection: Connection, server: Server, owners: Sequence[str], gone: Sequence[str]) -> tuple[str, ...]:
    """Keep processes alive, expire those that are gone, return all known ones.

    Raises:
        ExpiredError: a process has expired that is to be kept: it must lose what it held first.
    """
    rows = connection.execute(server.statements.owners).all()
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
