"""Runs as people read them: the table of ``list``, the story of ``show``."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING

import click

from durable_celery.codec import place_of, summary
from durable_celery.events import (
    CommandCancelled,
    RunCompleted,
    RunStarted,
    StepCompleted,
    StepFailed,
    StepScheduled,
)
from durable_celery.store.protocol import RunStatus, StepKey
from durable_celery.timeline import call, duration, failure, value
from durable_celery.workflow.story import instant

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from durable_celery.codec import Codec
    from durable_celery.events import Recorded
    from durable_celery.store.protocol import RunPage, RunRecord

__all__ = ["children", "run_story", "run_table"]

_COLOURS = {
    RunStatus.PENDING: "yellow",
    RunStatus.RUNNING: "cyan",
    RunStatus.BLOCKED: "red",
    RunStatus.COMPLETED: "green",
    RunStatus.FAILED: "red",
    RunStatus.CANCELLED: "magenta",
}


def run_table(page: RunPage) -> list[str]:
    """Return a page of runs as an aligned table, with the way to the next page."""
    rows = [(run.workflow_id, run.name, _status(run), _age(run), _waiting(run)) for run in page.runs]
    lines = _table(("ID", "WORKFLOW", "STATUS", "AGE", "WAITING FOR"), rows)
    return [*lines, *(["", f"more: add --cursor {page.cursor}"] if page.cursor else [])]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return aligned lines; on a terminal the last column ends where the terminal does."""
    *columns, last = zip(head, *rows, strict=True)
    padded = [_pad(column) for column in columns]
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - sum(len(click.unstyle(column[0])) + 2 for column in padded)
        last = tuple(summary(cell, max(room, len(head[-1]))) for cell in last)
    return ["  ".join(cells).rstrip() for cells in zip(*padded, last, strict=True)]


def _pad(cells: Sequence[str]) -> list[str]:
    lengths = [len(click.unstyle(cell)) for cell in cells]
    return [cell + " " * (max(lengths) - length) for cell, length in zip(cells, lengths, strict=True)]


def _age(run: RunRecord) -> str:
    """Return how long ago the run was started; this machine's clock is near enough to the store's for that."""
    return _ago(run.created_at)


def _ago(at: int) -> str:
    seconds = max(0.0, time.time() - at / 1000)
    return f"{seconds:.0f} s" if seconds < 60 else duration(seconds)  # noqa: PLR2004 - a minute


def _waiting(run: RunRecord) -> str:
    if run.status is RunStatus.BLOCKED:
        return (run.reason.splitlines() or [""])[0]
    if run.closed_at is not None:
        return f"- (took {duration((run.closed_at - run.created_at) / 1000)})"
    return run.waiting or ("a turn is running" if run.owner else "a worker")


def _status(run: RunRecord) -> str:
    return click.style(run.status.value, fg=_COLOURS[run.status])


def run_story(run: RunRecord, history: Sequence[Recorded], codec: Codec) -> list[str]:
    """Return all that people want to know of one run, as lines."""
    facts = list(_facts(run, history, codec))
    lines = [click.style(run.workflow_id, bold=True), *(f"  {name:<11}{text}" for name, text in facts)]
    if run.steps:
        lines += ["", "open steps", *_step_table(run, history, codec)]
    if known := children(run, history):
        rows = [(child["workflow_id"], child["name"], child["state"]) for child in known]
        lines += ["", "children", *_indent(_table(("ID", "WORKFLOW", "STATE"), rows))]
    if run.reason:
        lines += ["", click.style("blocked, because", fg="red"), *_indent(run.reason.splitlines())]
        lines += [
            "",
            f"Tried {run.failures} times so far; it is tried again by itself.",
        ]
    return lines


def _facts(run: RunRecord, history: Sequence[Recorded], codec: Codec) -> Iterator[tuple[str, str]]:
    first = history[0].event
    words = run.name
    if isinstance(first, RunStarted):
        words = call(run.name, first.payload, codec, place=place_of(first, run.workflow_id, run.run))
    yield "workflow", words
    yield "status", _status(run)
    yield "started", f"{instant(run.created_at):%Y-%m-%d %H:%M:%S} UTC, {_ago(run.created_at)} ago"
    if run.closed_at is not None:
        took = duration((run.closed_at - run.created_at) / 1000)
        delivered = "" if run.delivered else ", not yet delivered to Celery"
        yield "ended", f"{instant(run.closed_at):%Y-%m-%d %H:%M:%S} UTC, after {took}{delivered}"
        end = history[-1].event
        tell = value if isinstance(end, RunCompleted) else failure
        yield "outcome", tell(end.payload, codec, place=place_of(end, run.workflow_id, run.run))
    elif run.status is not RunStatus.BLOCKED:
        yield "waits for", _waiting(run)
    if run.run > 1:
        yield "run", f"{run.run}, since {instant(history[0].at):%Y-%m-%d %H:%M:%S} UTC; of the others, `history --run`"
    yield "history", f"{run.length} events"
    if run.owner:
        yield "turn", f"runs now, in {_owner(run.owner)}"
    if run.parent:
        parent = StepKey.parse(run.parent)
        yield "parent", f"{parent.workflow_id}, its step {parent.number}" if parent else run.parent


def _step_table(run: RunRecord, history: Sequence[Recorded], codec: Codec) -> list[str]:
    calls = {
        item.event.number: call(
            item.event.task, item.event.payload, codec, place=place_of(item.event, run.workflow_id, run.run)
        )
        for item in history
        if isinstance(item.event, StepScheduled)
    }
    rows = [
        (
            str(step.number),
            calls.get(step.number, "?"),
            step.state.value,
            f"{step.attempt} ({step.lost} lost)" if step.lost else str(step.attempt),
            _owner(step.owner) if step.owner else "-",
            "-" if step.due_at is None else _due(step.due_at),
            step.error or "-",
        )
        for step in run.steps
    ]
    return _indent(_table(("NO.", "CALL", "STATE", "ATTEMPT", "OWNER", "DUE", "LAST ERROR"), rows))


def _owner(name: str) -> str:
    """Return the process behind an owner's name (see :mod:`durable_celery.identity`) in words."""
    host, _, place = name.partition("#")[0].rpartition(":")
    return f"pid {place.partition('.')[0]} of {host.partition(':')[0]}" if host else name


def _due(at: int) -> str:
    left = at / 1000 - time.time()
    return f"in {duration(left)}" if left > 0 else "now"


def children(run: RunRecord, history: Sequence[Recorded]) -> list[dict[str, str]]:
    """Return the child runs as the parent's history knows them."""
    states = {StepCompleted: "completed", StepFailed: "failed or cancelled", CommandCancelled: "not wanted any more"}
    known: dict[int, dict[str, str]] = {}
    for item in history:
        event = item.event
        if isinstance(event, StepScheduled) and event.kind == "workflow":
            key = StepKey(workflow_id=run.workflow_id, run=run.run, number=event.number)
            known[event.number] = {"workflow_id": str(key), "name": event.task, "state": "open"}
        elif isinstance(event, StepCompleted | StepFailed | CommandCancelled):
            number = event.target if isinstance(event, CommandCancelled) else event.number
            if number in known:
                known[number]["state"] = states[type(event)]
    return list(known.values())


def _indent(lines: Sequence[str]) -> list[str]:
    return [f"  {line}".rstrip() for line in lines]
