"""A run that continues as the next one of its workflow: a new log, with the inputs that no code has taken.

The old log stands where it stood, under its own number. Until it goes it has a mark among the commands: number 0 of its
run, with its length, and with the time at which it goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable_celery.events import CARRIED, Event, RunContinued, RunStarted, decode, encode
from durable_celery.store.protocol import Lease, RunStatus
from durable_celery.store.sql.rules import LOG, drop_open, give_back, milliseconds, wake
from durable_celery.store.sql.tables import CommandRow, RunRow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from durable_celery.store.sql.desk import Desk

__all__ = ["continue_run", "ends_with", "length_before"]


def continue_run(desk: Desk, run: RunRow, end: RunContinued, read: int, texts: Mapping[int, str]) -> None:
    """Set the log aside, begin that of the next run, and wake it.

    ``end`` was just appended. ``texts`` are those of the inputs that it names and of those that no turn has read, which
    stand after ``read``.
    """
    drop_open(desk, run, is_followed=True)
    inputs = _inputs(texts, end, read)
    until = desk.now + milliseconds(desk.timing.retention)
    desk.put(
        CommandRow(
            workflow_id=run.workflow_id, run=run.run, number=0, kind=LOG, state=LOG, seq=run.length, due_at=until
        )
    )
    run.past_until, run.begun = max(run.past_until, until), run.token
    run.run, run.length, run.read_to, run.last_number, run.gate = run.run + 1, 0, 0, 0, ""
    run.status, run.waiting, run.failures, run.reason = RunStatus.RUNNING.value, "", 0, ""
    first = RunStarted(payload=end.payload, name=run.name, version=end.version, format=end.format, parent=run.parent)
    for text in (encode(first), *inputs):
        desk.append(run, text)
    give_back(desk, run)
    wake(desk, run)


def _inputs(texts: Mapping[int, str], end: RunContinued, read: int) -> list[str]:
    """Return the texts of the inputs that go along: those that the code kept, and the new ones of the same kinds."""
    new = [seq for seq in sorted(texts) if seq > read and isinstance(_event(seq, texts[seq]), CARRIED)]
    return [texts[seq] for seq in (*end.kept, *new)]


def _event(seq: int, text: str) -> Event:
    return decode(seq, f"0 {text}").event


def length_before(desk: Desk, run: RunRow, lease: Lease, outputs: Sequence[Event], read: int) -> int:
    """Return the length of the log before this one if it was this commit that ended it, else 0.

    Two runs may well end in the same way; it is the turn that tells.
    """
    if not run.begun == run.token == lease.token or run.owner not in {None, lease.owner}:
        return 0
    log = desk.command((run.workflow_id, run.run - 1, 0))
    if log is None or read > log.seq - len(outputs):
        return 0
    return log.seq if ends_with(desk, run, log.run, log.seq, outputs) else 0


def ends_with(desk: Desk, run: RunRow, execution: int, length: int, outputs: Sequence[Event]) -> bool:
    """Tell whether a log, up to a length, ends with these outputs."""
    found = desk.events((run.workflow_id, execution, length - len(outputs), length), most=len(outputs))
    return [item.event for item in found] == list(outputs)
