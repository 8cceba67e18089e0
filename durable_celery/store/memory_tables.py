"""What the memory store keeps, and the moves that its verbs share: histories, wake-ups, open steps, owners.

The verbs themselves stand in :mod:`durable_celery.store.memory`.

Invariant, between two verbs: each open thing (a run that has something to do, a step without an outcome) is in exactly
one of two places, the agenda or the hands of a known process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from threading import RLock
from typing import Any

from durable_celery.events import (
    CARRIED,
    CommandCancelled,
    Event,
    Output,
    Recorded,
    RunCancelled,
    RunCompleted,
    RunContinued,
    RunFailed,
    RunStarted,
    StepScheduled,
    TimerStarted,
)
from durable_celery.store.limits import ATTEMPT_OVER, Limits
from durable_celery.store.protocol import (
    Lease,
    Refusal,
    Refused,
    RunMessage,
    RunRecord,
    RunStatus,
    StepKey,
    StepState,
    Timing,
    Turn,
)

__all__ = ["PAGE", "OpenStep", "Run", "Tables", "key_of", "milliseconds", "place_of", "wall_clock"]

#: Most events in one answer.
PAGE = 200
_CLOSING = {RunCompleted: RunStatus.COMPLETED, RunFailed: RunStatus.FAILED, RunCancelled: RunStatus.CANCELLED}
_LONGEST_BACKOFF = 60
#: Commands of all runs of a workflow stand in the same tables, by their *place*: so much lies between two runs.
_SPAN = 1_000_000_000


def wall_clock() -> int:
    """Return the time of this machine in ms since 1970."""
    return time.time_ns() // 1_000_000


def milliseconds(seconds: float) -> int:
    """Return a duration in the unit of the tables."""
    return round(seconds * 1000)


def place_of(key: StepKey) -> int:
    """Return a command's place in the tables: its number, in the first run."""
    return (key.run - 1) * _SPAN + key.number


def key_of(workflow_id: str, place: int) -> StepKey:
    """Return the run and the number of a command from its place."""
    return StepKey(workflow_id=workflow_id, run=place // _SPAN + 1, number=place % _SPAN)


@dataclass(slots=True, kw_only=True)
class OpenStep:
    """A step without an outcome."""

    scheduled: StepScheduled
    state: StepState = StepState.PENDING
    attempt: int = 0
    lost: int = 0
    owner: str | None = None
    retries: int = 0
    override: str | None = None
    error: str | None = None
    #: When the next attempt may begin (ms since 1970); 0 is at once.
    not_before: int = 0
    #: How often its message was sent since something last happened to it.
    sends: int = 1
    #: What the last heartbeat saved.
    progress: str | None = None
    limits: Limits | None = None
    #: Limit -> when it passes (ms since 1970): those that run now.
    ends: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Run:
    """A run with all that belongs to it."""

    #: The store's own, which changes in place; whoever asks for it gets a copy.
    record: RunRecord
    digest: str
    log: list[Recorded] = field(default_factory=list)
    #: The logs of earlier runs, by their numbers.
    past: dict[int, list[Recorded]] = field(default_factory=dict)
    #: When the last of them goes (ms since 1970).
    past_until: int = 0
    #: Token of the turn that ended the one before it; 0 for the first.
    begun: int = 0
    #: By their places, as everything that names a command.
    steps: dict[int, OpenStep] = field(default_factory=dict)
    #: Places of steps that the workflow cancelled.
    cancelled: set[int] = field(default_factory=set)
    #: Keys of the inputs that were accepted.
    keys: set[str] = field(default_factory=set)
    woken: bool = False
    #: How often its message was sent since something last happened to it.
    sends: int = 1
    cancel_requested: bool = False

    def place(self, number: int) -> int:
        """Return the place of a command of the newest run."""
        return place_of(StepKey(workflow_id=self.record.workflow_id, run=self.record.run, number=number))

    def update(self, **changes: Any) -> None:
        """Change fields of the record."""
        for name, value in changes.items():
            # Each verb changes some: new records would take most of its time.
            object.__setattr__(self.record, name, value)

    def needs(self, key: StepKey) -> bool:
        """Whether the outcome of a step may still matter to somebody."""
        return key.run == self.record.run and not self.record.status.is_closed

    @property
    def has_unread(self) -> bool:
        """Whether there is something to do: events to read, or an end to deliver."""
        return not self.record.delivered if self.record.status.is_closed else len(self.log) > self.record.read

    @property
    def last_number(self) -> int:
        """The number of the newest command."""
        return max((item.event.number for item in self.log if isinstance(item.event, Output)), default=0)


class Tables:
    """The state of a store, under one lock."""

    def __init__(self, timing: Timing = Timing(), clock: Callable[[], int] = wall_clock) -> None:  # noqa: B008 - frozen
        """Begin with nothing; ``clock`` returns ms since 1970."""
        self.timing, self.clock = timing, clock
        self.lock = RLock()
        self.run_table: dict[str, Run] = {}
        #: (kind, id, place of a command) -> due. Kinds: run, step, timer, deadline, owner, retention (of all, and of
        #: the logs of earlier runs by their numbers below 0, so that they go first).
        self.agenda: dict[tuple[str, str, int], int] = {}
        #: process -> {(workflow_id, place of a step or 0 for the lease)}
        self.held: dict[str, set[tuple[str, int]]] = {}

    # -- histories ---------------------------------------------------------------------------------------------------

    def _append(self, run: Run, event: Event, at: int | None = None) -> None:
        run.log.append(Recorded(seq=len(run.log) + 1, at=self.clock() if at is None else at, event=event))
        run.update(length=len(run.log))

    def _follow(self, run: Run, event: Event) -> None:
        """Do what an output event entails outside the history."""
        workflow_id, now = run.record.workflow_id, self.clock()
        match event:
            case StepScheduled():
                number = run.place(event.number)
                run.steps[number] = OpenStep(scheduled=event, limits=Limits.of(event.options))
                self.agenda["step", workflow_id, number] = now + self._wait(0)
                self._limit(run, number, "whole", "start")
            case TimerStarted(due_at=due_at):
                self.agenda["timer", workflow_id, run.place(event.number)] = due_at
            case CommandCancelled():
                target = run.place(event.target)
                self.agenda.pop(("timer", workflow_id, target), None)
                self._cancel_step(run, target)
            case RunCompleted() | RunFailed() | RunCancelled():
                run.update(status=_CLOSING[type(event)], closed_at=now, waiting="")
                self._close(run)
            case _:
                pass

    def _close(self, run: Run) -> None:
        """Drop what means nothing to a closed run: timers, deadlines, outcomes that come from children or outside.

        Steps that were not cancelled are still executed; children that are to be cancelled are still told.
        """
        for kind, name, number in list(self.agenda):
            if kind in {"timer", "deadline"} and name == run.record.workflow_id:
                del self.agenda[kind, name, number]
        run.cancelled.clear()
        told_outside = {StepState.CHILD, StepState.WAITING}
        for number in [number for number, step in run.steps.items() if step.state in told_outside]:
            self._forget_step(run, number)

    def _continue(self, run: Run, end: RunContinued, unseen: Sequence[Recorded]) -> None:
        """Set the log aside and begin that of the next run, with the inputs that no code has taken; wake it."""
        record = run.record
        self._close(run)
        inputs = [run.log[seq - 1].event for seq in end.kept]
        inputs += [item.event for item in unseen if isinstance(item.event, CARRIED)]
        until = self.clock() + milliseconds(self.timing.retention)
        self.agenda["retention", record.workflow_id, -record.run] = until
        run.past_until, run.begun = max(run.past_until, until), record.token
        run.past[record.run], run.log = run.log, []
        run.update(run=record.run + 1, read=0, status=RunStatus.RUNNING, waiting="", failures=0, reason="")
        started = RunStarted(
            payload=end.payload, name=record.name, version=end.version, format=end.format, parent=record.parent
        )
        self._append(run, started)
        for event in inputs:
            self._append(run, event)
        self._give_back(run)
        self._wake(run)

    # -- open steps --------------------------------------------------------------------------------------------------

    def _limit(self, run: Run, number: int, *begun: str, over: tuple[str, ...] = ()) -> None:
        """Let limits of a step begin anew, or be over, and arm its one alarm at the nearest of those that run.

        Where nobody waits for its outcome it has no limits any more: its alarm went with its run.
        """
        step, entry = run.steps[number], ("deadline", run.record.workflow_id, number)
        if step.limits is None or not run.needs(key_of(run.record.workflow_id, number)):
            return
        for kind in over:
            step.ends.pop(kind, None)
        for kind in begun:
            if (limit := getattr(step.limits, kind)) is not None:
                step.ends[kind] = self.clock() + limit
        if step.ends:
            self.agenda[entry] = min(step.ends.values())
        else:
            self.agenda.pop(entry, None)

    def _cancel_step(self, run: Run, number: int) -> None:
        step = run.steps.get(number)
        if step is None:
            return
        run.cancelled.add(number)
        if step.scheduled.kind == "workflow":
            # The child may exist although nobody has said so yet: it is told in any case.
            step.state, step.sends = StepState.CANCELLING, 0
            self.agenda["step", run.record.workflow_id, number] = self.clock()
            self.agenda.pop(("deadline", run.record.workflow_id, number), None)
        else:
            self._forget_step(run, number)

    def _forget_step(self, run: Run, number: int) -> None:
        step, workflow_id = run.steps.pop(number), run.record.workflow_id
        self.agenda.pop(("step", workflow_id, number), None)
        self.agenda.pop(("deadline", workflow_id, number), None)
        if step.owner:
            self._drop(step.owner, workflow_id, number)

    def _refuse_step(self, run: Run, key: StepKey) -> Refused:
        is_cancelled = place_of(key) in run.cancelled
        if key.run == run.record.run and not is_cancelled and key.number > run.last_number:
            return Refused(reason=Refusal.UNKNOWN)
        reason = Refusal.CANCELLED if is_cancelled else Refusal.FINISHED
        return Refused(reason=reason, message=None if run.record.status.is_closed else self._wake(run, again=True))

    # -- wake-ups ----------------------------------------------------------------------------------------------------

    def _message(self, run: Run) -> RunMessage:
        record = run.record
        return RunMessage(
            workflow_id=record.workflow_id,
            name=record.name,
            envelope=record.envelope,
            created_at=record.created_at,
            first=record.token == 0,
        )

    def _wake(self, run: Run, *, again: bool = False) -> RunMessage | None:
        """Mark the run woken if it has something to do and nobody sees to it; ``again``: also if it was marked."""
        if run.record.owner is not None and not self._is_alive(run.record.owner):
            self._free_lease(run)
        if not run.has_unread or run.record.owner is not None or (run.woken and not again):
            return None
        if not run.woken:
            run.woken, run.sends = True, 1
            self.agenda["run", run.record.workflow_id, 0] = self.clock() + self._wait(0)
        return self._message(run)

    def _rearm(self, run: Run, delay: float) -> None:
        run.woken, run.sends = True, 0
        self.agenda["run", run.record.workflow_id, 0] = self.clock() + milliseconds(delay)

    def _wait(self, sends: int) -> int:
        """Return the wait before the next send of a message that was sent ``sends`` times."""
        return milliseconds(min(self.timing.resend_after * 2 ** min(sends, 30), self.timing.resend_limit))

    # -- owners ------------------------------------------------------------------------------------------------------

    def _is_alive(self, owner: str | None) -> bool:
        return owner is not None and self.agenda.get(("owner", _process(owner), 0), 0) > self.clock()

    def _is_held(self, run: Run, owner: str) -> bool:
        """Whether a live owner other than ``owner`` has the run's lease."""
        return run.record.owner not in {None, owner} and self._is_alive(run.record.owner)

    def _hold(self, owner: str, workflow_id: str, number: int) -> None:
        """Put a thing into a process's hands; one that had expired has lost what it held before, and lives again."""
        process = _process(owner)
        if not self._is_alive(owner):
            self._free(process)
            self.agenda["owner", process, 0] = self.clock() + milliseconds(self.timing.owner_ttl)
        self.held.setdefault(process, set()).add((workflow_id, number))

    def _drop(self, owner: str, workflow_id: str, number: int) -> None:
        process = _process(owner)
        held = self.held.get(process, set())
        held.discard((workflow_id, number))
        if not held:
            self.held.pop(process, None)

    def _lease(self, run: Run, owner: str, known: int) -> Turn:
        """Give the lease under a new token; a repeated call of the same owner finds what it was given."""
        workflow_id = run.record.workflow_id
        if run.record.owner != owner:
            if run.record.owner is not None:
                self._free_lease(run)
            self._hold(owner, workflow_id, 0)
            run.woken = False
            run.update(token=run.record.token + 1, owner=owner)
            self.agenda.pop(("run", workflow_id, 0), None)
        lease = Lease(workflow_id=workflow_id, token=run.record.token, owner=owner)
        return Turn(lease=lease, run=replace(run.record), events=tuple(run.log[known : known + PAGE]), now=self.clock())

    def _give_back(self, run: Run) -> None:
        assert run.record.owner is not None  # noqa: S101 - callers checked the lease
        self._drop(run.record.owner, run.record.workflow_id, 0)
        run.update(owner=None)

    def _free(self, process: str) -> None:
        """Give back all that a dead process held, and forget the process."""
        self.agenda.pop(("owner", process, 0), None)
        for workflow_id, number in sorted(self.held.pop(process, set())):
            run = self.run_table[workflow_id]
            if number:
                self._free_step(run, number)
            else:
                self._free_lease(run)

    def _free_step(self, run: Run, number: int, error: str = "the process that ran it was lost") -> None:
        step = run.steps[number]
        if step.owner:
            self._drop(step.owner, run.record.workflow_id, number)
        step.state, step.owner, step.sends, step.not_before = StepState.PENDING, None, 0, 0
        step.error = error
        if error != ATTEMPT_OVER:
            step.lost = step.lost + 1
        self.agenda["step", run.record.workflow_id, number] = self.clock()
        self._limit(run, number, over=("attempt", "heartbeat"))

    def _free_lease(self, run: Run) -> None:
        self._give_back(run)
        failures = run.record.failures + 1
        run.update(failures=failures, reason="the process that ran its turn was lost")
        # The first loss is made good at once; a turn that kills its process again and again must not spin.
        self._rearm(run, 0 if failures == 1 else min(2.0 ** min(failures - 2, 30), _LONGEST_BACKOFF))


def _process(owner: str) -> str:
    """Return the process part of an owner text ``<process>#<call>``."""
    return owner.partition("#")[0]
