"""Settling what is due: messages to be sent (again), timers, deadlines, retention."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from durable_celery.codec import Codec, failure_of
from durable_celery.errors import StepTimeoutError
from durable_celery.events import StepFailed, TimerFired, encode
from durable_celery.store.limits import ATTEMPT_OVER, SILENT, Limits, first_passed, story
from durable_celery.store.protocol import hastened
from durable_celery.store.sql.rules import (
    LOG,
    TIMER,
    arm,
    cancel_step,
    forget_step,
    free_step,
    milliseconds,
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
    from durable_celery.store.sql.tables import CommandRow, Place, RunRow

__all__ = ["Settled", "hasten", "settle"]


@dataclass(slots=True)
class Settled:
    """What a sweep has done."""

    messages: list[RunMessage | StepMessage] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    #: Whether as much was taken as may be taken: more may be due.
    is_full: bool = False
    #: When the first thing that was settled falls due again, or None.
    next_at: int | None = None
    #: The clock when it was done: what was freed falls due at that time.
    now: int = 0


def settle(desk: Desk, until: int, limit: int, *, is_of_runs: bool) -> Settled:
    """Settle up to ``limit`` entries that were due at ``until``, either of runs or of commands, the earliest first.

    Rows that another transaction has locked are passed over: whoever has them sees to them, or a later sweep does.
    """
    if is_of_runs:
        for row in desk.ask(desk.statements.lock_due_runs, until=until, limit=limit):
            desk.note_run(row)
    else:
        for row in desk.ask(desk.statements.lock_due_commands, until=until, limit=limit):
            desk.note_run(row)
            desk.note_command(row)
    desk.now = max(desk.now, until)
    due = sorted(_due_entries(desk, until))
    settled = Settled(is_full=max(len(due), len(desk.runs), len(desk.commands)) >= limit)
    for _, kind, place in due[:limit]:
        run = desk.runs[place[0]]
        message: RunMessage | StepMessage | None
        if place == _whole(run):
            message = _due_run(desk, run)
        elif command := desk.commands.get(place):
            message = _COMMANDS[kind](desk, run, command)
        else:
            continue  # an earlier one of this sweep has settled it
        settled.messages += [message] if message else []
        settled.counts[kind] += 1
    times = [run.due_at for run in desk.runs.values() if not desk.is_deleted(run)]
    times += [at for command in desk.commands.values() for at in (command.due_at, command.alarm_at)]
    settled.now = desk.now
    settled.next_at = min((at for at in times if at is not None), default=None)
    desk.write()
    return settled


def hasten(desk: Desk, *, now: int, limit: int, latest: bool, is_of_runs: bool) -> None:
    """Let messages that were published, and are to be sent again within ``resend_after``, fall due."""
    statements = desk.statements
    found = statements.published_runs(latest=latest) if is_of_runs else statements.published_steps(latest=latest)
    wait = milliseconds(desk.timing.resend_after)
    for row in desk.ask(found, after=now, until=now + wait, limit=limit):
        run = desk.note_run(row)
        if is_of_runs:
            arm(desk, run, hastened(run.due_at, now, wait), sends=0)
        else:
            step = desk.note_command(row)
            step.due_at, step.sends = hastened(step.due_at, now, wait), 0
            desk.put(step)
    desk.write()


def _due_entries(desk: Desk, until: int) -> list[tuple[int, str, Place]]:
    entries = [
        (run.due_at, "retention" if run.delivered else "run", _whole(run))
        for run in desk.runs.values()
        if run.due_at is not None and run.due_at <= until
    ]
    for command in desk.commands.values():
        if command.due_at is not None and command.due_at <= until:
            entries.append((command.due_at, _KINDS.get(command.state, "step"), command.place))
        if (alarm_at := command.alarm_at) is not None and alarm_at <= until:
            entries.append((alarm_at, "deadline", command.place))
    return entries


def _whole(run: RunRow) -> Place:
    """Return what stands for the run itself where places of commands stand; behind those of its earlier logs."""
    return run.workflow_id, run.run, -1


def _due_run(desk: Desk, run: RunRow) -> RunMessage | None:
    if run.delivered:
        desk.delete(run)
        return None
    arm(desk, run, desk.now + wait_after(desk.timing, run.sends), sends=run.sends + 1)
    return replace(run_message(run), sends=run.sends - 1)


def _due_step(desk: Desk, run: RunRow, step: CommandRow) -> StepMessage:
    step.due_at, step.sends = desk.now + wait_after(desk.timing, step.sends), step.sends + 1
    desk.put(step)
    return replace(step_message(desk, run, step), sends=step.sends - 1)


def _due_timer(desk: Desk, run: RunRow, timer: CommandRow) -> RunMessage | None:
    desk.drop(timer)
    if timer.number == 0:
        run.gate = "open"
    desk.append(run, encode(TimerFired(number=timer.number)))
    return wake(desk, run)


def _due_deadline(desk: Desk, run: RunRow, step: CommandRow) -> RunMessage | None:
    scheduled, passed = scheduled_step(desk, step), first_passed(step.ends.items(), desk.now)
    limits = Limits.of(scheduled.options)
    assert limits is not None and passed is not None  # noqa: S101, PT018 - the alarm stands at one of them
    if passed == "heartbeat" or (passed == "attempt" and not 0 < limits.tries <= step.attempt):
        free_step(desk, run, step, SILENT if passed == "heartbeat" else ATTEMPT_OVER)
        return None
    if step.kind == "workflow":
        cancel_step(desk, run, step)
    else:
        forget_step(desk, run, step)
    error = StepTimeoutError(story(passed, limits, scheduled))
    event = StepFailed(payload=failure_of(error, Codec()), number=step.number, attempt=step.attempt)
    desk.append(run, encode(event))
    return wake(desk, run)


def _due_log(desk: Desk, _: RunRow, log: CommandRow) -> None:
    desk.drop(log)
    desk.drop_log(log.workflow_id, log.run)


#: What falls due, by the state of the command; all others are steps.
_KINDS = {TIMER: "timer", LOG: "retention"}
_COMMANDS: dict[str, Callable[[Desk, RunRow, CommandRow], RunMessage | StepMessage | None]] = {
    "step": _due_step,
    "timer": _due_timer,
    "deadline": _due_deadline,
    "retention": _due_log,
}
