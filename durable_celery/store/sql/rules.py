"""The moves that the verbs share: wake-ups, leases, open steps, what follows from an output.

Each takes a desk with locked rows and changes them; nothing here talks to the database. What the moves mean stands in
:mod:`durable_celery.store.memory_tables`, which is the reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable_celery.events import (
    CommandCancelled,
    Event,
    Output,
    RunCancelled,
    RunCompleted,
    RunFailed,
    StepScheduled,
    TimerStarted,
    encode,
)
from durable_celery.store.limits import ATTEMPT_OVER, KINDS, Limits
from durable_celery.store.protocol import (
    Lease,
    RunMessage,
    RunRecord,
    RunStatus,
    StepKey,
    StepMessage,
    StepState,
    Timing,
    Turn,
)
from durable_celery.store.sql.tables import CommandRow, process_of

if TYPE_CHECKING:
    from durable_celery.events import Recorded
    from durable_celery.store.protocol import PendingStep
    from durable_celery.store.sql.desk import Desk
    from durable_celery.store.sql.tables import RunRow

__all__ = [
    "CANCELLED",
    "LOG",
    "TIMER",
    "arm",
    "begin_step",
    "cancel_step",
    "drop_open",
    "follow",
    "forget_step",
    "free_lease",
    "free_step",
    "give_back",
    "grant",
    "has_unread",
    "is_closed",
    "is_held",
    "is_needed",
    "limit",
    "milliseconds",
    "record_of",
    "run_message",
    "scheduled_step",
    "step_message",
    "storable",
    "turn",
    "wait_after",
    "wake",
]

#: States of commands that are no steps.
TIMER, CANCELLED, LOG = "timer", "cancelled", "log"
_CLOSING: dict[type[Event], RunStatus] = {
    RunCompleted: RunStatus.COMPLETED,
    RunFailed: RunStatus.FAILED,
    RunCancelled: RunStatus.CANCELLED,
}
_LONGEST_BACKOFF = 60


def milliseconds(seconds: float) -> int:
    """Return a duration in the unit of the tables."""
    return round(seconds * 1000)


def storable(text: str) -> str:
    """Return a text that every database takes: without NUL and lone surrogates, which messages of errors may have."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


# Answers ------------------------------------------------------------------------------------------------------------


def run_message(run: RunRow) -> RunMessage:
    """Return the run's message."""
    return RunMessage(
        workflow_id=run.workflow_id,
        name=run.name,
        envelope=run.envelope,
        created_at=run.created_at,
        first=run.token == 0,
    )


def step_message(desk: Desk, run: RunRow, step: CommandRow) -> StepMessage:
    """Return the message of the step's next attempt."""
    return StepMessage(
        key=StepKey(workflow_id=run.workflow_id, run=step.run, number=step.number),
        scheduled=scheduled_step(desk, step),
        workflow=run.name,
        envelope=run.envelope,
        attempt=step.attempt + 1,
        retries=step.retries,
        override=step.override,
        cancel=step.state == StepState.CANCELLING,
    )


def scheduled_step(desk: Desk, step: CommandRow) -> StepScheduled:
    """Return the scheduled event of a step that was read.

    Raises:
        ValueError: it is something else; the tables were changed by other hands.
    """
    found = desk.scheduled.get(step.place)
    if not isinstance(found, StepScheduled):
        story = f"step {step.number} of {step.workflow_id!r} does not point at a StepScheduled: {found!r:.80}"
        raise ValueError(story)  # noqa: TRY004 - a matter of what stands in the tables
    return found


def record_of(run: RunRow, steps: tuple[PendingStep, ...] = ()) -> RunRecord:
    """Return the run as the protocol has it."""
    return RunRecord(
        workflow_id=run.workflow_id,
        name=run.name,
        status=RunStatus(run.status),
        created_at=run.created_at,
        run=run.run,
        closed_at=run.closed_at,
        length=run.length,
        read=run.read_to,
        token=run.token,
        owner=run.owner,
        waiting=run.waiting,
        reason=run.reason,
        failures=run.failures,
        parent=run.parent,
        envelope=run.envelope,
        delivered=run.delivered,
        steps=steps,
    )


def turn(run: RunRow, events: tuple[Recorded, ...], now: int) -> Turn:
    """Return the turn of the run's present owner."""
    lease = Lease(workflow_id=run.workflow_id, token=run.token, owner=run.owner or "")
    return Turn(lease=lease, run=record_of(run), events=events, now=now)


# Runs and leases ----------------------------------------------------------------------------------------------------


def is_closed(run: RunRow) -> bool:
    """Tell whether the run has ended."""
    return RunStatus(run.status).is_closed


def has_unread(run: RunRow) -> bool:
    """Tell whether there is something to do: events to read, or an end to deliver."""
    return not run.delivered if is_closed(run) else run.length > run.read_to


def is_held(desk: Desk, run: RunRow, owner: str) -> bool:
    """Tell whether a live owner other than this one has the lease."""
    return run.owner not in {None, owner} and desk.is_alive(process_of(run.owner or ""))


def wait_after(timing: Timing, sends: int) -> int:
    """Return the wait before the next send of a message that was sent ``sends`` times."""
    return milliseconds(min(timing.resend_after * 2 ** min(sends, 30), timing.resend_limit))


def wake(desk: Desk, run: RunRow, *, again: bool = False) -> RunMessage | None:
    """Mark the run woken if it has something to do and nobody sees to it; ``again``: also if it was marked."""
    if run.owner is not None and not desk.is_alive(process_of(run.owner)):
        free_lease(desk, run)
    if run.owner is not None or not has_unread(run) or (run.due_at is not None and not again):
        return None
    if run.due_at is None:
        arm(desk, run, desk.now + wait_after(desk.timing, 0), sends=1)
    return run_message(run)


def arm(desk: Desk, run: RunRow, due_at: int, *, sends: int) -> None:
    """Mark the run woken: its message is sent at ``due_at``."""
    run.due_at, run.sends = due_at, sends
    desk.touch(run)


def give_back(desk: Desk, run: RunRow) -> None:
    """Take the lease from its owner."""
    run.owner = None
    desk.touch(run)


def free_lease(desk: Desk, run: RunRow) -> None:
    """Take the lease from a dead owner."""
    give_back(desk, run)
    run.failures, run.reason = run.failures + 1, "the process that ran its turn was lost"
    # The first loss is made good at once; a turn that kills its process again and again must not spin.
    wait = 0.0 if run.failures == 1 else min(2.0 ** min(run.failures - 2, 30), _LONGEST_BACKOFF)
    arm(desk, run, desk.now + milliseconds(wait), sends=0)


def grant(desk: Desk, run: RunRow, owner: str) -> None:
    """Give the lease under a new token; a repeated call of the same owner finds what it was given."""
    if run.owner == owner:
        return
    if run.owner is not None:
        free_lease(desk, run)
    desk.join(process_of(owner))
    # Clears the wake mark.
    run.token, run.owner, run.due_at = run.token + 1, owner, None
    desk.touch(run)


# Open steps ---------------------------------------------------------------------------------------------------------


def is_needed(run: RunRow, execution: int) -> bool:
    """Tell whether the outcome of a step of a run may still matter to somebody."""
    return execution == run.run and not is_closed(run)


def limit(desk: Desk, run: RunRow, step: CommandRow, *begun: str, over: tuple[str, ...] = ()) -> None:
    """Let limits of a step begin anew, or be over; the caller puts it.

    Where nobody waits for its outcome, none begins: its limits went with its run.
    """
    for kind in over:
        step.end(kind, None)
    limits = Limits.of(scheduled_step(desk, step).options) if begun and is_needed(run, step.run) else None
    for kind in begun if limits else ():
        if (length := getattr(limits, kind)) is not None:
            step.end(kind, desk.now + length)


def begin_step(desk: Desk, run: RunRow, step: CommandRow, owner: str) -> None:
    """Begin the next attempt of a step that waits for it, in a process that is known."""
    step.state, step.owner, step.attempt = StepState.CLAIMED, owner, step.attempt + 1
    step.not_before, step.sends, step.due_at = 0, 0, None
    limit(desk, run, step, "attempt", "heartbeat", over=("start",))
    desk.put(step)


def cancel_step(desk: Desk, run: RunRow, step: CommandRow) -> None:
    """Note that the workflow does not want the step any more."""
    if step.kind == "workflow":
        # The child may exist although nobody has said so yet: it is told in any case.
        step.state, step.sends, step.due_at = StepState.CANCELLING, 0, desk.now
        limit(desk, run, step, over=KINDS)
        desk.put(step)
    else:
        forget_step(desk, run, step, mark=True)


def forget_step(desk: Desk, run: RunRow, step: CommandRow, *, mark: bool = False) -> None:
    """Take an open step away; with ``mark`` an open run remembers that it was cancelled."""
    if mark and is_needed(run, step.run):
        mine = CommandRow(
            workflow_id=step.workflow_id, run=step.run, number=step.number, kind=step.kind, state=CANCELLED
        )
        desk.put(mine)
    else:
        desk.drop(step)


def free_step(desk: Desk, run: RunRow, step: CommandRow, error: str = "the process that ran it was lost") -> None:
    """End an attempt whose owner is dead, silent or too slow; the step is sent again at once."""
    step.state, step.owner, step.sends, step.not_before = StepState.PENDING, None, 0, 0
    step.error = error
    if error != ATTEMPT_OVER:
        step.lost += 1
    step.due_at = desk.now
    limit(desk, run, step, over=("attempt", "heartbeat"))
    desk.put(step)


# What follows from outputs ------------------------------------------------------------------------------------------


def follow(desk: Desk, run: RunRow, event: Event) -> None:
    """Do what an output event, just appended, entails outside the history."""
    if isinstance(event, Output):
        run.last_number = max(run.last_number, event.number)
    match event:
        case StepScheduled(number=number, kind=kind):
            step = CommandRow(
                workflow_id=run.workflow_id,
                run=run.run,
                number=number,
                kind=kind,
                state=StepState.PENDING,
                seq=run.length,
                due_at=desk.now + wait_after(desk.timing, 0),
            )
            desk.scheduled[step.place] = event
            limit(desk, run, step, "whole", "start")
            desk.put(step)
        case TimerStarted(number=number, due_at=due_at):
            put_timer(desk, run, number, due_at)
        case CommandCancelled(target=target):
            command = desk.command((run.workflow_id, run.run, target))
            if command is not None and command.state == TIMER:
                desk.drop(command)
            elif command is not None and command.state != CANCELLED:
                cancel_step(desk, run, command)
        case RunCompleted() | RunFailed() | RunCancelled():
            run.status, run.closed_at, run.waiting = _CLOSING[type(event)].value, desk.now, ""
            drop_open(desk, run)
        case _:
            pass


def put_timer(desk: Desk, run: RunRow, number: int, due_at: int) -> None:
    """Add a timer; number 0 is the gate of a delayed start."""
    timer = CommandRow(workflow_id=run.workflow_id, run=run.run, number=number, kind=TIMER, state=TIMER, due_at=due_at)
    desk.put(timer)


def drop_open(desk: Desk, run: RunRow, *, is_followed: bool = False) -> None:
    """Drop what means nothing to a run that has ended, all of whose commands were read.

    That is timers and time limits; and nobody waits for its children, or for what is told from outside. Steps that were
    not cancelled are still executed; children that are to be cancelled are still told. Where another run follows, they
    may outlive the log, and keep what they need of it.
    """
    for command in [one for one in desk.commands.values() if one.place[:2] == (run.workflow_id, run.run)]:
        if command.state in {TIMER, CANCELLED, StepState.CHILD, StepState.WAITING}:
            desk.drop(command)
        elif command.ends or is_followed:
            limit(desk, run, command, over=KINDS)
            command.scheduled = encode(scheduled_step(desk, command)) if is_followed else None
            desk.put(command)
