"""What must be true of a world, by the numbers of the project's list of invariants.

``check`` may be called at any time, ``check_at_rest`` when nothing will happen any more. What is true of the store
alone (I1, I2, I3, I6, I9, I15 between two verbs) is checked by the store's own suite, and asked for here as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from durable_celery.codec import RESERVED
from durable_celery.engine import child_id
from durable_celery.errors import NonDeterminismError
from durable_celery.events import (
    CancelRequested,
    CommandCancelled,
    Recorded,
    RunCancelled,
    RunFailed,
    RunStarted,
    SignalReceived,
    StepCompleted,
    StepFailed,
    StepScheduled,
    TimerFired,
    TimerStarted,
)
from durable_celery.policy import RetryPolicy
from durable_celery.store.protocol import RunStatus, StepKey
from durable_celery.testing.world import World
from durable_celery.workflow import Note, read_note, replay
from tests.store.invariants import carried, check_invariants


def check(world: World) -> None:
    """Assert what holds at any time."""
    check_invariants(world.store)
    found = [*fenced(world), *nothing_after_a_cancel(world), *starts_are_kept(world)]
    _assert_none(world, [*found, *signals_enter_once(world), *timers(world)])


def check_at_rest(world: World, *, open_runs: bool = False) -> None:
    """Assert what holds when nothing will happen any more."""
    check(world)
    found = [*attempts(world), *replays(world), *cancels(world), *converged(world), *updates(world)]
    _assert_none(world, found if open_runs else [*found, *all_ended(world)])


def _assert_none(world: World, violations: list[str]) -> None:
    assert not violations, "\n".join([*violations, world.story()])


def fenced(world: World) -> Iterator[str]:
    """I4: nothing was written under a token after a newer one was given out."""
    for write in world.watch.stale_writes:
        yield f"I4: {write}"


def runs_of(world: World) -> Iterator[tuple[str, int, list[Recorded]]]:
    """Yield each run: its workflow id, its number, its history."""
    for name in world.store.run_table:
        for run, history in world.histories(name).items():
            yield name, run, history


def nothing_after_a_cancel(world: World) -> Iterator[str]:
    """I3: no outcome is recorded of a step that the workflow has cancelled."""
    for name, _, history in runs_of(world):
        cancelled: set[int] = set()
        for item in history:
            match item.event:
                case CommandCancelled(target=target):
                    cancelled.add(target)
                case StepCompleted(number=number) | StepFailed(number=number) if number in cancelled:
                    yield f"I3: step {number} of {name} was cancelled and has an outcome"
                case _:
                    pass


def starts_are_kept(world: World) -> Iterator[str]:
    """I5: a start that was acknowledged is there."""
    for name in world.acknowledged:
        if name not in world.store.run_table:
            yield f"I5: {name} was acknowledged and is not there"


def updates(world: World) -> Iterator[str]:
    """Each update has one outcome at most, or one refusal."""
    for name in world.store.run_table:
        notes = [note for item in world.history(name) if (note := read_note(item.event)) is not None]
        keys = [key for kind, key in notes if kind in {Note.UPDATED, Note.REFUSED}]
        if len(keys) > len(set(keys)):
            yield f"updates: {name} has more than one outcome of an update: {keys}"


def all_ended(world: World) -> Iterator[str]:
    """I5: each run has ended, and its end was delivered."""
    delivered = Counter(name for name, _ in world.deliveries)
    for name in world.store.run_table:
        record = world.record(name)
        if not (record.status.is_closed and record.delivered and delivered[name]):
            yield f"I5: {name} is {record.status}, delivered {record.delivered}, {delivered[name]} times"


def signals_enter_once(world: World) -> Iterator[str]:
    """I10: each signal that was acknowledged is in the history once, in the order in which it was sent.

    What a run passes on to the next is in both.
    """
    for name in world.store.run_table:
        if name.startswith(RESERVED):
            # Steps send them, which do so again when they are not sure.
            continue
        events = [item.event for item in inputs_of(world, name)]
        entered = [(e.name, world.codec.decode(e.payload)) for e in events if isinstance(e, SignalReceived)]
        sent = [(signal, value) for run, signal, value in world.signals if run == name]
        # One whose client has no answer yet may have entered.
        if entered[: len(sent)] != sent or len(entered) > len(sent) + 1:
            yield f"I10: {name} was sent {sent} and has {entered}"


def inputs_of(world: World, name: str) -> Iterator[Recorded]:
    """Yield the events of all runs of a workflow in their order, those that a run got from the one before once."""
    passed_on = 0
    for history in world.histories(name).values():
        yield from [*history[:1], *history[1 + passed_on :]]
        passed_on = len(carried(history))


def timers(world: World) -> Iterator[str]:
    """I11: no timer fires before its time."""
    for name, _, history in runs_of(world):
        due = {0: 0}
        for item in history:
            match item.event:
                case RunStarted(start_at=int(start_at)):
                    due[0] = start_at
                case TimerStarted(number=number, due_at=due_at):
                    due[number] = due_at
                case TimerFired(number=number) if item.at < due[number]:
                    yield f"I11: timer {number} of {name} fired at {item.at}, due {due[number]}"
                case _:
                    pass


def attempts(world: World) -> Iterator[str]:
    """I12: a step is executed no more often than it was claimed, and no more often than its policy allows."""
    for name, run, history in runs_of(world):
        for item in history:
            if not isinstance(item.event, StepScheduled):
                continue
            key = f"{name}/{run}.{item.event.number}"
            form = (item.event.options or {}).get("retry")
            limit = RetryPolicy.from_json(form).maximum_attempts if form else world.lost_attempts
            executed, claimed = world.executions[key], world.watch.claims[key]
            if executed > min(claimed, limit or claimed):
                yield f"I12: {key} was executed {executed} times, claimed {claimed} times, its limit is {limit}"


def replays(world: World) -> Iterator[str]:
    """I8: a cold replay of each history gives the commands that are recorded, and no other."""
    for name, run, history in runs_of(world):
        record = world.record(name)
        if record.name not in world.tasks or record.status is RunStatus.BLOCKED:
            continue
        started = history[0].event
        assert isinstance(started, RunStarted)
        try:
            definition = world.definition(record.name, started.version)
            execution = replay(definition, name, history, world.codec, run=run)
        except NonDeterminismError as error:
            yield f"I8: {error}"
            continue
        if outputs := execution.take_outputs():
            yield f"I8: a cold replay of {name}, run {run}, goes on with {outputs}"
        execution.evict()


def cancels(world: World) -> Iterator[str]:
    """I13: each child whose parent does not want it any more has the request, or has ended."""
    for name, run, history in runs_of(world):
        for key, id in _cancelled_children(name, run, history):  # noqa: A001 - Celery's word
            child = world.store.run_table.get(id)
            asked = child and any(isinstance(item.event, CancelRequested) for item in inputs_of(world, id))
            is_ours = child is None or child.record.parent == key
            if is_ours and not (asked or (child and child.record.status.is_closed)):
                yield f"I13: child {id} of {name}, run {run}, was cancelled and knows nothing of it"
        asked_for = any(isinstance(item.event, CancelRequested) for item in history)
        if isinstance(history[-1].event, RunCancelled) and not asked_for and not _is_expired(history):
            yield f"I13: {name} is cancelled, and nobody asked for it"


def _cancelled_children(name: str, run: int, history: list[Recorded]) -> Iterator[tuple[str, str]]:
    """Yield the step and the id of each child that was cancelled."""
    unwanted = {item.event.target for item in history if isinstance(item.event, CommandCancelled)}
    for item in history:
        event = item.event
        if isinstance(event, StepScheduled) and event.kind == "workflow" and event.number in unwanted:
            key = StepKey(workflow_id=name, run=run, number=event.number)
            yield str(key), child_id(event, key)


def _is_expired(history: list[Recorded]) -> bool:
    expires_at = getattr(history[0].event, "expires_at", None)
    return expires_at is not None and history[-1].at >= expires_at


def converged(world: World) -> Iterator[str]:
    """I15: nothing is held, and nothing is due but the retention of what has ended."""
    if world.store.held:
        yield f"I15: held at rest: {world.store.held}"
    if world.pending:
        yield f"I15: due at rest: {world.pending}"
    for process in world.processes:
        if not process.engine.patience.is_idle:
            yield f"I15: {process.name} still waits for the store"


def failed(world: World) -> list[str]:
    """Return the ids of the runs that failed."""
    return [name for name in world.store.run_table if isinstance(world.history(name)[-1].event, RunFailed)]
