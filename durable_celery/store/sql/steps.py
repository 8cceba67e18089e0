"""The longer verbs in the life of a step: its claim and its finish."""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable_celery.events import StepCompleted, StepFailed, encode
from durable_celery.store.protocol import Claim, Finished, Refusal, Refused, StepKey, StepState
from durable_celery.store.sql import rules
from durable_celery.store.sql.rules import CANCELLED, TIMER, wake
from durable_celery.store.sql.runs import turn_of
from durable_celery.store.sql.tables import CommandRow, RunRow, process_of

if TYPE_CHECKING:
    from durable_celery.store.sql.desk import Desk

__all__ = ["STEP_STATES", "claim", "finish"]

#: States of commands that are open steps.
STEP_STATES = frozenset(StepState)


def claim(desk: Desk, key: StepKey, owner: str) -> Claim | Refused:
    """See :meth:`Store.claim`."""
    run, step = desk.lock_command(key.workflow_id, key.number, mine=owner)
    if run is None or key.run > run.run:
        return Refused(reason=Refusal.UNKNOWN)
    if step is None or step.state in {TIMER, CANCELLED} or key.run < run.run:
        return _refuse_step(desk, run, step, key.number)
    if step.state in {StepState.CHILD, StepState.CANCELLING}:
        return Refused(reason=Refusal.HELD)
    if step.state == StepState.CLAIMED and step.owner != owner:
        if desk.is_alive(process_of(step.owner or "")):
            return Refused(reason=Refusal.HELD)
        rules.free_step(desk, step)
    if step.state == StepState.PENDING:
        if step.not_before > desk.now:
            return Refused(reason=Refusal.EARLY)
        desk.join(process_of(owner))
        step.state, step.owner, step.attempt = StepState.CLAIMED, owner, step.attempt + 1
        step.not_before, step.sends, step.due_at = 0, 0, None
        desk.put(step)
    desk.write()
    return Claim(
        key=key,
        token=step.attempt,
        owner=owner,
        attempt=step.attempt,
        lost=step.lost,
        retries=step.retries,
        scheduled=rules.scheduled_step(desk, step),
        override=step.override,
    )


def _refuse_step(desk: Desk, run: RunRow, step: CommandRow | None, number: int) -> Refused:
    if step is None and number > run.last_number:
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
    run, step = desk.lock_command(key.workflow_id, key.number, mine=take_over or "")
    if run is None:
        return Finished(recorded=False)
    recorded_now, length = False, run.length
    is_open = step is not None and step.state in STEP_STATES and key.run == run.run
    if step is not None and is_open and (token is None or (step.state == StepState.CLAIMED and step.attempt == token)):
        is_cancelling = step.state == StepState.CANCELLING
        rules.forget_step(desk, run, step, mark=is_cancelling)
        if not rules.is_closed(run) and not is_cancelling:
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
