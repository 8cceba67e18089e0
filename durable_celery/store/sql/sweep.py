"""Settling what is due: messages to be sent (again), timers, deadlines, retention."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from durable_celery.codec import Codec, failure_of
from durable_celery.errors import StepTimeoutError
from durable_celery.events import StepFailed, TimerFired, encode
from durable_celery.store.sql.rules import (
    TIMER,
    arm,
    cancel_step,
    forget_step,
    run_message,
    scheduled_step,
    step_message,
    wait_after,
    wake,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable_celery.store.protocol import RunMessage, StepMessage
    from durable_celery.store.sql.desk import Desk
    from durable_celery.store.sql.tables import CommandRow, RunRow

__all__ = ["Settled", "settle"]


@dataclass(slots=True)
class Settled:
    """What a sweep has done."""

    messages: list[RunMessage | StepMessage] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    #: Whether as much was taken as may be taken: more may be due.
    is_full: bool = False
    #: When the first thing that was settled falls due again, or None.
    next_at: int | None = None


def settle(desk: Desk, until: int, limit: int, *, runs: bool, commands: bool) -> Settled:
    """Settle up to ``limit`` entries that were due at ``until``, of runs and of commands, the earliest first.

    Rows that another transaction has locked are passed over: whoever has them sees to them, or a later sweep does.
    """
    if runs:
        for row in desk.ask(desk.statements.lock_due_runs, until=until, limit=limit):
            desk.note_run(row)
    if commands:
        for row in desk.ask(desk.statements.lock_due_commands, until=until, limit=limit):
            desk.note_run(row)
            desk.note_command(row)
    due = sorted(_due_entries(desk, until))
    settled = Settled(is_full=max(len(due), len(desk.runs), len(desk.commands)) >= limit)
    for _, kind, workflow_id, number in due[:limit]:
        if kind == "retention":
            desk.delete(desk.runs[workflow_id])
        elif kind == "run":
            settled.messages.append(_due_run(desk, desk.runs[workflow_id]))
        elif command := desk.commands.get((workflow_id, number)):
            message = _COMMANDS[kind](desk, desk.runs[workflow_id], command)
            settled.messages += [message] if message else []
        else:
            continue  # an earlier one of this sweep has settled it
        settled.counts[kind] += 1
    times = [run.due_at for run in desk.runs.values() if not desk.is_deleted(run)]
    times += [at for command in desk.commands.values() for at in (command.due_at, command.alarm_at)]
    settled.next_at = min((at for at in times if at is not None), default=None)
    desk.write()
    return settled


def _due_entries(desk: Desk, until: int) -> list[tuple[int, str, str, int]]:
    entries = [
        (run.due_at, "retention" if run.delivered else "run", run.workflow_id, 0)
        for run in desk.runs.values()
        if run.due_at is not None and run.due_at <= until
    ]
    for command in desk.commands.values():
        if command.due_at is not None and command.due_at <= until:
            kind = "timer" if command.state == TIMER else "step"
            entries.append((command.due_at, kind, command.workflow_id, command.number))
        if command.alarm_at is not None and command.alarm_at <= until:
            entries.append((command.alarm_at, "deadline", command.workflow_id, command.number))
    return entries


def _due_run(desk: Desk, run: RunRow) -> RunMessage:
    arm(desk, run, desk.now + wait_after(desk.timing, run.sends), sends=run.sends + 1)
    return run_message(run)


def _due_step(desk: Desk, run: RunRow, step: CommandRow) -> StepMessage:
    step.due_at, step.sends = desk.now + wait_after(desk.timing, step.sends), step.sends + 1
    desk.put(step)
    return step_message(desk, run, step)


def _due_timer(desk: Desk, run: RunRow, timer: CommandRow) -> RunMessage | None:
    desk.drop(timer)
    if timer.number == 0:
        run.gate = "open"
    desk.append(run, encode(TimerFired(number=timer.number)))
    return wake(desk, run)


def _due_deadline(desk: Desk, run: RunRow, step: CommandRow) -> RunMessage | None:
    seconds = (scheduled_step(desk, step).options or {})["timeout"]
    if step.kind == "workflow":
        cancel_step(desk, run, step)
    else:
        forget_step(desk, run, step)
    error = StepTimeoutError(f"the step did not end within its timeout of {seconds:g} s")
    event = StepFailed(payload=failure_of(error, Codec()), number=step.number, attempt=step.attempt)
    desk.append(run, encode(event))
    return wake(desk, run)


_COMMANDS: dict[str, Callable[[Desk, RunRow, CommandRow], RunMessage | StepMessage | None]] = {
    "step": _due_step,
    "timer": _due_timer,
    "deadline": _due_deadline,
}
