"""The end of a soak: evidence is gathered, checked and counted."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from durable_celery.app import binding_of
from durable_celery.events import RunFailed, StepCompleted, StepFailed
from tests.chaos.checker import check
from tests.chaos.evidence import Call, Evidence, Place
from tests.chaos.field import Field
from tests.chaos.operations import Operation, read_operations
from tests.chaos.programs import Tree, runs_of, steps_of, value_of
from tests.store.invariants import snapshot

_log = logging.getLogger(__name__)


class Outcome(Protocol):
    """What a report asks of a program."""

    workflow_id: str
    tree: Tree
    is_cancelled: bool


@dataclass(frozen=True, kw_only=True)
class Report:
    """What happened, and what was wrong."""

    figures: Mapping[str, Any]
    violations: Sequence[str]


def report_of(field: Field, programs: Sequence[Outcome], counts: Mapping[str, int], seconds: float) -> Report:
    """Check and count; nobody may use the store any more."""
    evidence = gather(field, programs)
    _log.info("%s operations of %s runs are checked", len(evidence.operations), len(evidence.state.records))
    violations = check(evidence)
    expected = sum(runs_of(program.tree) for program in programs if not program.is_cancelled)
    taken = list(takeovers(evidence))
    waits = sorted(end - begin for begin, end in taken)
    troubles = _troubles(evidence)
    alone = sorted(end - begin for begin, end in taken if not _is_disturbed(begin, end, troubles))
    kills = Counter(op.data["kind"] for op in evidence.operations if op.verb == "kill")
    executed = Counter(call.place for call in evidence.of("execute"))
    ended = Counter(call.place for call in evidence.of("execute") if call.is_ok)
    figures = {
        "seconds": round(seconds),
        "kills": kills.total(),
        "kills of whole workers": kills["worker"],
        "kills of pool children": kills["child"],
        "workers that ended by themselves": field.revived,
        "other faults": {name: count for name, count in sorted(counts.items()) if not name.startswith("kill_")},
        "programs": len(programs),
        "runs": len(evidence.state.records),
        "runs expected at least": expected,
        "steps executed": len(executed),
        "executions": executed.total(),
        "steps whose effect happened twice or more": sum(count > 1 for count in ended.values()),
        "outcomes recorded": sum(_outcomes(evidence)),
        "recorded twice": sum(text.startswith("I2") for text in violations),
        "lost": sum(text.startswith("I5") for text in violations),
        "violations": len(violations),
        "takeovers": len(waits),
        "takeover p50, s": quantile(waits, 0.5),
        "takeover p99, s": quantile(waits, 0.99),
        "takeover longest, s": quantile(waits, 1.0),
        "takeovers with no other kill or fault meanwhile": len(alone),
        "of these p50, s": quantile(alone, 0.5),
        "of these p99, s": quantile(alone, 0.99),
        "failed because a step lost all its attempts to kills": sum(map(evidence.is_worn_out, _failures(evidence))),
        "operations": len(evidence.operations),
    }
    return Report(figures=figures, violations=violations)


def gather(field: Field, programs: Sequence[Outcome]) -> Evidence:
    """Read all files and the store."""
    return Evidence(
        operations=read_operations(field.operations),
        state=snapshot(field.store),
        code=lambda name: binding_of(field.app).definition(name, 1),
        results={program.workflow_id: value_of(program.tree) for program in programs},
        cancelled=frozenset(program.workflow_id for program in programs if program.is_cancelled),
        steps={program.workflow_id: steps_of(program.tree) for program in programs},
        lost_attempts=binding_of(field.app).settings.lost_attempts,
    )


def _failures(evidence: Evidence) -> Iterable[str | None]:
    for _, history in evidence.histories():
        if history and isinstance(history[-1].event, RunFailed):
            yield history[-1].event.payload


def _outcomes(evidence: Evidence) -> Iterable[int]:
    for _, history in evidence.histories():
        yield sum(isinstance(item.event, StepCompleted | StepFailed) for item in history)


def quantile(ordered: Sequence[float], part: float) -> float | None:
    """Return the value below which a part of the values lies; None of none."""
    return round(ordered[min(int(len(ordered) * part), len(ordered) - 1)], 2) if ordered else None


def takeovers(evidence: Evidence) -> Iterable[tuple[float, float]]:
    """Give the times of each kill of a process that held something, and of the next take or claim of that.

    What a process held is what it was given and had not begun to give back. A step that nobody wanted any more, and a
    run that had ended, are taken over by nobody.
    """
    deaths = _deaths(evidence.operations)
    grants = evidence.grouped(call for call in evidence.of("claim") if call.granted)
    leases: dict[Place, list[Call]] = {}
    for call in evidence.of("take", "finish"):
        # One that came and went in one operation was in nobody's hands.
        if call.granted and call.data.get("held", True):
            leases.setdefault((call.workflow, None), []).append(call)
    ends = evidence.grouped(evidence.of("finish", "postpone"))
    returns = evidence.grouped(evidence.of("commit", "release", "deliver"))
    for held, given_back in ((grants, ends), (leases, returns)):
        for place, calls in held.items():
            ordered = sorted(calls, key=_answered_at)
            times = [_answered_at(call) for call in ordered]
            for call in ordered:
                died_at = deaths.get(call.asked.process)
                if died_at is None or _is_given_back(call, given_back.get(place, ())):
                    continue
                index = bisect_right(times, died_at)
                if index < len(times):
                    yield died_at, times[index]


def _troubles(evidence: Evidence) -> list[tuple[float, float]]:
    """Return from when to when something was broken; a kill is a moment."""
    found = [(op.at, op.at) for op in evidence.operations if op.verb == "kill"]
    return found + [(call.asked.at, _answered_at(call)) for call in evidence.of("fault")]


def _is_disturbed(begin: float, end: float, troubles: Iterable[tuple[float, float]]) -> bool:
    # The kill itself was noted a moment before the process died of it.
    return any(until > begin and since < end for since, until in troubles)


def _deaths(operations: Sequence[Operation]) -> dict[str, float]:
    """Return when each killed process died: at the first kill of its pid after its last operation."""
    last = {op.process: op.at for op in operations}
    kills: dict[int, list[float]] = {}
    for op in operations:
        if op.verb == "kill":
            for pid in op.data["pids"]:
                kills.setdefault(pid, []).append(op.at)
    deaths: dict[str, float] = {}
    for process, at in last.items():
        pid = int(process.split(":")[2].partition(".")[0])
        # Between the note of the kill and the kill itself it may have written.
        later = [killed_at for killed_at in kills.get(pid, ()) if killed_at > at - 1.0]
        if later:
            deaths[process] = later[0]
    return deaths


def _is_given_back(grant: Call, returns: Iterable[Call]) -> bool:
    owner = grant.answer.owner if grant.answer else None
    for call in returns:
        if call.asked.process != grant.asked.process or call.asked.at < _answered_at(grant):
            continue
        if call.verb == "commit":
            # A commit may keep the lease; one without an answer may have given it back.
            if call.asked.token == grant.granted and not call.data.get("held"):
                return True
        elif call.verb == "finish":
            if call.asked.token == grant.granted:
                return True
        elif call.asked.owner == owner:
            return True
    return False


def _answered_at(call: Call) -> float:
    return call.answer.at if call.answer else call.asked.at
