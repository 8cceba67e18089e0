"""A memory store that looks at its own answers: what may be given, to whom, and when.

The monitor sees what was written. It does not see that somebody was given what is in other hands, because the fences
make that harmless, most of the time. So each verb that gives something is held against the state right before it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from durable_celery.events import Event, StepCompleted, StepFailed, StepScheduled
from durable_celery.store.memory import MemoryStore
from durable_celery.store.memory_tables import Run, milliseconds, place_of
from durable_celery.store.protocol import (
    Claim,
    Committed,
    Finished,
    Lease,
    NewRun,
    Refused,
    Started,
    StepKey,
    Turn,
)

__all__ = ["RuledStore"]


class _Hold(NamedTuple):
    """Who had a run right before a call."""

    owner: str | None
    lived: bool
    delivered: bool


class RuledStore(MemoryStore):
    """The memory store, with the rules of the protocol held against each of its answers."""

    def __init__(self, *settings: Any) -> None:
        super().__init__(*settings)
        #: What was found wrong.
        self.found: list[str] = []
        #: Newest token of each run and step, by its text.
        self._newest: dict[str, int] = defaultdict(int)
        #: When the next attempt of a step may begin, by what its caller asked for.
        self._not_before: dict[StepKey, int] = {}

    def start(self, new: NewRun) -> Started:
        """Rule 1: a child is started after its step stands in the log."""
        parent = StepKey.parse(new.parent or "")
        if parent is not None and not _is_scheduled(self.run_table.get(parent.workflow_id), parent):
            self.found.append(f"rule 1: child {new.workflow_id} is started, and its parent's log knows nothing of it")
        return super().start(new)

    def take(self, workflow_id: str, owner: str, *, known: int) -> Turn | Refused:
        """See :meth:`_check_lease`."""
        before = self._hold_of(workflow_id)
        answer = super().take(workflow_id, owner, known=known)
        if isinstance(answer, Turn):
            self._check_lease(before, answer)
        return answer

    def finish(self, key: StepKey, outcome: StepCompleted | StepFailed, **options: Any) -> Finished:
        """See :meth:`_check_lease`."""
        before = self._hold_of(key.workflow_id)
        answer = super().finish(key, outcome, **options)
        if answer.turn is not None:
            self._check_lease(before, answer.turn)
        return answer

    def claim(
        self, key: StepKey, owner: str, *, progress: str | None = None, known: int | None = None
    ) -> Claim | Refused:
        """Rules 5 and 8: an attempt is given to one at a time, under a new token, and not before its time."""
        run = self.run_table.get(key.workflow_id)
        step = run.steps.get(place_of(key)) if run else None
        holder = step.owner if step is not None else None
        lived = self._is_alive(holder)
        answer = super().claim(key, owner, progress=progress, known=known)
        if progress is not None:
            if isinstance(answer, Claim) and holder != owner:
                self.found.append(f"rule 5: a heartbeat of {owner} was taken for step {key}, which {holder} has")
            if isinstance(answer, Claim) and run is not None and not run.needs(key):
                self.found.append(f"rule 5: a heartbeat of {owner} was taken for step {key}, which nobody waits for")
            return answer
        if isinstance(answer, Claim):
            self._check_token(str(key), answer.token, is_new=holder != owner)
            if lived and holder != owner:
                self.found.append(f"rule 5: step {key} was claimed from its living owner {holder}")
            if self.clock() < self._not_before.get(key, 0):
                self.found.append(f"rule 8: step {key} was claimed before its time")
            self._check_hands(("step", key.workflow_id, place_of(key)), owner)
        return answer

    def commit(self, lease: Lease, outputs: Sequence[Event], **given: Any) -> Committed:
        """Rule 5: a step that begins with its commit is claimed as any other."""
        answer = super().commit(lease, outputs, **given)
        if answer.begun:
            run = self.run_table[lease.workflow_id].record.run
            key = StepKey(workflow_id=lease.workflow_id, run=run, number=given["begin"])
            self._check_token(str(key), 1, is_new=True)
            self._check_hands(("step", key.workflow_id, place_of(key)), lease.owner)
        return answer

    def postpone(self, key: StepKey, owner: str, *, delay: float | None, error: str, **changes: Any) -> bool:
        """Note when the next attempt may begin, for rule 8."""
        answer = super().postpone(key, owner, delay=delay, error=error, **changes)
        if answer and delay is not None:
            self._not_before[key] = self.clock() + milliseconds(delay)
        return answer

    def release(self, workflow_id: str, owner: str, *, delay: float, reason: str = "") -> None:
        """I8: the code of the simulation is right, so no run is ever blocked."""
        if reason:
            self.found.append(f"I8: {workflow_id} is blocked: {reason}")
        super().release(workflow_id, owner, delay=delay, reason=reason)

    def renew(self, owners: Sequence[str], gone: Sequence[str] = ()) -> tuple[str, ...]:
        """Rule 7: who is said to be gone is dead at once."""
        answer = super().renew(owners, gone)
        self.found += [f"rule 7: {process} is gone, and lives on" for process in gone if self._is_alive(process)]
        return answer

    # ----------------------------------------------------------------------------------------------------------------

    def _check_lease(self, before: _Hold | None, turn: Turn) -> None:
        """Rule 3: a run is given to one at a time, under a new token, and never after its end was delivered."""
        name, owner = turn.lease.workflow_id, turn.lease.owner
        assert before is not None
        self._check_token(name, turn.lease.token, is_new=before.owner != owner)
        if before.lived and before.owner != owner:
            self.found.append(f"rule 3: the lease of {name} was taken from its living owner {before.owner}")
        if before.delivered:
            self.found.append(f"I9: {name} is given out again after its end was delivered")
        self._check_hands(("run", name, 0), owner)

    def _check_hands(self, entry: tuple[str, str, int], owner: str) -> None:
        """I15: what was given out is in its owner's hands, and in the agenda no more."""
        kind, name, number = entry
        if entry in self.agenda:
            self.found.append(f"I15: {kind} {number} of {name} is in {owner}'s hands and in the agenda")
        if (name, number) not in self.held.get(owner.partition("#")[0], ()):
            self.found.append(f"I15: {kind} {number} of {name} was given to {owner}, who is not known to have it")

    def _check_token(self, name: str, token: int, *, is_new: bool) -> None:
        """I4: each lease and each claim has a greater token; one that is asked for again has the same."""
        newest = self._newest[name]
        if token != newest and not (is_new and token > newest):
            self.found.append(f"I4: {name} is given out under token {token} after {newest}")
        elif is_new and token == newest:
            self.found.append(f"I4: {name} is given out twice under token {token}")
        self._newest[name] = token

    def _hold_of(self, workflow_id: str) -> _Hold | None:
        run = self.run_table.get(workflow_id)
        if run is None:
            return None
        return _Hold(run.record.owner, self._is_alive(run.record.owner), run.record.delivered)


def _is_scheduled(run: Run | None, key: StepKey) -> bool:
    if run is None:
        return False
    log = run.log if run.record.run == key.run else run.past.get(key.run, [])
    return any(isinstance(item.event, StepScheduled) and item.event.number == key.number for item in log)
