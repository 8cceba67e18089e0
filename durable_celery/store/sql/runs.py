"""The longer verbs in the life of a run: its start, its inputs, the commits of its turns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable_celery.errors import (
    InboxFullError,
    StaleLeaseError,
    WorkflowClosedError,
    WorkflowConflictError,
    WorkflowNotFoundError,
)
from durable_celery.events import (
    CancelRequested,
    CommandCancelled,
    Event,
    RunCancelled,
    RunCompleted,
    RunContinued,
    RunFailed,
    RunStarted,
    TimerFired,
    encode,
)
from durable_celery.store.protocol import (
    Appended,
    Committed,
    Finishing,
    Lease,
    NewRun,
    RunStatus,
    Started,
    StepState,
    Turn,
)
from durable_celery.store.sql import rules
from durable_celery.store.sql.continuing import continue_run, ends_with, length_before
from durable_celery.store.sql.desk import PAGE
from durable_celery.store.sql.rules import TIMER, milliseconds, run_message, storable, wake
from durable_celery.store.sql.tables import CommandRow, RunRow, process_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from durable_celery.store.sql.desk import Desk

__all__ = ["append", "commit", "start", "turn_of"]

_ENDS = RunCompleted | RunFailed | RunCancelled


def start(desk: Desk, runs: Sequence[NewRun]) -> list[Started | WorkflowConflictError]:
    """See :meth:`Store.start_all`."""
    desk.read([new.workflow_id for new in runs])
    answers = [_start(desk, new) for new in runs]
    # A start that raced with this one makes the write fail, and all is done again.
    desk.write()
    return answers


def _start(desk: Desk, new: NewRun) -> Started | WorkflowConflictError:
    run = desk.runs.get(new.workflow_id)
    if run is not None:
        if (run.name, run.digest) != (new.name, new.digest):
            return WorkflowConflictError(new.workflow_id, f"{run.name} ({run.digest})", f"{new.name} ({new.digest})")
        begins = run.status == RunStatus.PENDING and run.gate != "shut"
        return Started(created=False, message=run_message(run) if begins else None)
    run = RunRow(
        workflow_id=new.workflow_id,
        name=new.name,
        digest=new.digest,
        parent=new.parent,
        envelope=new.envelope,
        created_at=desk.now,
        status=RunStatus.PENDING.value,
    )
    desk.create(run)
    start_at = desk.now + milliseconds(new.delay) if new.delay else None
    expires_at = None if new.expires is None else desk.now + milliseconds(new.expires)
    first = RunStarted(
        payload=new.payload,
        name=new.name,
        version=new.version,
        start_at=start_at,
        expires_at=expires_at,
        parent=new.parent,
    )
    desk.append(run, encode(first))
    message = None
    if start_at is not None:
        run.gate = "shut"
        rules.put_timer(desk, run, 0, start_at)
    elif new.unsent:
        rules.arm(desk, run, desk.now, sends=0)
    else:
        message = wake(desk, run)
    return Started(created=True, message=message)


def append(desk: Desk, workflow_id: str, event: Event, key: str, room: int) -> Appended:
    """See :meth:`Store.append`."""
    run, was_accepted = desk.lock(workflow_id, key=key)
    if run is None:
        raise WorkflowNotFoundError(workflow_id)
    timer = None
    if isinstance(event, TimerFired):
        timer = desk.command((workflow_id, run.run, event.number))
        was_accepted = run.gate == "open" if not event.number else timer is None or timer.state != TIMER
    if was_accepted or (isinstance(event, CancelRequested) and run.cancel_requested):
        message = wake(desk, run, again=True)
        desk.write()
        return Appended(added=False, message=message)
    if rules.is_closed(run):
        if (
            not isinstance(event, TimerFired)
            and desk.ask(desk.statements.read_key, workflow_id=workflow_id, key=key).scalar()
        ):
            # Accepted while we waited for the lock, and the run has ended since.
            return Appended(added=False, message=None)
        raise WorkflowClosedError(workflow_id, RunStatus(run.status))
    if 0 < room <= (unread := run.length - run.read_to):
        raise InboxFullError(workflow_id, unread)
    if not isinstance(event, TimerFired):
        desk.note_key(workflow_id, key)
    elif not event.number:
        run.gate = "open"
    if timer is not None:
        desk.drop(timer)
    run.cancel_requested |= isinstance(event, CancelRequested)
    desk.append(run, encode(event))
    message = wake(desk, run)
    desk.write()
    return Appended(added=True, message=message)


def turn_of(desk: Desk, run: RunRow, known: int, length: int) -> Turn:
    """Write, and return the turn of the run's new owner; ``length`` is that of the history before this transaction."""
    page = desk.write((run.workflow_id, run.run, known, length) if known < length else None)
    return rules.turn(run, (*page, *desk.appended(run, known))[:PAGE], desk.now)


def commit(
    desk: Desk,
    lease: Lease,
    outputs: Sequence[Event],
    *,
    read: int,
    waiting: str,
    hold: bool,
    begin: int | None = None,
    finishing: Finishing | None = None,
) -> Committed:
    """See :meth:`Store.commit`."""
    written, before = ([finishing.outcome, *outputs], read - 1) if finishing else (outputs, read)
    locked = desk.lock_command(finishing.key, mine=lease.owner) if finishing else desk.lock(lease.workflow_id)
    run = locked[0]
    if run is not None and (answer := _repeated(desk, run, lease, written, before)):
        return answer
    step = _step_to_finish(desk, run, lease, finishing, before) if run and finishing else None
    if run is None or not (step or _may_write(run, lease, outputs, read)):
        raise StaleLeaseError(_stale_story(run, lease, read))
    end, carried = outputs[-1] if outputs else None, _read(desk, run, outputs, read)
    if finishing is not None and step is not None:
        rules.forget_step(desk, run, step)
        desk.append(run, encode(finishing.outcome), finishing.at)
        rules.grant(desk, run, lease.owner)
    base = run.length
    for event in outputs:
        desk.append(run, encode(event))
        rules.follow(desk, run, event)
    if isinstance(end, RunContinued):
        length = run.length
        continue_run(desk, run, end, read, carried)
        desk.write()
        return Committed(events=(), length=length, held=False, now=desk.now)
    if not rules.is_closed(run):
        run.status = (RunStatus.PENDING if run.gate == "shut" else RunStatus.RUNNING).value
        run.waiting = storable(waiting)
    begun = _begin(desk, run, lease.owner, begin)
    run.read_to, run.failures, run.reason = run.length, 0, ""
    desk.touch(run)
    held = hold or (base > read and not rules.is_closed(run))
    if not held:
        rules.give_back(desk, run)
        wake(desk, run)
    events = desk.write((run.workflow_id, run.run, read, base) if base > read else None)
    return Committed(events=events, length=run.length, held=held, now=desk.now, begun=begun)


def _read(desk: Desk, run: RunRow, outputs: Sequence[Event], read: int) -> dict[int, str]:
    """Read the commands that the outputs touch; return what goes along into the next run, by seq."""
    end = outputs[-1] if outputs else None
    if isinstance(end, RunContinued):
        return desk.read_carried(run, kept=end.kept, after=read, last=run.length)
    if any(isinstance(event, _ENDS | CommandCancelled) for event in outputs):
        desk.read_commands(run.workflow_id)
    return {}


def _begin(desk: Desk, run: RunRow, owner: str, number: int | None) -> bool:
    """Begin a step that was just scheduled, unless there is none, or the process has expired; tell whether it was."""
    if number is None or not desk.is_alive(process_of(owner)):
        return False
    rules.begin_step(desk, run, desk.commands[run.workflow_id, run.run, number], owner)
    return True


def _repeated(desk: Desk, run: RunRow, lease: Lease, written: Sequence[Event], before: int) -> Committed | None:
    """Return the answer to a commit that has taken effect and comes again: what it wrote is the last that was."""
    if written and isinstance(written[-1], RunContinued):
        length = length_before(desk, run, lease, written, before)
        return Committed(events=(), length=length, held=False, now=desk.now) if length else None
    if not written or run.token != lease.token or run.owner not in {None, lease.owner}:
        return None
    end = run.read_to - len(written)
    if before > end or not ends_with(desk, run, run.run, run.read_to, written):
        return None
    page = desk.events((run.workflow_id, run.run, before, end))
    return Committed(events=page, length=run.read_to, held=run.owner is not None, now=desk.now)


def _step_to_finish(desk: Desk, run: RunRow, lease: Lease, finishing: Finishing, read: int) -> CommandRow | None:
    """Return the step that a commit finishes, if nothing else has happened to the run since its last turn."""
    step = desk.commands.get((run.workflow_id, finishing.key.run, finishing.key.number))
    is_as_it_was = (
        (run.token, run.owner) == (lease.token - 1, None)
        and not rules.is_closed(run)
        and run.read_to == run.length == read
        and finishing.at <= desk.now
        and desk.is_alive(process_of(lease.owner))
    )
    is_claimed = step is not None and (step.state, step.attempt) == (StepState.CLAIMED, finishing.token)
    return step if is_as_it_was and is_claimed else None


def _may_write(run: RunRow, lease: Lease, outputs: Sequence[Event], read: int) -> bool:
    if (run.token, run.owner) != (lease.token, lease.owner):
        return False
    return not outputs or not (rules.is_closed(run) or read < run.read_to)


def _stale_story(run: RunRow | None, lease: Lease, read: int) -> str:
    found = "is not in the store"
    if run is not None:
        found = f"has token {run.token}, owner {run.owner} and was read up to {run.read_to}"
    return f"lease {lease.token} of {lease.owner} is stale: workflow {lease.workflow_id!r} {found}, not {read}"
