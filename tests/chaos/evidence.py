"""What is known when all is over: the operations of all processes, and the final state of the store."""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import Any

from durable_celery.events import Event, Recorded, RunCancelled, RunCompleted, RunFailed, StepScheduled
from durable_celery.policy import RetryPolicy
from durable_celery.store.protocol import StepKey
from durable_celery.workflow import Definition
from tests.chaos.operations import Operation, Phase
from tests.store.invariants import Snapshot

#: A run, or one step of a run.
Place = tuple[str, int | None]


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call and, if it came, its answer."""

    asked: Operation
    answer: Operation | None

    @property
    def verb(self) -> str:
        return self.asked.verb

    @property
    def workflow(self) -> str:
        return self.asked.workflow

    @property
    def place(self) -> Place:
        return self.asked.workflow, self.asked.step

    @property
    def phase(self) -> Phase:
        """OK or FAIL where that is known, else INFO: a process that was killed had no time to write."""
        return Phase.INFO if self.answer is None else self.answer.phase

    @property
    def is_ok(self) -> bool:
        return self.phase is Phase.OK

    @property
    def may_have_happened(self) -> bool:
        return self.phase is not Phase.FAIL

    @property
    def data(self) -> Mapping[str, Any]:
        """What the answer says; empty without one."""
        return self.answer.data if self.answer else {}

    def get(self, name: str) -> Any:
        """Return what the call asked under a name."""
        return self.asked.data.get(name)

    @property
    def granted(self) -> int | None:
        """Token of the lease, or attempt of the claim, that the answer gave."""
        gives = self.verb in {"take", "claim", "finish"} and self.is_ok
        return self.answer.token if gives and self.answer is not None else None

    @property
    def reads(self) -> list[tuple[int, str]]:
        """The events that the answer showed: seq and fingerprint."""
        return [(seq, text) for seq, text in self.data.get("events", ())]

    def __str__(self) -> str:
        step = "" if self.asked.step is None else f" step {self.asked.step}"
        return f"{self.verb} of {self.workflow}{step} by {self.asked.process} call {self.asked.call} ({self.phase})"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All files, read, with the final state of a store that nobody uses any more."""

    operations: Sequence[Operation]
    state: Snapshot
    #: Finds the code of a workflow, for cold replays; without it none is made.
    code: Callable[[str], Definition] | None = None
    #: What runs must return, by id, and which may have been cancelled instead.
    results: Mapping[str, Any] = field(default_factory=dict)
    cancelled: frozenset[str] = frozenset()
    #: How many steps, child runs included, a run must have scheduled in the end, by id.
    steps: Mapping[str, int] = field(default_factory=dict)
    #: How many lost processes a step without a policy survives: `durable_lost_attempts`.
    lost_attempts: int = 5
    #: Latest allowed firing of a timer after its due time, in seconds; None where servers were away.
    timer_lateness: float | None = None

    @cached_property
    def calls(self) -> list[Call]:
        """All calls with their answers, in the order in which they were asked."""
        answers = {op.key: op for op in self.operations if op.phase is not Phase.INVOKE}
        asked = [op for op in self.operations if op.phase is Phase.INVOKE]
        return [Call(asked=op, answer=answers.get(op.key)) for op in asked]

    @cached_property
    def by_run(self) -> dict[str, list[Call]]:
        """The calls that are about each run or its steps, in their order."""
        groups: dict[str, list[Call]] = defaultdict(list)
        for call in self.calls:
            groups[call.workflow].append(call)
        return groups

    def of(self, *verbs: str) -> Iterable[Call]:
        """Return the calls of some verbs."""
        return (call for call in self.calls if call.verb in verbs)

    def grouped(self, calls: Iterable[Call]) -> dict[Place, list[Call]]:
        """Return calls by the run or step that they are about."""
        groups: dict[Place, list[Call]] = defaultdict(list)
        for call in calls:
            groups[call.place].append(call)
        return groups

    def histories(self) -> Iterable[tuple[str, list[Recorded]]]:
        """Return each run's id and history."""
        return self.state.histories.items()

    def is_worn_out(self, payload: str | None) -> bool:
        """Whether a failure is that of a step whose task began `lost_attempts` times, and no end of it was recorded.

        A process that was paused for longer than its lease may bring it to an end, but too late.
        """
        named = re.search(r"step (\S+) lost its process", payload or "") if "StepLostError" in (payload or "") else None
        key = StepKey.parse(named[1]) if named else None
        if key is None:
            return False
        place = key.workflow_id, key.number
        begun = [call.asked.token for call in self.of("execute") if call.place == place]
        recorded = (call for call in self.of("finish") if call.place == place and call.data.get("recorded"))
        return len(begun) >= self.lost_attempts and not any(call.asked.token in begun for call in recorded)

    def limits(self) -> dict[Place, int | None]:
        """Return how many attempts each step may have, None for any number."""
        found: dict[Place, int | None] = {}
        for name, history in self.histories():
            for event in events_of(history):
                if isinstance(event, StepScheduled):
                    form = (event.options or {}).get("retry")
                    limit = RetryPolicy.from_json(form).maximum_attempts if form else self.lost_attempts
                    found[name, event.number] = limit or None
        return found


def after(calls: Iterable[Call], value: Callable[[Call], int]) -> Iterator[tuple[Call, tuple[int, Call]]]:
    """Give each answered call with the greatest value among those that had their answer before it was asked."""
    answered = [(call.answer.at, call) for call in calls if call.answer is not None]
    waiting = deque(sorted(answered, key=itemgetter(0)))
    greatest: tuple[int, Call] | None = None
    for _, call in sorted(answered, key=lambda pair: pair[1].asked.at):
        while waiting and waiting[0][0] < call.asked.at:
            earlier = waiting.popleft()[1]
            if greatest is None or value(earlier) > greatest[0]:
                greatest = value(earlier), earlier
        if greatest is not None:
            yield call, greatest


def events_of(history: Iterable[Recorded]) -> list[Event]:
    """Return the events of a history without their places."""
    return [item.event for item in history]


def ends(history: Sequence[Recorded]) -> list[int]:
    """Return the seqs of the terminal events of a history."""
    return [item.seq for item in history if isinstance(item.event, RunCompleted | RunFailed | RunCancelled)]
