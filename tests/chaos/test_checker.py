"""The checker finds each violation in an honest life that was forged in one place, and nothing in the honest life."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from durable_celery.codec import Codec
from durable_celery.engine import Engine, Patience
from durable_celery.engine.turn import Ending
from durable_celery.events import (
    CancelRequested,
    CommandCancelled,
    Event,
    Recorded,
    RunCancelled,
    RunCompleted,
    RunFailed,
    SignalReceived,
    StepCompleted,
    StepScheduled,
    TimerFired,
)
from durable_celery.store.memory import MemoryStore
from durable_celery.store.protocol import Claim, NewRun, RunRecord, RunStatus, StepKey, StepMessage
from durable_celery.workflow import Definition, WorkflowContext
from tests.chaos.checker import INVARIANTS, check
from tests.chaos.evidence import Evidence
from tests.chaos.operations import Operation, Phase, RecordedStore, Recorder, fingerprint, read_operations
from tests.chaos.report import takeovers
from tests.store.invariants import Entry, snapshot

#: The run of the honest life, and its step.
W, STEP = "w", StepKey(workflow_id="w", run=1, number=1)


def demo(ctx: WorkflowContext, x: int) -> list[Any]:
    value = ctx.step("plus", x)
    ctx.sleep(5)
    return [value, ctx.wait_signal("go"), ctx.wait_signal("go")]


def other(ctx: WorkflowContext, x: int) -> list[Any]:
    ctx.sleep(x)
    return []


class Post:
    """Takes messages, and loses them."""

    def publish(self, messages: Sequence[object]) -> int:
        return len(messages)

    def child_envelope(self, message: StepMessage) -> str:
        raise AssertionError(message)


@pytest.fixture
def honest(tmp_path: Path) -> Evidence:
    """Give the evidence of one run: a step that is done by its second attempt, a timer, two signals, the end."""
    now = 1_000_000
    plain = MemoryStore(clock=lambda: now)
    recorder = Recorder(tmp_path)
    store: Any = RecordedStore(plain, recorder)
    definition = Definition(name="demo", function=demo)

    def code(name: str) -> Definition:
        assert name == definition.name
        return definition

    # Both clocks stand still.
    patience = Patience(0.0, monotonic=lambda: 0.0)
    engine = Engine(store, Post(), lambda name, _: code(name), process=lambda: "h:1:10.1", patience=patience)

    def execute(claim: Claim | object, phase: Phase) -> None:
        assert isinstance(claim, Claim)
        call, place = recorder.call(), {"workflow": W, "step": 1, "token": claim.attempt}
        for each in (Phase.INVOKE, phase):
            recorder.write(call, "execute", each, **place)

    new = NewRun(workflow_id=W, name="demo", payload="[[1],{}]", digest="d")
    for _ in range(2):
        store.start(new)
    engine.take_turn(W)
    first = engine.begin_step(STEP)
    execute(first, Phase.FAIL)
    assert isinstance(first, Claim)
    engine.postpone_step(first, delay=0.0, error="again")
    second = engine.begin_step(STEP)
    execute(second, Phase.OK)
    assert isinstance(second, Claim)
    engine.complete_step(second, 2, go_on=True)
    for value in ("one", "two"):
        store.append(W, SignalReceived(name="go", payload=Codec().encode(value, "it")), key=f"signal:{value}")
    now += 5_000
    engine.sweep()
    ending = engine.take_turn(W)
    assert isinstance(ending, Ending)
    engine.delivered(ending)
    plain.renew([], ["h:1:10.1"])
    return Evidence(
        operations=read_operations(tmp_path),
        state=snapshot(plain),
        code=code,
        results={W: [2, "one", "two"]},
        steps={W: 1},
    )


def test_an_honest_life_has_no_violation(honest: Evidence) -> None:
    assert check(honest) == []
    assert {op.verb for op in honest.operations} >= {"start", "take", "commit", "claim", "postpone", "finish", "append"}


# -- forging ---------------------------------------------------------------------------------------------------------


def with_operations(evidence: Evidence, operations: Iterable[Operation]) -> Evidence:
    return replace(evidence, operations=sorted(operations, key=lambda op: op.at))


def edited(evidence: Evidence, verb: str, phase: Phase, nth: int = 0, **fields: Any) -> Evidence:
    """Change one line; `data` is merged into what is there."""
    operations = list(evidence.operations)
    places = [n for n, op in enumerate(operations) if (op.verb, op.phase) == (verb, phase)]
    old = operations[places[nth]]
    data = {**old.data, **fields.pop("data", {})}
    operations[places[nth]] = replace(old, data=data, **fields)
    return with_operations(evidence, operations)


def repeated(evidence: Evidence, verb: str, nth: int = 0, *, later: float = 1000.0, **answer: Any) -> Evidence:
    """Let a call and its answer come once more, much later or, with a negative time, much earlier."""
    asked = [op for op in evidence.operations if op.verb == verb and op.phase is Phase.INVOKE][nth]
    again = [op for op in evidence.operations if op.key == asked.key]
    data = answer.pop("data", {})
    copies = [
        replace(op, at=op.at + later, call=op.call + 10_000, data={**op.data, **data}, **answer)
        if op.phase is Phase.OK
        else replace(op, at=op.at + later, call=op.call + 10_000)
        for op in again
    ]
    return with_operations(evidence, [*evidence.operations, *copies])


def without(evidence: Evidence, verb: str, phase: Phase | None = None) -> Evidence:
    """Take all lines of a verb away."""
    return with_operations(
        evidence, [op for op in evidence.operations if op.verb != verb or (phase and op.phase is not phase)]
    )


def with_history(
    evidence: Evidence, change: Callable[[list[Event]], list[Event]], *, at: int | None = None
) -> Evidence:
    """Change the final history; times stay, or are all ``at``."""
    old = evidence.state.histories[W]
    events = change([item.event for item in old])
    last = old[-1].at
    times = [item.at for item in old] + [last] * len(events)
    history = [Recorded(seq=n + 1, at=at or times[n], event=event) for n, event in enumerate(events)]
    return replace(evidence, state=replace(evidence.state, histories={W: history}))


def with_record(evidence: Evidence, **fields: Any) -> Evidence:
    record = replace(evidence.state.records[W], **fields)
    return replace(evidence, state=replace(evidence.state, records={W: record}))


def with_agenda(evidence: Evidence, entry: Entry) -> Evidence:
    return replace(evidence, state=replace(evidence.state, agenda={**evidence.state.agenda, entry: 1}))


def find(events: list[Event], kind: type[Event]) -> Event:
    return next(event for event in events if isinstance(event, kind))


def again(kind: type[Event]) -> Callable[[list[Event]], list[Event]]:
    """Return a change that repeats the first event of a kind right behind it."""
    return lambda events: [e for event in events for e in [event] * (1 + (event is find(events, kind)))]


def lost_and_never_back(evidence: Evidence) -> Evidence:
    state = replace(evidence.state, records={}, histories={}, agenda={})
    return replace(evidence, state=state)


def cancelled_child(evidence: Evidence) -> Evidence:
    """Let the run have a child that it cancelled, and that was never told."""
    child = f"{W}/1.2"

    def change(events: list[Event]) -> list[Event]:
        scheduled = StepScheduled(number=2, cause=1, task="demo", digest="d", kind="workflow")
        return [*events[:-1], scheduled, CommandCancelled(number=3, cause=1, target=2), events[-1]]

    forged = with_history(evidence, change)
    record = RunRecord(workflow_id=child, name="demo", status=RunStatus.RUNNING, created_at=1)
    state = replace(
        forged.state,
        records={**forged.state.records, child: record},
        histories={**forged.state.histories, child: evidence.state.histories[W][:1]},
    )
    return replace(forged, state=state)


def swap_signals(events: list[Event]) -> list[Event]:
    places = [place for place, event in enumerate(events) if isinstance(event, SignalReceived)]
    changed = list(events)
    changed[places[0]], changed[places[1]] = events[places[1]], events[places[0]]
    return changed


def refused_signal(evidence: Evidence) -> Evidence:
    ghost = SignalReceived(name="ghost")
    forged = with_history(evidence, lambda events: [*events, ghost])
    last = replace(forged.operations[-1], at=forged.operations[-1].at + 1, call=99_999, verb="append", workflow=W)
    asked = replace(last, phase=Phase.INVOKE, data={"key": "k", "print": fingerprint(ghost)})
    return with_operations(
        forged, [*forged.operations, asked, replace(last, at=last.at + 1, phase=Phase.FAIL, data={})]
    )


def worn_out() -> RunFailed:
    text = Codec().encode({"type": "StepLostError", "message": f"step {STEP} lost its process 2 times"}, "it")
    return RunFailed(number=9, cause=1, payload=text)


FORGERIES: list[tuple[str, str, Callable[[Evidence], Evidence]]] = [
    ("I1", "a read event changed", lambda e: edited(e, "take", Phase.OK, 0, data={"events": [[1, "0" * 12]]})),
    ("I1", "a read event vanished", lambda e: with_history(e, lambda events: events[:2])),
    ("I1", "a read had a gap", lambda e: edited(e, "take", Phase.OK, -1, data={"events": [[1, "x"], [3, "y"]]})),
    ("I1", "a later read was shorter", lambda e: edited(e, "take", Phase.OK, -1, data={"length": 1})),
    ("I2", "two outcomes", lambda e: with_history(e, again(StepCompleted))),
    ("I2", "an outcome accepted twice", lambda e: repeated(e, "finish")),
    ("I3", "an outcome without its step", lambda e: with_history(e, lambda events: [events[0], *events[2:]])),
    (
        "I3",
        "an outcome of a cancelled step",
        lambda e: with_history(e, lambda ev: [*ev[:2], CommandCancelled(number=9, cause=1, target=1), *ev[2:]]),
    ),
    ("I4", "one token, two owners", lambda e: repeated(e, "take", owner="h:1:99.9#x")),
    ("I4", "a token that shrank", lambda e: repeated(e, "take", token=0)),
    ("I4", "a commit under a stale lease", lambda e: repeated(e, "commit", data={"length": 99})),
    ("I4", "an outcome under a stale claim", lambda e: repeated(e, "claim", 1, later=-500.0, token=7)),
    ("I5", "an acknowledged run is lost", lost_and_never_back),
    ("I5", "a run that never ended", lambda e: with_record(e, status=RunStatus.RUNNING)),
    ("I5", "an end that was not delivered", lambda e: with_record(e, delivered=False)),
    ("I5", "a wrong result", lambda e: replace(e, results={W: [3]})),
    (
        "I5",
        "a cancelled run that nobody wanted to cancel",
        lambda e: with_history(e, lambda events: [*events[:-1], RunCancelled(number=9, cause=1)]),
    ),
    (
        "I5",
        "a run that says of a step that it was lost, and it was not",
        lambda e: with_history(e, lambda ev: [*ev[:-1], worn_out()]),
    ),
    ("I6", "unread events and nobody woken", lambda e: with_record(e, status=RunStatus.RUNNING, read=1)),
    ("I7", "made twice", lambda e: repeated(e, "start")),
    ("I7", "made from another input", lambda e: edited(e, "start", Phase.INVOKE, 1, data={"digest": "other"})),
    (
        "I8",
        "the code does something else",
        lambda e: replace(e, code=lambda _: Definition(name="demo", function=other)),
    ),
    ("I8", "a blocked run", lambda e: with_record(e, status=RunStatus.BLOCKED)),
    ("I9", "two ends", lambda e: with_history(e, again(RunCompleted))),
    ("I9", "an input behind the end", lambda e: with_history(e, lambda ev: [*ev, TimerFired(number=2)])),
    ("I9", "an open run with an end", lambda e: with_record(e, status=RunStatus.RUNNING)),
    ("I9", "a signal accepted after the end", lambda e: repeated(e, "append")),
    ("I10", "a signal twice", lambda e: with_history(e, again(SignalReceived))),
    (
        "I10",
        "an accepted signal is not there",
        lambda e: with_history(e, lambda ev: [x for x in ev if not isinstance(x, SignalReceived)]),
    ),
    ("I10", "signals out of order", lambda e: with_history(e, swap_signals)),
    ("I11", "a timer too early", lambda e: with_history(e, lambda events: events, at=1)),
    ("I11", "a timer twice", lambda e: with_history(e, again(TimerFired))),
    ("I11", "a timer too late", lambda e: replace(with_history(e, lambda ev: ev, at=10**9), timer_lateness=60.0)),
    ("I12", "one attempt executed twice", lambda e: repeated(e, "execute")),
    ("I12", "an execution without a claim", lambda e: without(e, "claim")),
    ("I12", "more attempts than are allowed", lambda e: replace(without(e, "postpone"), lost_attempts=1)),
    (
        "I13",
        "cancelled, and nobody asked",
        lambda e: with_history(e, lambda events: [*events[:-1], RunCancelled(number=9, cause=1)]),
    ),
    (
        "I13",
        "a step behind the cancellation",
        lambda e: with_history(
            e, lambda ev: [*ev, CancelRequested(), StepScheduled(number=9, cause=len(ev) + 1, task="t", digest="d")]
        ),
    ),
    ("I13", "a child that was not told", cancelled_child),
    ("I14", "an event that nobody wrote", lambda e: with_history(e, lambda ev: [*ev, SignalReceived(name="ghost")])),
    ("I14", "an event that only a refused call had", refused_signal),
    ("I14", "a result without an execution", lambda e: without(e, "execute", Phase.OK)),
    ("I14", "another number of steps", lambda e: replace(e, steps={W: 2})),
    ("I15", "a ghost in the agenda", lambda e: with_agenda(e, ("step", W, 1))),
    ("I15", "a ghost of a run that is gone", lambda e: with_agenda(e, ("run", "gone", 0))),
    (
        "I15",
        "a lease that nobody gave back",
        lambda e: replace(e, state=replace(e.state, held={"h:1:10.1": {("run", W, 0)}})),
    ),
]


@pytest.mark.parametrize(
    ("invariant", "forge"),
    [(number, forge) for number, _, forge in FORGERIES],
    ids=[f"{n} {what}" for n, what, _ in FORGERIES],
)
def test_a_forged_life_is_found(honest: Evidence, invariant: str, forge: Callable[[Evidence], Evidence]) -> None:
    forged = forge(honest)

    assert list(INVARIANTS[invariant](forged)), "the checker sees nothing wrong"
    assert any(text.startswith(f"{invariant}: ") for text in check(forged))


def test_a_step_that_lost_all_its_attempts_may_fail_its_run(honest: Evidence) -> None:
    failed = replace(with_history(honest, lambda ev: [*ev[:-1], worn_out()]), lost_attempts=2)
    # Some were killed, and some came to an end that nobody wanted any more.
    too_late = with_operations(failed, [op for op in failed.operations if op.verb != "finish"])
    killed = with_operations(
        too_late, [op for op in too_late.operations if op.verb != "execute" or op.phase is Phase.INVOKE]
    )

    assert list(INVARIANTS["I5"](failed))
    assert not list(INVARIANTS["I5"](too_late))
    assert not list(INVARIANTS["I5"](killed))


def test_every_invariant_has_a_forgery() -> None:
    assert {invariant for invariant, _, _ in FORGERIES} == set(INVARIANTS) == {f"I{n}" for n in range(1, 16)}


# -- operations files ------------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from tests.chaos.operations import Phase, Recorder
recorder = Recorder(Path(sys.argv[1]))
while True:
    call = recorder.call()
    recorder.write(call, "take", Phase.INVOKE, workflow="w" * 100)
    recorder.write(call, "take", Phase.OK, workflow="w" * 100, data={"length": call})
    if call == 1000:
        print("much is written", flush=True)
"""


def test_what_a_process_wrote_survives_its_sigkill(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    writer.kill()
    writer.wait()
    writer.stdout.close()

    operations = read_operations(tmp_path)
    answered = [op.data["length"] for op in operations if op.phase is Phase.OK]
    assert len(answered) >= 1000
    assert answered == list(range(1, len(answered) + 1))


def test_a_torn_last_line_is_no_operation_and_any_other_torn_line_is_an_error(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.write(recorder.call(), "take", Phase.INVOKE, workflow="w")
    path = next(tmp_path.iterdir())
    with path.open("ab") as file:
        file.write(b'{"at": 1')
    assert len(read_operations(tmp_path)) == 1
    with path.open("ab") as file:
        file.write(b"\n")
    with pytest.raises(ValueError, match=r":2 is no operation"):
        read_operations(tmp_path)


def test_a_forked_child_writes_a_file_of_its_own(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.write(recorder.call(), "take", Phase.INVOKE, workflow="parent")
    pid = os.fork()
    if pid == 0:
        try:
            recorder.write(recorder.call(), "take", Phase.INVOKE, workflow="child")
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)

    operations = read_operations(tmp_path)
    assert {op.workflow for op in operations} == {"parent", "child"}
    assert len({op.process for op in operations}) == len(list(tmp_path.iterdir())) == 2


def test_a_takeover_lasts_from_the_kill_to_the_next_claim(honest: Evidence) -> None:
    """The first claim's process is killed before it gives the claim back; another one has it 3 s later."""
    claims = [op for op in honest.operations if op.verb == "claim"]
    victim, heir = "h:1:20.2", "h:1:21.3"
    asked, answer = (replace(op, process=victim) for op in claims[:2])
    kill = replace(
        answer, at=answer.at + 1, process="h:1:1.1", call=1, verb="kill", data={"kind": "child", "pids": [20]}
    )
    taken = [replace(op, at=op.at + 4, process=heir, owner=f"{heir}#x", token=op.token and 2) for op in (asked, answer)]
    forged = with_operations(honest, [asked, answer, kill, *taken])

    assert [round(end - begin, 3) for begin, end in takeovers(forged)] == [3.0]


def test_calls_of_two_recorders_of_a_process_are_told_apart(tmp_path: Path) -> None:
    first, second = Recorder(tmp_path), Recorder(tmp_path)
    for recorder, workflow in ((first, "a"), (second, "b"), (first, "c")):
        recorder.write(recorder.call(), "take", Phase.INVOKE, workflow=workflow)

    assert len({op.key for op in read_operations(tmp_path)}) == 3
