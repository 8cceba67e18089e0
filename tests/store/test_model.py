"""The memory store as the model of the others: both are driven by the same verbs and must answer the same.

Hypothesis invents the story. Time stands still but for the steps of the story, which are so long that the milliseconds
which pass on the real server do not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from durable_celery.errors import DurableError
from durable_celery.events import CARRIED, CancelRequested, Event, StepFailed
from durable_celery.policy import RetryPolicy
from durable_celery.store.protocol import Claim, Committed, Finishing, Lease, RunRecord, Store, Timing, Turn
from tests.databases import Database
from tests.servers import RedisServer
from tests.store.backends import Backend, MemoryBackend, RedisBackend, SqlBackend, server_client
from tests.store.invariants import check_invariants
from tests.store.moves import again, call, cancel, child, end, key, new, result, signal, step, timer

#: The unit of the story's time, in seconds.
UNIT = 5000.0
TIMING = Timing(owner_ttl=2 * UNIT, resend_after=2 * UNIT, resend_limit=10 * UNIT, retention=12 * UNIT)

#: Options of steps: the limits of their time, alone and together.
OPTIONS = [
    None,
    {"timeout": UNIT},
    {"start_timeout": UNIT, "queue": 'of "letters"'},
    {"attempt_timeout": UNIT, "retry": RetryPolicy(maximum_attempts=2).to_json()},
    {"heartbeat_timeout": UNIT, "timeout": 4 * UNIT},
    {"start_timeout": 2 * UNIT, "attempt_timeout": 2 * UNIT, "heartbeat_timeout": UNIT, "at_most_once": True},
]

#: What may differ: clocks.
CLOCKS = {"at", "now", "created_at", "closed_at", "due_at", "start_at", "expires_at"}

runs = st.sampled_from(["a", "b"])
processes = st.sampled_from(["p", "q"])
numbers_of_runs = st.sampled_from([1, 1, 2, 3])


def plain(answer: object) -> object:
    """Return an answer without the readings of clocks."""
    if is_dataclass(answer) and not isinstance(answer, type):
        named = {item.name: plain(getattr(answer, item.name)) for item in fields(answer) if item.name not in CLOCKS}
        return type(answer).__name__, tuple(named.items())
    if isinstance(answer, tuple | list):
        return tuple(map(plain, answer))
    return answer


class TwoStores(RuleBasedStateMachine):
    """A model, the store under test, and what clients and workers know of them."""

    #: Gives an empty store of the kind under test.
    make: Callable[[], Backend]

    def __init__(self) -> None:
        super().__init__()
        self.model = MemoryBackend(TIMING)
        self.real = type(self).make()
        self.clock = 0.0
        self.ends: dict[str, float] = {}
        self.leases: dict[str, tuple[Lease, int]] = {}
        self.claims: list[Claim] = []
        self.numbers: Counter[str] = Counter()

    def both(self, act: Callable[[Store], Any]) -> Any:
        """Do an act to both, compare the answers, return one of them."""
        answers: list[Any] = []
        for backend in (self.model, self.real):
            try:
                answers.append(act(backend.store))
            except DurableError as error:
                answers.append(type(error))
        assert plain(answers[0]) == plain(answers[1])
        return answers[1]

    def owner(self, process: str) -> str:
        """Return a new owner text of a process, which first renews its life if that has ended."""
        if self.ends.get(process, 0.0) <= self.clock:
            self.both(lambda store: store.renew([process]))
            self.ends[process] = self.clock + TIMING.owner_ttl
        return call(process)

    def record(self, name: str) -> RunRecord | None:
        return self.model.store.get(name)

    # No limit of a step ends at the very same time, which on a real clock is never the same.
    @rule(name=runs, delay=st.sampled_from([0.0, 0.9 * UNIT]), unsent=st.booleans())
    def start(self, name: str, delay: float, *, unsent: bool) -> None:
        if self.both(lambda store: store.start(new(name, delay=delay, unsent=unsent))).created:
            self.numbers[name] = 0

    @rule(names=st.lists(runs, max_size=3))
    def start_many(self, names: list[str]) -> None:
        given = [new(name, unsent=True) for name in names]
        for name, answer in zip(names, self.both(lambda store: store.start_all(given)), strict=True):
            if answer.created:
                self.numbers[name] = 0

    @rule(name=runs, signal_key=st.sampled_from(["1", "2", "3"]))
    def send(self, name: str, signal_key: str) -> None:
        self.both(lambda store: signal(store, name, signal_key))

    @rule(name=runs)
    def ask_to_cancel(self, name: str) -> None:
        self.both(lambda store: store.append(name, CancelRequested(), key="cancel"))

    @rule(name=runs, process=processes)
    def take(self, name: str, process: str) -> None:
        owner = self.owner(process)
        answer = self.both(lambda store: store.take(name, owner, known=0))
        if isinstance(answer, Turn):
            self.leases[name] = answer.lease, answer.run.length

    @precondition(lambda self: self.leases)
    @rule(
        data=st.data(),
        hold=st.booleans(),
        kinds=st.lists(st.sampled_from(["step", "step", "child", "timer", "cancel"]), max_size=3),
        ends=st.sampled_from([None, None, None, "end", "again", "again"]),
        twice=st.booleans(),
        begins=st.booleans(),
        options=st.sampled_from(OPTIONS),
    )
    def commit(
        self,
        data: st.DataObject,
        *,
        hold: bool,
        kinds: list[str],
        ends: str | None,
        twice: bool,
        begins: bool,
        options: Any,
    ) -> None:
        name = data.draw(st.sampled_from(sorted(self.leases)))
        lease, read = self.leases[name]
        kinds = [] if self._is_closed(name) else [*kinds, *filter(None, [ends])]
        outputs = [self._output(name, kind, options) for kind in kinds]
        begin = outputs[0].number if begins and kinds == ["step"] else None  # type: ignore[attr-defined]
        answers = [
            self.both(lambda store: store.commit(lease, outputs, read=read, waiting="x", hold=hold, begin=begin))
            for _ in range(1 + twice)
        ]
        if isinstance(answers[0], Committed):
            self.leases[name] = lease, answers[0].length
            if ends == "again":
                self.numbers[name] = 0
        else:
            del self.leases[name]

    def _output(self, name: str, kind: str, options: Any) -> Event:
        self.numbers[name] += 1
        number = self.numbers[name]
        if kind == "timer":
            return timer(number, 0)
        if kind == "cancel":
            return cancel(number, max(1, number - 1))
        if kind == "end":
            return end(number)
        if kind == "again":
            read = self.leases[name][1]
            events = self.model.store.history(name, limit=read)
            kept = tuple(item.seq for item in events if item.seq % 2 and isinstance(item.event, CARRIED))
            return again(number, kept, cause=read)
        return child(number, options={"timeout": UNIT}) if kind == "child" else step(number, options=options)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), blocked=st.booleans(), delay=st.sampled_from([0.0, UNIT]))
    def release(self, data: st.DataObject, *, blocked: bool, delay: float) -> None:
        name = data.draw(st.sampled_from(sorted(self.leases)))
        owner = self.leases.pop(name)[0].owner
        self.both(lambda store: store.release(name, owner, delay=delay, reason="r" if blocked else ""))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.leases)))
        self.both(lambda store: store.deliver(self.leases[name][0]))

    @rule(name=runs, number=st.integers(1, 4), process=processes, run=numbers_of_runs)
    def claim(self, name: str, number: int, process: str, run: int) -> None:
        owner = self.owner(process)
        answer = self.both(lambda store: store.claim(key(number, name, run), owner))
        if isinstance(answer, Claim):
            self.claims.append(answer)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), process=st.none() | processes, failed=st.booleans())
    def finish(self, data: st.DataObject, process: str | None, *, failed: bool) -> None:
        begun = data.draw(st.sampled_from(self.claims))
        taker = self.owner(process) if process else None
        number = begun.key.number
        outcome = StepFailed(number=number, payload="{}") if failed else result(number)
        done = self.both(lambda store: store.finish(begun.key, outcome, token=begun.token, take_over=taker, known=1))
        if done.turn:
            self.leases[begun.key.workflow_id] = done.turn.lease, done.turn.run.length

    @precondition(lambda self: self.claims)
    @rule(
        data=st.data(),
        process=processes,
        kinds=st.sampled_from([[], ["step"], ["end"]]),
        off=st.sampled_from([0, 0, 1]),
    )
    def finish_with_a_turn(self, data: st.DataObject, process: str, kinds: list[str], off: int) -> None:
        begun = data.draw(st.sampled_from(self.claims))
        name, number, owner = begun.key.workflow_id, begun.key.number, self.owner(process)
        found = self.record(name)
        if found is None:
            return
        lease = Lease(workflow_id=name, token=found.token + 1 + off, owner=owner)
        outputs = [self._output(name, kind, None) for kind in kinds]

        def act(store: Store) -> Committed:
            at = store.history(name, after=max(0, found.read - 1), limit=1)[0].at
            finishing = Finishing(key=begun.key, token=begun.token, outcome=result(number), at=at)
            read, begin = found.read + 1, outputs[0].number if kinds == ["step"] else None  # type: ignore[attr-defined]
            return store.commit(lease, outputs, read=read, waiting="x", hold=False, begin=begin, finishing=finishing)

        self.both(act)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), progress=st.sampled_from(["", "1", '"two"']), is_own=st.booleans())
    def beat(self, data: st.DataObject, progress: str, *, is_own: bool) -> None:
        begun = data.draw(st.sampled_from(self.claims))
        owner = begun.owner if is_own else ""
        self.both(lambda store: store.claim(begun.key, owner, progress=progress))

    @rule(name=runs, number=st.integers(1, 4), run=numbers_of_runs)
    def end_from_outside(self, name: str, number: int, run: int) -> None:
        self.both(lambda store: store.finish(key(number, name, run), result(number), token=None))

    @precondition(lambda self: self.claims)
    @rule(
        data=st.data(),
        delay=st.sampled_from([0.0, UNIT, None]),
        retries=st.sampled_from([None, 0, 3]),
        override=st.sampled_from([None, "[[2],{}]"]),
    )
    def postpone(self, data: st.DataObject, delay: float | None, retries: int | None, override: str | None) -> None:
        begun = data.draw(st.sampled_from(self.claims))
        self.both(
            lambda store: store.postpone(
                begun.key, begun.owner, delay=delay, error="e", retries=retries, override=override
            )
        )

    @rule(name=runs, number=st.integers(1, 4), told=st.booleans(), run=numbers_of_runs)
    def settle(self, name: str, number: int, *, told: bool, run: int) -> None:
        self.both(lambda store: store.settle(key(number, name, run), cancel=told))

    @rule(units=st.integers(1, 4))
    def advance(self, units: int) -> None:
        self.clock += units * UNIT
        self.model.advance(units * UNIT)
        self.real.advance(units * UNIT)

    @rule(process=processes)
    def renew(self, process: str) -> None:
        self.both(lambda store: store.renew([process]))
        self.ends[process] = self.clock + TIMING.owner_ttl

    @rule(process=processes)
    def die(self, process: str) -> None:
        self.both(lambda store: store.renew([], gone=[process]))
        self.ends[process] = self.clock

    @rule()
    def hasten(self) -> None:
        self.both(lambda store: store.hasten(10, 2))

    @rule()
    def sweep(self) -> None:
        """Sweep until nothing is due: what one store settles in one sweep, another may do in two."""
        self.both(_swept)

    @invariant()
    def both_look_alike(self) -> None:
        for name in ("a", "b"):
            self.both(partial(_seen, name))
        self.both(lambda store: sorted(run.workflow_id for run in store.runs().runs))

    def _is_closed(self, name: str) -> bool:
        found = self.record(name)
        return found is not None and found.status.is_closed

    def teardown(self) -> None:
        check_invariants(self.model.store)
        check_invariants(self.real.store)
        self.real.delete()


def _seen(name: str, store: Store) -> object:
    return store.get(name), [store.history(name, run=run) for run in (None, 1, 2)]


def _swept(store: Store) -> object:
    messages: list[str] = []
    counts: Counter[str] = Counter()
    while True:
        sweep = store.sweep()
        messages += [repr(plain(message)) for message in sweep.messages]
        counts.update(sweep.counts)
        if sweep.next_in != 0:
            return sorted(messages), sorted(counts.items())


def test_redis_answers_as_the_memory_store_does(redis_server: RedisServer) -> None:
    url = redis_server.start().url
    _compare(lambda: RedisBackend(server_client(url), lambda: server_client(url), TIMING), examples=40)


@pytest.mark.parametrize(("database", "examples"), [("sqlite", 20), ("postgresql", 8), ("mariadb", 8)])
def test_sql_answers_as_the_memory_store_does(request: pytest.FixtureRequest, database: str, examples: int) -> None:
    tables: Database = request.getfixturevalue(f"{database}_tables")
    _compare(lambda: SqlBackend(tables, TIMING), examples=examples)


def _compare(make: Callable[[], Backend], *, examples: int) -> None:
    machine = type("Machine", (TwoStores,), {"make": staticmethod(make)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
