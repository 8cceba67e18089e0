"""The offline checker: what all processes wrote down, and the store at the end, held against the invariants I1 to I15.

Each invariant is a function that yields its violations; its docstring says what of the invariant can be seen from
outside. Reads of histories are checked as lists in the manner of Elle: a history only grows, so any two reads agree
where they overlap, and who asks after an answer came sees at least as much. Times are of one clock, so "after" means
that the one was asked when the other had its answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise

from durable_celery.codec import Codec
from durable_celery.events import (
    CancelRequested,
    CommandCancelled,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunStarted,
    SignalReceived,
    StepCompleted,
    StepFailed,
    StepScheduled,
    TimerFired,
    TimerStarted,
)
from durable_celery.store.protocol import RunStatus
from durable_celery.workflow import replay
from tests.chaos.evidence import Call, Evidence, after, ends, events_of
from tests.chaos.operations import Phase, fingerprint
from tests.store.invariants import violations_of

Violations = Iterator[str]


def check(evidence: Evidence) -> list[str]:
    """Return all violations of all invariants."""
    return [f"{name}: {text}" for name, invariant in INVARIANTS.items() for text in invariant(evidence)]


def append_only(evidence: Evidence) -> Violations:
    """I1: each read of a history is a part of the final history, and a later read is not shorter.

    Seen: all events that turns, finishes and pages of histories were given, and all lengths in answers.
    """
    final = {name: {item.seq: fingerprint(item.event) for item in history} for name, history in evidence.histories()}
    for name, history in evidence.histories():
        if [item.seq for item in history] != list(range(1, len(history) + 1)):
            yield f"{name}: its seqs have gaps"
    for call in evidence.calls:
        known = final.get(call.workflow, {})
        for seq, text in call.reads:
            if known.get(seq) != text:
                yield f"{call} saw {text} as event {seq}, which is {known.get(seq, 'not there')} in the end"
        if any(after != before + 1 for (before, _), (after, _) in pairwise(call.reads)):
            yield f"{call} saw a history with gaps: {[seq for seq, _ in call.reads]}"
    yield from _lengths(evidence)


def _lengths(evidence: Evidence) -> Violations:
    for calls in evidence.by_run.values():
        sized = [call for call in calls if "length" in call.data]
        for call, (longest, witness) in after(sized, lambda call: int(call.data["length"])):
            if call.data["length"] < longest:
                yield f"{call} saw {call.data['length']} events, after {witness} had seen {longest}"


def recorded_once(evidence: Evidence) -> Violations:
    """I2: no step of a run has two outcomes, and no outcome was accepted twice.

    Seen: the final histories, and the answers of `finish`. That an outcome's bytes never change is seen by I1.
    """
    for name, history in evidence.histories():
        outcomes = Counter(e.number for e in events_of(history) if isinstance(e, StepCompleted | StepFailed))
        for number, count in outcomes.items():
            if count > 1:
                yield f"step {number} of {name} has {count} outcomes"
    accepted = evidence.grouped(call for call in evidence.of("finish") if call.data.get("recorded"))
    for (name, step), calls in accepted.items():
        if len(calls) > 1:
            yield f"step {step} of {name} was recorded by {' and by '.join(map(str, calls))}"


def no_orphans(evidence: Evidence) -> Violations:
    """I3: an outcome stands behind the one event that scheduled its step, and not behind the step's cancellation."""
    for name, history in evidence.histories():
        scheduled, cancelled = Counter[int](), set[int]()
        for event in events_of(history):
            match event:
                case StepScheduled(number=number):
                    scheduled[number] += 1
                case CommandCancelled(target=target):
                    cancelled.add(target)
                case StepCompleted(number=number) | StepFailed(number=number):
                    if scheduled[number] != 1 or number in cancelled:
                        yield f"the outcome of step {number} of {name}: scheduled {scheduled[number]} times before it"
                case _:
                    pass


def fenced(evidence: Evidence) -> Violations:
    """I4: tokens grow, each has one owner, and nothing is written under a token when a newer one was given before.

    Seen: tokens in the answers of `take` and `finish` (leases) and `claim` (attempts), and under which token
    `commit` and `finish` were accepted. A write that was asked for before the newer token's answer proves nothing.
    """
    for name, calls in evidence.by_run.items():
        leases = [c for c in calls if c.verb in {"take", "finish"} and c.granted is not None]
        commits = [c for c in calls if c.verb == "commit" and c.is_ok and c.get("outputs")]
        yield from _fence(f"the lease of {name}", leases, commits)
    finishes = evidence.grouped(
        call for call in evidence.of("finish") if call.data.get("recorded") and call.asked.token is not None
    )
    for (name, number), calls in evidence.grouped(c for c in evidence.of("claim") if c.granted is not None).items():
        yield from _fence(f"the claim of step {number} of {name}", calls, finishes.get((name, number), []))


def _fence(what: str, grants: list[Call], writes: list[Call]) -> Violations:
    owners: dict[int, str | None] = {}
    for call in grants:
        token, owner = _token(call), call.answer.owner if call.answer else None
        if owners.setdefault(token, owner) != owner:
            yield f"{what}: token {token} was given to {owners[token]} and to {owner}"
    for call, (newest, witness) in after(grants, _token):
        if _token(call) < newest:
            yield f"{what}: {call} was given token {_token(call)} after {witness} was given {newest}"
    for write in writes:
        token = write.asked.token or 0
        newest = max(
            (_token(grant) for grant in grants if grant.answer and grant.answer.at < write.asked.at), default=0
        )
        if newest > token:
            yield f"{what}: {write} was accepted under token {token} after {newest} had been given"


def _token(call: Call) -> int:
    return call.granted or 0


def no_lost_start(evidence: Evidence) -> Violations:
    """I5: each acknowledged start is there, has ended, was delivered, and returned what it must.

    Seen: answers of `start`, final records, expected results. A run that may be cancelled may have either end; one
    whose step lost as many processes as it may has failed, as it must.
    """
    started = {call.workflow for call in evidence.of("start") if call.is_ok}
    for name in sorted(started | set(evidence.results)):
        record = evidence.state.records.get(name)
        if record is None:
            yield f"{name} was acknowledged and is lost"
        elif not (record.status.is_closed and record.delivered):
            yield f"{name} is {record.status}, delivered: {record.delivered}"
    for name, wanted in evidence.results.items():
        end = events_of(evidence.state.histories.get(name, []))[-1:]
        match end:
            case [RunCompleted(payload=payload)]:
                if (value := Codec().decode(payload)) != wanted:
                    yield f"{name} returned {value!r} instead of {wanted!r}"
            case [RunCancelled()] if name in evidence.cancelled:
                pass
            case [RunFailed(payload=payload)] if evidence.is_worn_out(payload):
                pass
            case _:
                yield f"{name} ended with {end!r:.300} instead of {wanted!r}"


def no_lost_wake(evidence: Evidence) -> Violations:
    """I6: at rest no run has unread events, an unfinished step or an undelivered end that nobody will see to.

    Seen: records, agenda and held sets. While things move, the soak's detector of stuck runs sees it.
    """
    for name, run in evidence.state.records.items():
        has_work = not run.delivered if run.status.is_closed else run.length > run.read
        is_known = ("run", name, 0) in evidence.state.agenda or ("timer", name, 0) in evidence.state.agenda
        if has_work and not (is_known or run.owner):
            yield f"{name} is {run.status}, read {run.read} of {run.length}, and nobody is woken"
    yield from (text for text in violations_of(evidence.state) if not text.startswith("I"))


def one_start(evidence: Evidence) -> Violations:
    """I7: starts with one id made one run, and those with other arguments were refused.

    Seen: the answers of `start`.
    """
    for (name, _), calls in evidence.grouped(evidence.of("start")).items():
        made = [call for call in calls if call.data.get("created")]
        if len(made) > 1:
            yield f"{name} was made by {' and by '.join(map(str, made))}"
        inputs = {(call.get("name"), call.get("digest")) for call in calls if call.is_ok}
        if len(inputs) > 1:
            yield f"{name} was started with different inputs: {sorted(map(str, inputs))}"


def replays(evidence: Evidence) -> Violations:
    """I8: a cold replay of each final history issues the recorded commands and no other, and no run is blocked."""
    for name, history in evidence.histories():
        record = evidence.state.records[name]
        if record.status is RunStatus.BLOCKED:
            yield f"{name} is blocked: {record.reason}"
        if evidence.code is None:
            continue
        try:
            execution = replay(evidence.code(record.name), name, history, Codec(), run=record.run)
        except Exception as error:  # noqa: BLE001 - whatever stops a replay is what we look for
            yield f"{name} cannot be replayed: {error!r:.300}"
            continue
        if outputs := execution.take_outputs():
            yield f"a cold replay of {name} goes on with {outputs}"
        execution.evict()


def one_end(evidence: Evidence) -> Violations:
    """I9: at most one terminal event, the last; and nothing was accepted after it.

    Seen: final histories and statuses, and commits and appends that were asked for after the run's end had its answer.
    """
    for name, history in evidence.histories():
        found = ends(history)
        if found not in ([], [len(history)]):
            yield f"{name} has terminal events at {found} of {len(history)}"
        if bool(found) != evidence.state.records[name].status.is_closed:
            yield f"{name} is {evidence.state.records[name].status} with terminal events at {found}"
        last = fingerprint(history[found[0] - 1].event) if found else None
        calls = [call for call in evidence.by_run.get(name, ()) if call.verb in {"commit", "append"} and call.is_ok]
        closing = (call.answer.at for call in calls if call.answer and last in (call.get("outputs") or ()))
        closed_at = min(closing, default=float("inf"))
        for call in calls:
            if call.asked.at > closed_at and (call.get("outputs") or call.data.get("added")):
                yield f"{call} was accepted after the end"


def signals_once(evidence: Evidence) -> Violations:
    """I10: each signal that was accepted stands in the history once; those of one sender stand in their order.

    Seen: appends of signals with their answers; each signal's name and value make its text. A sender is a process.
    """
    for name, history in evidence.histories():
        sent = [call for call in evidence.by_run.get(name, ()) if call.get("event") == SignalReceived.__name__]
        entered = [fingerprint(event) for event in events_of(history) if isinstance(event, SignalReceived)]
        for text, count in Counter(entered).items():
            keys = {call.get("key") for call in sent if call.get("print") == text and call.may_have_happened}
            if count > len(keys):
                yield f"signal {text} is {count} times in {name}, and was sent {len(keys)} times"
        accepted = [call for call in sent if call.is_ok]
        for call in accepted:
            if call.get("print") not in entered:
                yield f"{call} was accepted, and {call.get('print')} is not in the history"
        yield from _signal_order(entered, [call for call in accepted if call.data.get("added")])


def _signal_order(entered: list[str], accepted: list[Call]) -> Violations:
    """Each call added its signal; the next call of the same sender came when this one had its answer."""
    places = {text: place for place, text in enumerate(entered)}
    for first, then in combinations(accepted, 2):
        texts = first.get("print"), then.get("print")
        in_turn = first.answer is not None and first.answer.at < then.asked.at
        if in_turn and set(texts) <= set(places) and places[texts[0]] > places[texts[1]]:
            yield f"the signal of {then} stands before that of {first}"


def timers(evidence: Evidence) -> Violations:
    """I11: a timer fires at most once, not before its time by the store's clock, and not much later.

    Seen: final histories. How late is only asked for where servers and workers were there all the time.
    """
    for name, history in evidence.histories():
        due: dict[int, int] = {}
        fired = Counter[int]()
        for item in history:
            match item.event:
                case RunStarted(start_at=int(start_at)):
                    due[0] = start_at
                case TimerStarted(number=number, due_at=due_at):
                    due[number] = due_at
                case TimerFired(number=number):
                    fired[number] += 1
                    late = item.at - due.get(number, item.at + 1)
                    if late < 0 or fired[number] > 1:
                        yield f"timer {number} of {name} fired {-late} ms early, or again ({fired[number]})"
                    if evidence.timer_lateness is not None and late > evidence.timer_lateness * 1000:
                        yield f"timer {number} of {name} fired {late} ms late"
                case _:
                    pass


def bounded_attempts(evidence: Evidence) -> Violations:
    """I12: a step is executed once for each claim at most, and no attempt is beyond what its policy allows.

    Seen: claims, and the executions that the tasks noted. A claim without an answer may have been given; it and an
    attempt that was given back are no attempts of the task, and so none that the policy counts.
    """
    claims = evidence.grouped(call for call in evidence.of("claim") if call.phase is Phase.INFO or call.granted)
    given_back = evidence.grouped(call for call in evidence.of("postpone") if call.may_have_happened)
    limits = evidence.limits()
    for place, executions in evidence.grouped(evidence.of("execute")).items():
        attempts = Counter(call.asked.token for call in executions)
        given = [call.granted for call in claims.get(place, ())]
        for attempt, count in attempts.items():
            if count > 1:
                yield f"step {place[1]} of {place[0]}: attempt {attempt} was executed {count} times"
            if attempt not in given and None not in given:
                yield f"step {place[1]} of {place[0]}: attempt {attempt} was executed and never claimed"
        last, limit = max(attempt or 0 for attempt in attempts), limits.get(place)
        if limit is not None and last > limit + given.count(None) + len(given_back.get(place, ())):
            yield f"step {place[1]} of {place[0]}: attempt {last} was executed, its limit is {limit}"


def cancels(evidence: Evidence) -> Violations:
    """I13: a run that ends cancelled was asked to; a child that its parent cancelled was told or has ended.

    Seen: final histories. Of code without clean-up steps it is also asked that nothing is scheduled behind a request.
    """
    for name, history in evidence.histories():
        events = events_of(history)
        asked_at = next((item.seq for item in history if isinstance(item.event, CancelRequested)), None)
        if events and isinstance(events[-1], RunCancelled) and asked_at is None:
            yield f"{name} is cancelled, and nobody asked for it"
        for event in events:
            if asked_at is not None and isinstance(event, StepScheduled) and event.cause >= asked_at:
                yield f"{name} was asked to cancel by event {asked_at} and scheduled step {event.number} after it"
        children = {e.number for e in events if isinstance(e, StepScheduled) and e.kind == "workflow"}
        for event in events:
            if isinstance(event, CommandCancelled) and event.target in children:
                yield from _told(evidence, f"{name}/1.{event.target}")


def _told(evidence: Evidence, child: str) -> Violations:
    record, history = evidence.state.records.get(child), evidence.state.histories.get(child, [])
    was_told = any(isinstance(event, CancelRequested) for event in events_of(history))
    if record is None or not (was_told or record.status.is_closed):
        yield f"{child} was cancelled by its parent and knows nothing of it"


def isolated(evidence: Evidence) -> Violations:
    """I14: each event of a history was written by a call on that very run, and runs did what their program says.

    Seen: the text of each event in the calls that may have written it. Timers and deadlines are the store's own.
    """
    written: dict[str, set[str]] = {}
    for call in evidence.calls:
        # A commit that the client library repeats by itself may be refused the second time.
        if call.may_have_happened or call.verb == "commit":
            mine = [*(call.get("outputs") or ()), call.get("print")]
            written.setdefault(call.workflow, set()).update(text for text in mine if text)
    for name, history in evidence.histories():
        for item in history:
            is_stores = isinstance(item.event, TimerFired | RunStarted)
            is_stores |= isinstance(item.event, StepFailed) and "StepTimeoutError" in (item.event.payload or "")
            if not is_stores and fingerprint(item.event) not in written.get(name, ()):
                yield f"event {item.seq} of {name} was written by nobody: {item.event!r:.200}"
    for name, wanted in evidence.steps.items():
        history = evidence.state.histories.get(name, [])
        scheduled = sum(isinstance(event, StepScheduled) for event in events_of(history))
        is_cut = name in evidence.cancelled or (history and evidence.is_worn_out(history[-1].event.payload))
        if scheduled != wanted and not is_cut:
            yield f"{name} scheduled {scheduled} steps instead of {wanted}"
    yield from _effects(evidence)


def _effects(evidence: Evidence) -> Violations:
    """Each result of a task comes from an execution of just that attempt which came to its end."""
    done = {(call.place, call.asked.token) for call in evidence.of("execute") if call.is_ok}
    for name, history in evidence.histories():
        tasks = {e.number for e in events_of(history) if isinstance(e, StepScheduled) and e.kind == "task"}
        for event in events_of(history):
            match event:
                case StepCompleted(number=number, attempt=attempt) if number in tasks:
                    if ((name, number), attempt) not in done:
                        yield f"step {number} of {name} has a result of attempt {attempt}, which nobody executed"
                case _:
                    pass


def converged(evidence: Evidence) -> Violations:
    """I15: at rest the agenda holds only open work and the retention of what has ended, and nobody holds anything.

    Seen: the final store, to the last entry.
    """
    yield from (text.partition(": ")[2] for text in violations_of(evidence.state) if text.startswith("I15"))
    for process, things in evidence.state.held.items():
        yield f"{process} holds {sorted(things)} at rest"
    for entry in evidence.state.agenda:
        if entry[0] not in {"owner", "retention"}:
            yield f"{entry} is due at rest"


INVARIANTS: dict[str, Callable[[Evidence], Violations]] = {
    "I1": append_only,
    "I2": recorded_once,
    "I3": no_orphans,
    "I4": fenced,
    "I5": no_lost_start,
    "I6": no_lost_wake,
    "I7": one_start,
    "I8": replays,
    "I9": one_end,
    "I10": signals_once,
    "I11": timers,
    "I12": bounded_attempts,
    "I13": cancels,
    "I14": isolated,
    "I15": converged,
}
