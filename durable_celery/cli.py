"""``celery -A app durable``: look at runs and act on them, from the command line.

Everything here goes through :class:`durable_celery.client.Client`, so it works while no worker runs. ``--json`` prints
one JSON document for programs: instants are milliseconds since 1970, as in the log.

Exit codes: 0 done; 1 other errors; 2 wrong usage; 3 no such run; 4 the run has ended already; 69 the store does not
answer.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ParamSpec

import click
from celery.exceptions import CeleryCommandException

from durable_celery.codec import summary
from durable_celery.errors import (
    DurableError,
    InvalidRequestError,
    StoreUnavailableError,
    WorkflowClosedError,
    WorkflowNotFoundError,
)
from durable_celery.events import (
    CommandCancelled,
    RunCompleted,
    RunStarted,
    StepCompleted,
    StepFailed,
    StepScheduled,
    history_to_json,
)
from durable_celery.store.protocol import RunStatus, StepKey
from durable_celery.timeline import call, duration, failure, timeline, value
from durable_celery.workflow.story import instant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from durable_celery.client import Client
    from durable_celery.events import Recorded
    from durable_celery.store.protocol import RunPage, RunRecord

__all__ = ["durable"]

P = ParamSpec("P")

_EXIT_CODES: dict[type[DurableError], int] = {
    InvalidRequestError: 2,
    WorkflowNotFoundError: 3,
    WorkflowClosedError: 4,
    StoreUnavailableError: 69,  # EX_UNAVAILABLE, as Celery's own commands have it
}
_COLOURS = {
    RunStatus.PENDING: "yellow",
    RunStatus.RUNNING: "cyan",
    RunStatus.BLOCKED: "red",
    RunStatus.COMPLETED: "green",
    RunStatus.FAILED: "red",
    RunStatus.CANCELLED: "magenta",
}
#: Characters that a payload, or an error, may take in ``--json`` without ``--payloads``.
_SHORT = 200


@click.group()
def durable() -> None:
    """Look at durable workflows, signal and cancel them."""


def _command(function: Callable[P, None]) -> Callable[P, None]:
    """Add ``--json``, and turn errors of this library into one line and an exit code."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except DurableError as error:
            code = next((code for kind, code in _EXIT_CODES.items() if isinstance(error, kind)), 1)
            raise CeleryCommandException(str(error), code) from error

    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(run)


@durable.command("list")
@click.option("--status", type=click.Choice([status.value for status in RunStatus]), help="Only runs of this status.")
@click.option("--name", help="Only runs of this workflow.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Print at most so many.")
@click.option("--cursor", help="Go on where an earlier page ended.")
@click.pass_context
@_command
def list_(
    ctx: click.Context, status: str | None, name: str | None, limit: int, cursor: str | None, *, as_json: bool
) -> None:
    """List runs, the newest first."""
    page = _client(ctx).runs(status=status, name=name, cursor=cursor, limit=limit)
    if as_json:
        _print_json(ctx, {"runs": [_record_form(run) for run in page.runs], "cursor": page.cursor})
    elif page.runs:
        _print(ctx, _run_table(page))
    else:
        _print(ctx, ["no runs" if status is None and name is None and cursor is None else "no runs match"])


@durable.command()
@click.argument("workflow_id")
@click.pass_context
@_command
def show(ctx: click.Context, workflow_id: str, *, as_json: bool) -> None:
    """Show a run: what it waits for, its open steps, why it is blocked, its parent and children."""
    client = _client(ctx)
    run, history = client.describe(workflow_id), client.history(workflow_id)
    if as_json:
        _print_json(ctx, {**_record_form(run), "children": _children(run, history)})
    else:
        _print(ctx, _run_story(run, history, client))


@durable.command()
@click.argument("workflow_id")
@click.option("--payloads", is_flag=True, help="Print arguments, results and failures in full.")
@click.pass_context
@_command
def history(ctx: click.Context, workflow_id: str, *, payloads: bool, as_json: bool) -> None:
    """Print everything that happened in a run, as a timeline."""
    client = _client(ctx)
    events = client.history(workflow_id)
    if not as_json:
        _print(ctx, [timeline(workflow_id, events, codec=client.codec, **({"limit": 0} if payloads else {}))])
        return
    form = history_to_json(workflow_id, events)
    for entry in () if payloads else form["events"]:
        if len(entry.get("payload", "")) > _SHORT:
            entry["payload"] = f"{entry['payload'][:_SHORT]}…"
    _print_json(ctx, form)


@durable.command()
@click.argument("workflow_id")
@click.argument("name")
@click.argument("value", default="null")
@click.option("--key", help="Signals with the same key are one; give it where the command may be repeated.")
@click.pass_context
@_command
def signal(ctx: click.Context, workflow_id: str, name: str, value: str, key: str | None, *, as_json: bool) -> None:
    """Send a signal. VALUE is JSON: true, 12, '"text"', '{"by": "ann"}'; null if left out."""
    try:
        decoded = json.loads(value)
    except ValueError as error:
        raise click.UsageError(f"VALUE is no JSON ({error}): {value!r}. A text needs its quotes: '\"text\"'") from error
    _client(ctx).signal(workflow_id, name, decoded, key=key)
    if as_json:
        _print_json(ctx, {"workflow_id": workflow_id, "signal": name, "accepted": True})
    else:
        _print(ctx, [f"signal {name} is in the history of {workflow_id}"])


@durable.command()
@click.argument("workflow_id")
@click.option("--reason", default="", help="Why; it stands in the history.")
@click.pass_context
@_command
def cancel(ctx: click.Context, workflow_id: str, reason: str, *, as_json: bool) -> None:
    """Ask a run to stop. Its clean-up code runs, its child runs are cancelled as well."""
    client = _client(ctx)
    client.cancel(workflow_id, reason)
    if as_json:
        _print_json(ctx, {"workflow_id": workflow_id, "cancel": True, "accepted": True})
    else:
        _print(ctx, [f"the cancellation is in the history of {workflow_id}; its clean-up code runs now"])


def _client(ctx: click.Context) -> Client:
    # Not before it is needed: this module is loaded for every app, see the package's docstring.
    from durable_celery.app import binding_of

    return binding_of(ctx.obj.app).client


def _print(ctx: click.Context, lines: Sequence[str]) -> None:
    """Print lines; colours stay only on a terminal, and only where Celery's ``--no-color`` is not given."""
    for line in lines:
        click.echo(line, color=False if ctx.obj.no_color else None)


def _print_json(ctx: click.Context, form: object) -> None:
    _print(ctx, [json.dumps(form, indent=2, ensure_ascii=False)])


def _record_form(run: RunRecord) -> dict[str, Any]:
    """Return a run for programs; the envelope is Celery's business."""
    form = asdict(run)
    del form["envelope"]
    return form


# -- list --------------------------------------------------------------------------------------------------------------


def _run_table(page: RunPage) -> list[str]:
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


# -- show --------------------------------------------------------------------------------------------------------------


def _run_story(run: RunRecord, history: Sequence[Recorded], client: Client) -> list[str]:
    facts = list(_facts(run, history, client))
    lines = [click.style(run.workflow_id, bold=True), *(f"  {name:<11}{text}" for name, text in facts)]
    if run.steps:
        lines += ["", "open steps", *_step_table(run, history, client)]
    if children := _children(run, history):
        rows = [(child["workflow_id"], child["name"], child["state"]) for child in children]
        lines += ["", "children", *_indent(_table(("ID", "WORKFLOW", "STATE"), rows))]
    if run.reason:
        lines += ["", click.style("blocked, because", fg="red"), *_indent(run.reason.splitlines())]
        lines += [
            "",
            f"Tried {run.failures} times so far; it is tried again by itself.",
        ]
    return lines


def _facts(run: RunRecord, history: Sequence[Recorded], client: Client) -> Iterator[tuple[str, str]]:
    first = history[0].event
    yield "workflow", call(run.name, first.payload, client.codec) if isinstance(first, RunStarted) else run.name
    yield "status", _status(run)
    yield "started", f"{instant(run.created_at):%Y-%m-%d %H:%M:%S} UTC, {_ago(run.created_at)} ago"
    if run.closed_at is not None:
        took = duration((run.closed_at - run.created_at) / 1000)
        delivered = "" if run.delivered else ", not yet delivered to Celery"
        yield "ended", f"{instant(run.closed_at):%Y-%m-%d %H:%M:%S} UTC, after {took}{delivered}"
        end = history[-1].event
        tell = value if isinstance(end, RunCompleted) else failure
        yield "outcome", tell(end.payload, client.codec)
    elif run.status is not RunStatus.BLOCKED:
        yield "waits for", _waiting(run)
    yield "history", f"{run.length} events"
    if run.owner:
        yield "turn", f"runs now, in {_owner(run.owner)}"
    if run.parent:
        parent = StepKey.parse(run.parent)
        yield "parent", f"{parent.workflow_id}, its step {parent.number}" if parent else run.parent


def _step_table(run: RunRecord, history: Sequence[Recorded], client: Client) -> list[str]:
    calls = {
        item.event.number: call(item.event.task, item.event.payload, client.codec)
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


def _children(run: RunRecord, history: Sequence[Recorded]) -> list[dict[str, str]]:
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
