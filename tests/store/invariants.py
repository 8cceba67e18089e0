"""What must be true of a store at any time between two verbs, for every implementation.

The checks read internals: a ghost in the agenda is invisible from outside until it bites. Numbers (I2, I3, ...) are
those of the project's list of invariants.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from durable_celery.events import (
    CARRIED,
    CommandCancelled,
    Recorded,
    RunCancelled,
    RunCompleted,
    RunContinued,
    RunFailed,
    RunStarted,
    StepCompleted,
    StepFailed,
    StepScheduled,
    TimerFired,
    TimerStarted,
)
from durable_celery.store.limits import KINDS
from durable_celery.store.memory import MemoryStore
from durable_celery.store.memory_tables import key_of, place_of
from durable_celery.store.protocol import PendingStep, RunRecord, StepKey, StepState, Store
from durable_celery.store.redis import RedisStore
from durable_celery.store.redis_replies import open_steps
from durable_celery.store.sql import SqlStore

#: kind, workflow id or process, place of a command as the memory store has it (its number, in the first run)
Entry = tuple[str, str, int]

_KINDS = {"r": "run", "s": "step", "t": "timer", "d": "deadline"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that a store holds, in one form for every implementation."""

    records: dict[str, RunRecord]
    #: Of the newest run of each workflow.
    histories: dict[str, list[Recorded]]
    #: Of the earlier runs: (workflow id, run).
    past: dict[tuple[str, int], list[Recorded]]
    #: Open steps of the earlier runs, with their places for numbers.
    left: dict[str, list[PendingStep]]
    agenda: dict[Entry, int]
    #: process -> what it has in hand: run leases and steps
    held: dict[str, set[Entry]]


def snapshot(store: Store) -> Snapshot:
    """Read everything from a store that nobody uses meanwhile."""
    if isinstance(store, MemoryStore):
        ids, agenda = list(store.run_table), dict(store.agenda)
        held = {
            process: {("step" if number else "run", name, number) for name, number in things}
            for process, things in store.held.items()
        }
    elif isinstance(store, SqlStore):
        ids, agenda, held = read_sql(store)
    else:
        assert isinstance(store, RedisStore)
        ids, agenda, held = _read_redis(store)
    records = {name: record for name in ids if (record := store.get(name))}
    assert set(records) == set(ids), "an index names a run that is not there"
    histories = {name: store.history(name, limit=100_000) for name in records}
    runs = [(name, run) for name, record in records.items() for run in range(1, record.run)]
    past = {(name, run): log for name, run in runs if (log := store.history(name, run=run, limit=100_000))}
    left = {name: _left(store, name, record.run) for name, record in records.items()}
    return Snapshot(records=records, histories=histories, past=past, left=left, agenda=agenda, held=held)


def _left(store: Store, name: str, newest: int) -> list[PendingStep]:
    """Return the open steps of earlier runs, which no verb shows."""
    if isinstance(store, MemoryStore):
        return [
            PendingStep(
                number=place,
                state=step.state,
                attempt=step.attempt,
                lost=step.lost,
                owner=step.owner,
                error=step.error,
                due_at=step.not_before or None,
            )
            for place, step in store.run_table[name].steps.items()
            if key_of(name, place).run < newest
        ]
    if isinstance(store, SqlStore):
        return [
            PendingStep(
                number=_place_of(row),
                state=StepState(row["state"]),
                attempt=row["attempt"],
                lost=row["lost"],
                owner=row["owner"],
                error=row["error"],
                due_at=row["not_before"] or None,
            )
            for row in raw_rows(store)["commands"]
            if row["workflow_id"] == name and row["run"] < newest and row["state"] in set(StepState)
        ]
    assert isinstance(store, RedisStore)
    client: Any = store._server._connected()
    table = client.hgetall(store._server.key(store._server.shard_of(name), f"open:{name}"))
    flat = [word for pair in table.items() for word in pair]
    return [
        replace(step, number=place_of(StepKey(workflow_id=name, run=run, number=step.number)))
        for run in range(1, newest)
        for step in open_steps(flat, run)
    ]


def raw_keys(store: RedisStore) -> dict[str, Any]:
    """Return all keys of a Redis store with their values; JSON is parsed, because the order of its keys is chance."""
    client: Any = store._server._connected()
    readers: dict[str, Callable[[str], Any]] = {
        "string": lambda name: json.loads(client.get(name)),
        "hash": lambda name: {
            field: json.loads(text) if text.startswith("{") else text for field, text in client.hgetall(name).items()
        },
        "list": lambda name: client.lrange(name, 0, -1),
        "set": client.smembers,
        "zset": lambda name: dict(client.zrange(name, 0, -1, withscores=True)),
    }
    names = client.scan_iter(match=f"{store._server.namespace}:*", count=1000)
    return {name: readers[client.type(name)](name) for name in sorted(names)}


def _read_redis(store: RedisStore) -> tuple[list[str], dict[Entry, int], dict[str, set[Entry]]]:
    ids: list[str] = []
    peers: list[str] = []
    agenda: dict[Entry, int] = {}
    held: dict[str, set[Entry]] = {}
    logs: list[tuple[str, int]] = []
    tables: dict[str, set[str]] = {"run": set(), "log": set(), "open": set(), "keys": set()}
    for name, value in raw_keys(store).items():
        if name == f"{store._server.namespace}:layout":
            continue
        kind, _, rest = name.split("}:", 1)[1].partition(":")
        if kind == "agenda":
            agenda |= {entry_of(member): int(due) for member, due in value.items()}
        elif kind == "owners":
            agenda |= {("owner", process, 0): int(due) for process, due in value.items()}
        elif kind == "held":
            held.setdefault(rest, set()).update(map(entry_of, value))
        elif kind == "peers":
            peers += value
            assert all(name.rpartition(":")[0].partition(":")[0] == rest for name in value), "a peer of another host"
        elif kind == "index":
            ids += value
        elif kind.startswith("log") and kind != "log":
            logs.append((rest, int(kind[3:])))
        else:
            tables[kind].add(rest)
    assert set(peers) == {name for kind, name, _ in agenda if kind == "owner"}, "peers are not the known processes"
    assert len(ids) == len(set(ids)), "a run stands in two indexes"
    assert tables["run"] == set(ids), "record and index do not go together"
    logs += [(rest, 1) for rest in tables["log"]]
    kept = {(name, -number) for kind, name, number in agenda if kind == "retention" and number}
    for name in ids:
        record = store.get(name)
        kept |= {(name, record.run)} if record else set()
    assert set(logs) == kept, f"logs {sorted(logs)} without the runs that they are of, {sorted(kept)}"
    assert tables["open"] | tables["keys"] <= set(ids), "tables of runs that are no more"
    return ids, agenda, held


def raw_rows(store: SqlStore) -> dict[str, list[dict[str, Any]]]:
    """Return all rows of an SQL store, by the last part of their tables' names."""
    tables = store._server.tables.metadata.sorted_tables
    with store._server.engine.begin() as connection:
        return {
            table.name.rpartition("_")[2]: [dict(row._mapping) for row in connection.execute(table.select())]
            for table in tables
        }


def read_sql(store: SqlStore) -> tuple[list[str], dict[Entry, int], dict[str, set[Entry]]]:
    """Return the ids, the agenda and what is held, from the rows of an SQL store."""
    rows = raw_rows(store)
    ids = [row["workflow_id"] for row in rows["runs"]]
    agenda: dict[Entry, int] = {("owner", row["process"], 0): row["ends_at"] for row in rows["owners"]}
    held: dict[str, set[Entry]] = {}
    for row in rows["runs"]:
        if row["due_at"] is not None:
            agenda["retention" if row["delivered"] else "run", row["workflow_id"], 0] = row["due_at"]
        if row["process"] is not None:
            held.setdefault(row["process"], set()).add(("run", row["workflow_id"], 0))
    for row in rows["commands"]:
        due = _due_in_sql(row)
        agenda |= due
        if row["process"] is not None:
            held.setdefault(row["process"], set()).add(("step", row["workflow_id"], _place_of(row)))
        assert row["next_at"] == min(due.values(), default=None)
        assert row["state"] != "cancelled" or not due, "a mark that falls due"
    for name in ("commands", "events", "inputs"):
        assert {row["workflow_id"] for row in rows[name]} <= set(ids), f"{name} of runs that are no more"
    logs = {(row["workflow_id"], row["run"]) for row in rows["events"]}
    kept = {(row["workflow_id"], row["run"]) for row in rows["runs"]}
    kept |= {(row["workflow_id"], row["run"]) for row in rows["commands"] if row["state"] == "log"}
    assert logs == kept, f"logs {sorted(logs)} without the runs that they are of, {sorted(kept)}"
    for row in (*rows["runs"], *rows["commands"]):
        assert (row["owner"] or "").partition("#")[0] == (row["process"] or ""), "a process that is not its owner's"
    return ids, agenda, held


def _due_in_sql(row: dict[str, Any]) -> dict[Entry, int]:
    """Return the entries of the agenda that a row of a command stands for."""
    name, place = row["workflow_id"], _place_of(row)
    due: dict[Entry, int] = {}
    if row["state"] == "log":
        due["retention", name, -row["run"]] = row["due_at"]
    elif row["due_at"] is not None:
        due["timer" if row["state"] == "timer" else "step", name, place] = row["due_at"]
    if ends := [at for kind in KINDS if (at := row[f"{kind}_at"]) is not None]:
        due["deadline", name, place] = min(ends)
    return due


def _place_of(row: dict[str, Any]) -> int:
    return place_of(StepKey(workflow_id=row["workflow_id"], run=row["run"], number=row["number"]))


def entry_of(member: str) -> Entry:
    """Return what a member of an agenda in Redis names."""
    place, _, name = member.partition(":")
    if place[0] == "x":
        return "retention", name, -int(place[1:] or 0)
    run, dot, number = place[1:].rpartition(".")
    key = StepKey(workflow_id=name, run=int(run) if dot else 1, number=int(number or 0))
    return _KINDS[place[0]], name, place_of(key)


def check_invariants(store: Store) -> None:
    """Assert all invariants, with all violations in the message."""
    state = snapshot(store)
    violations = violations_of(state)
    assert not violations, "\n".join([*violations, f"agenda: {state.agenda}", f"held: {state.held}"])


def violations_of(state: Snapshot) -> list[str]:
    """Return all violations of all invariants."""
    return [*_of_histories(state), *_goes_along(state), *_of_runs(state), *_of_steps(state), *_no_ghosts(state)]


def _of_histories(state: Snapshot) -> Iterator[str]:
    runs = [((name, state.records[name].run), history) for name, history in state.histories.items()]
    for name, history in [*runs, *state.past.items()]:
        events = [item.event for item in history]
        if [item.seq for item in history] != list(range(1, len(history) + 1)):
            yield f"I1: {name}: seqs have gaps"
        if not history or not isinstance(events[0], RunStarted):
            yield f"{name}: the first event is not RunStarted"
        if sorted(item.at for item in history) != [item.at for item in history]:
            yield f"{name}: times go backwards"
        scheduled = Counter(event.number for event in events if isinstance(event, StepScheduled))
        outcomes = Counter(event.number for event in events if isinstance(event, StepCompleted | StepFailed))
        fired = Counter(event.number for event in events if isinstance(event, TimerFired))
        if max(outcomes.values(), default=0) > 1:
            yield f"I2: {name}: outcomes recorded twice: {outcomes}"
        if max(scheduled.values(), default=0) > 1 or set(outcomes) - set(scheduled):
            yield f"I3: {name}: outcomes {outcomes} of scheduled {scheduled}"
        if max(fired.values(), default=0) > 1:
            yield f"I11: {name}: timers fired twice: {fired}"
    yield from _of_ends(state)


def _of_ends(state: Snapshot) -> Iterator[str]:
    runs = [((name, state.records[name].run), history) for name, history in state.histories.items()]
    for name, history in [*runs, *state.past.items()]:
        events = [item.event for item in history]
        kinds = RunCompleted | RunFailed | RunCancelled | RunContinued
        ends = [n for n, event in enumerate(events, 1) if isinstance(event, kinds)]
        if ends not in ([], [len(events)]):
            yield f"I9: {name}: terminal events at {ends} of {len(events)}"
        if isinstance(events[-1], RunContinued) != (name in state.past):
            yield f"I9: {name}: its last event is {events[-1]}, of {state.records[name[0]].run} runs"
        elif name not in state.past and bool(ends) != state.records[name[0]].status.is_closed:
            yield f"I9: {name}: status {state.records[name[0]].status} with terminal events {ends}"


def carried(history: list[Recorded]) -> list[Recorded]:
    """Return the inputs that the next run must have got from this one, by what its history says."""
    end = history[-1].event
    if not isinstance(end, RunContinued):
        return []
    return [
        item for item in history if isinstance(item.event, CARRIED) and (item.seq > end.cause or item.seq in end.kept)
    ]


def _goes_along(state: Snapshot) -> Iterator[str]:
    for (name, run), history in state.past.items():
        following = state.past.get((name, run + 1), state.histories[name])
        if run + 1 < state.records[name].run and (name, run + 1) not in state.past:
            continue
        wanted = [item.event for item in carried(history)]
        found = [item.event for item in following[1 : 1 + len(wanted)]]
        if wanted != found:
            yield f"I10: run {run} of {name} passes on {wanted}, and the next has {found}"
        if not isinstance(following[0].event, RunStarted) or following[0].event.payload != history[-1].event.payload:
            yield f"run {run} of {name} ends with {history[-1].event}, and the next begins with {following[0].event}"


def _of_runs(state: Snapshot) -> Iterator[str]:
    for name, run in state.records.items():
        entry: Entry = ("run", name, 0)
        is_armed, is_held = entry in state.agenda, any(entry in things for things in state.held.values())
        if run.length != len(state.histories[name]):
            yield f"{name}: length {run.length} with {len(state.histories[name])} events"
        if is_armed and is_held:
            yield f"{name}: the run message is in the agenda while the lease is held"
        if is_held != (run.owner is not None):
            yield f"{name}: owner {run.owner}, held {is_held}"
        if run.owner and entry not in state.held.get(_process(run.owner), set()):
            yield f"{name}: the lease is not held by its owner's process"
        if _has_work(run) and not (is_armed or is_held or ("timer", name, 0) in state.agenda):
            yield f"I6: {name} is {run.status}, read {run.read} of {run.length}, and nobody is woken"
        if run.delivered != (("retention", name, 0) in state.agenda):
            yield f"{name}: delivered {run.delivered}, and its retention says otherwise"
    for process in state.held:
        if ("owner", process, 0) not in state.agenda:
            yield f"process {process} holds things and is not known"


def _has_work(run: RunRecord) -> bool:
    return not run.delivered if run.status.is_closed else run.length > run.read


def _of_steps(state: Snapshot) -> Iterator[str]:
    for name, run in state.records.items():
        open_numbers = {step.number for step in run.steps}
        for step in _placed(state, name):
            entry: Entry = ("step", name, step.number)
            places = ["agenda"] * (entry in state.agenda)
            places += [f"held by {process}" for process, things in state.held.items() if entry in things]
            expected = {
                StepState.PENDING: ["agenda"],
                StepState.CANCELLING: ["agenda"],
                StepState.CLAIMED: [f"held by {_process(step.owner or '')}"],
                StepState.CHILD: [],
                StepState.WAITING: [],
            }[step.state]
            if places != expected:
                yield f"{name} step {step.number} is {step.state}: in {places}, not in {expected}"
            if (step.owner is not None) != (step.state is StepState.CLAIMED):
                yield f"{name} step {step.number} is {step.state} with owner {step.owner}"
        if not run.status.is_closed and (lost := _wanted_steps(state.histories[name]) - open_numbers):
            yield f"{name}: steps {lost} are wanted and have no entry"


def _placed(state: Snapshot, name: str) -> list[PendingStep]:
    """Return all open steps of a workflow, with their places for numbers."""
    run = state.records[name]
    return [*state.left.get(name, ()), *(replace(step, number=_place(run, step.number)) for step in run.steps)]


def _place(run: RunRecord, number: int) -> int:
    return place_of(StepKey(workflow_id=run.workflow_id, run=run.run, number=number))


def _no_ghosts(state: Snapshot) -> Iterator[str]:
    for entry in state.agenda:
        if entry[0] != "owner" and not _is_wanted(state, entry):
            yield f"I15: {entry} is in the agenda for nothing"
    for process, things in state.held.items():
        for kind, name, number in things:
            if name not in state.records:
                yield f"I15: {process} holds {kind} {number} of {name}, which is not there"
    for name, run in state.records.items():
        timers = set() if run.status.is_closed else _running_timers(state.histories[name])
        for number in timers:
            if ("timer", name, _place(run, number)) not in state.agenda:
                yield f"I11: timer {number} of {name} will never fire"


def _is_wanted(state: Snapshot, entry: Entry) -> bool:
    kind, name, number = entry
    run = state.records.get(name)
    if run is None:
        return False
    is_open = not run.status.is_closed
    newest = {_place(run, step.number) for step in run.steps}
    timers = {_place(run, timer) for timer in _running_timers(state.histories[name])}
    return {
        "run": not run.delivered,
        "step": number in newest | {step.number for step in state.left.get(name, ())},
        "timer": is_open and number in timers,
        "deadline": is_open and number in newest,
        "retention": (name, -number) in state.past if number else run.delivered,
    }[kind]


def _wanted_steps(history: list[Recorded]) -> set[int]:
    numbers: set[int] = set()
    for item in history:
        match item.event:
            case StepScheduled(number=number):
                numbers.add(number)
            case StepCompleted(number=number) | StepFailed(number=number) | CommandCancelled(target=number):
                numbers.discard(number)
            case _:
                pass
    return numbers


def _running_timers(history: list[Recorded]) -> set[int]:
    numbers: set[int] = set()
    for item in history:
        match item.event:
            case RunStarted(start_at=int()):
                numbers.add(0)
            case TimerStarted(number=number):
                numbers.add(number)
            case TimerFired(number=number) | CommandCancelled(target=number):
                numbers.discard(number)
            case _:
                pass
    return numbers


def _process(owner: str) -> str:
    return owner.partition("#")[0]
