"""The longer verbs in the life of a step: its claim and its finish."""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable_celery.events import StepCompleted, StepFailed, encode
from durable_celery.store.protocol import Claim, Finished, Refusal, Refused, StepKey, StepState, View
from durable_celery.store.sql import rules
from durable_celery.store.sql.desk import PAGE
from durable_celery.store.sql.rules import CANCELLED, milliseconds, storable, wake
from durable_celery.store.sql.runs import turn_of
from durable_celery.store.sql.tables import CommandRow, RunRow, process_of

if TYPE_CHECKING:
    from durable_celery.store.sql.desk import Desk

__all__ = ["STEP_STATES", "claim", "finish", "postpone"]

#: States of commands that are open steps.
STEP_STATES = frozenset(StepState)
#: Steps that nobody executes: their outcome comes from elsewhere.
_ELSEWHERE = {StepState.CHILD, StepState.CANCELLING, StepState.WAITING}


def claim(
    desk: Desk, key: StepKey, owner: str, progress: str | None = None, known: int | None = None
) -> Claim | Refused:
    """See :meth:`Store.claim`."""
    run, step = desk.lock_command(key, mine=owner)
    if run is None or key.run > run.run:
        return Refused(reason=Refusal.UNKNOWN)
    if step is None or step.state not in STEP_STATES:
        return _refuse_step(desk, run, step, key)
    if progress is not None and (refused := _beat(desk, run, step, owner, progress)):
        return refused
    is_foreign = step.state == StepState.CLAIMED and step.owner != owner
    is_held = is_foreign and desk.is_alive(process_of(step.owner or ""))
    if is_held or (progress is None and step.state in _ELSEWHERE):
        return Refused(reason=Refusal.HELD)
    if is_foreign:
        rules.free_step(desk, run, step)
    if step.state == StepState.PENDING:
        if step.not_before > desk.now:
            return Refused(reason=Refusal.EARLY)
        desk.join(process_of(owner))
        rules.begin_step(desk, run, step, owner)
    is_at_rest = rules.is_needed(run, key.run) and run.owner is None and run.read_to == run.length
    has_view = known is not None and is_at_rest and known < run.length <= known + PAGE
    page = desk.write((run.workflow_id, run.run, known or 0, run.length) if has_view else None)
    return Claim(
        key=key,
        token=step.attempt,
        owner=owner,
        attempt=step.attempt,
        lost=step.lost,
        retries=step.retries,
        scheduled=rules.scheduled_step(desk, step),
        override=step.override,
        progress=step.progress,
        view=View(run=rules.record_of(run), events=page, now=desk.now) if has_view else None,
    )


def _beat(desk: Desk, run: RunRow, step: CommandRow, owner: str, progress: str) -> Refused | None:
    """Take a heartbeat; return why it is refused, or None."""
    is_its_own = step.state == StepState.WAITING or (step.state, step.owner) == (StepState.CLAIMED, owner)
    if not rules.is_needed(run, step.run):
        if is_its_own:
            rules.forget_step(desk, run, step)
            desk.write()
        return Refused(reason=Refusal.FINISHED)
    if not is_its_own:
        return Refused(reason=Refusal.LOST)
    step.progress = progress or step.progress
    rules.limit(desk, run, step, "heartbeat")
    desk.put(step)
    return None


def _refuse_step(desk: Desk, run: RunRow, step: CommandRow | None, key: StepKey) -> Refused:
    if step is None and (key.run, key.number) > (run.run, run.last_number):
        return Refused(reason=Refusal.UNKNOWN)
    is_cancelled = step is not None and step.state == CANCELLED
    message = None if rules.is_closed(run) else wake(desk, run, again=True)
    desk.write()
    return Refused(reason=Refusal.CANCELLED if is_cancelled else Refusal.FINISHED, message=message)


def finish(
    desk: Desk,
    key: StepKey,
    outcome: StepCompleted | StepFailed,
    *,
    token: int | None,
    take_over: str | None,
    known: int,
) -> Finished:
    """See :meth:`Store.finish`."""
    run, step = desk.lock_command(key, mine=take_over or "")
    if run is None:
        return Finished(recorded=False)
    recorded_now, length = False, run.length
    is_open = step is not None and step.state in STEP_STATES
    if step is not None and is_open and (token is None or (step.state == StepState.CLAIMED and step.attempt == token)):
        is_cancelling = step.state == StepState.CANCELLING
        rules.forget_step(desk, run, step, mark=is_cancelling)
        if rules.is_needed(run, step.run) and not is_cancelling:
            desk.append(run, encode(outcome))
            recorded_now = True
    turn = message = None
    if not rules.is_closed(run) and rules.has_unread(run):
        if take_over is not None and not rules.is_held(desk, run, take_over):
            rules.grant(desk, run, take_over)
            turn = turn_of(desk, run, known, length)
            return Finished(recorded=recorded_now, turn=turn)
        message = wake(desk, run, again=not recorded_now)
    desk.write()
    return Finished(recorded=recorded_now, turn=turn, message=message)


def postpone(
    desk: Desk, key: StepKey, owner: str, *, delay: float | None, error: str, retries: int | None, override: str | None
) -> bool:
    """See :meth:`Store.postpone`."""
    run, step = desk.lock_command(key)
    if run is None or step is None or step.state != StepState.CLAIMED or step.owner != owner:
        return False
    step.owner, step.error, step.override = None, storable(error), override or step.override
    step.retries = step.retries if retries is None else retries
    desk.put(step)
    if delay is None:
        step.state = StepState.WAITING
        if not rules.is_needed(run, step.run):
            # Nobody waits for what somebody outside may tell.
            rules.forget_step(desk, run, step)
    else:
        step.state, step.sends = StepState.PENDING, 0
        step.not_before = step.due_at = desk.now + milliseconds(delay)
        rules.limit(desk, run, step, over=("attempt", "heartbeat"))
    desk.write()
    return True
