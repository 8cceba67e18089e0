"""The commands that look at runs and act on them: list, show, history, signal, cancel."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from durable_celery.cli.console import client_of, command, show_json, show_lines
from durable_celery.cli.tables import children, run_story, run_table
from durable_celery.codec import Codec, place_of
from durable_celery.events import CancelRequested, history_to_json
from durable_celery.store.protocol import RunStatus
from durable_celery.timeline import timeline

if TYPE_CHECKING:
    from durable_celery.client import Client
    from durable_celery.events import Recorded
    from durable_celery.store.protocol import RunRecord

__all__ = ["cancel", "history", "list_", "show", "signal"]

#: Characters that a payload, or an error, may take in ``--json`` without ``--payloads``.
_SHORT = 200
_RUN = click.option("--run", type=click.IntRange(1), help="An earlier run of a workflow that continued as new.")
_DECODE = click.option("--decode", is_flag=True, help="Show what durable_codec hides, if this process has the keys.")


@click.command("list")
@click.option("--status", type=click.Choice([status.value for status in RunStatus]), help="Only runs of this status.")
@click.option("--name", help="Only runs of this workflow.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Print at most so many.")
@click.option("--cursor", help="Go on where an earlier page ended.")
@click.pass_context
@command
def list_(
    ctx: click.Context, status: str | None, name: str | None, limit: int, cursor: str | None, *, as_json: bool
) -> None:
    """List runs, the newest first."""
    page = client_of(ctx).runs(status=status, name=name, cursor=cursor, limit=limit)
    if as_json:
        show_json(ctx, {"runs": [_record_form(run) for run in page.runs], "cursor": page.cursor})
    elif page.runs:
        show_lines(ctx, run_table(page))
    else:
        show_lines(ctx, ["no runs" if status is None and name is None and cursor is None else "no runs match"])


@click.command()
@click.argument("workflow_id")
@_DECODE
@click.pass_context
@command
def show(ctx: click.Context, workflow_id: str, *, decode: bool, as_json: bool) -> None:
    """Show a run: what it waits for, its open steps, why it is blocked, its parent and children."""
    client = client_of(ctx)
    run = client.describe(workflow_id)
    history = client.history(workflow_id, run.run)
    if decode:
        run = client.legible(run)
    if as_json:
        show_json(ctx, {**_record_form(run), "children": children(run, history)})
    else:
        show_lines(ctx, run_story(run, history, _reader(client, decode=decode)))


@click.command()
@click.argument("workflow_id")
@_DECODE
@click.option("--payloads", is_flag=True, help="Print arguments, results and failures in full.")
@_RUN
@click.pass_context
@command
def history(
    ctx: click.Context, workflow_id: str, *, run: int | None, payloads: bool, decode: bool, as_json: bool
) -> None:
    """Print everything that happened in a run, as a timeline."""
    client = client_of(ctx)
    run = client.describe(workflow_id).run if run is None else run
    events = client.history(workflow_id, run)
    codec = _reader(client, decode=decode)
    if not as_json:
        show_lines(ctx, [timeline(workflow_id, events, run=run, codec=codec, **({"limit": 0} if payloads else {}))])
        return
    if decode:
        events = [_opened(item, workflow_id, run, codec) for item in events]
    form = history_to_json(workflow_id, events, run)
    for entry in () if payloads else form["events"]:
        if len(entry.get("payload", "")) > _SHORT:
            entry["payload"] = f"{entry['payload'][:_SHORT]}…"
    show_json(ctx, form)


@click.command()
@click.argument("workflow_id")
@click.argument("name")
@click.argument("value", default="null")
@click.option("--key", help="Signals with the same key are one; give it where the command may be repeated.")
@click.pass_context
@command
def signal(ctx: click.Context, workflow_id: str, name: str, value: str, key: str | None, *, as_json: bool) -> None:
    """Send a signal. VALUE is JSON: true, 12, '"text"', '{"by": "ann"}'; null if left out."""
    try:
        decoded = json.loads(value)
    except ValueError as error:
        raise click.UsageError(f"VALUE is no JSON ({error}): {value!r}. A text needs its quotes: '\"text\"'") from error
    client_of(ctx).signal(workflow_id, name, decoded, key=key)
    if as_json:
        show_json(ctx, {"workflow_id": workflow_id, "signal": name, "accepted": True})
    else:
        show_lines(ctx, [f"signal {name} is in the history of {workflow_id}"])


@click.command()
@click.argument("workflow_id")
@click.option("--reason", default="", help="Why; it stands in the history.")
@click.pass_context
@command
def cancel(ctx: click.Context, workflow_id: str, reason: str, *, as_json: bool) -> None:
    """Ask a run to stop. Its clean-up code runs, its child runs are cancelled as well."""
    client = client_of(ctx)
    client.cancel(workflow_id, reason)
    if as_json:
        show_json(ctx, {"workflow_id": workflow_id, "cancel": True, "accepted": True})
    else:
        show_lines(ctx, [f"the cancellation is in the history of {workflow_id}; its clean-up code runs now"])


def _record_form(run: RunRecord) -> dict[str, Any]:
    """Return a run for programs; the envelope is Celery's business."""
    form = asdict(run)
    del form["envelope"]
    return form


def _reader(client: Client, *, decode: bool) -> Codec:
    """Return what reads payloads for people: hidden ones are shown as they are stored, unless somebody asks."""
    return client.codec if decode or not client.codec.hides else Codec()


def _opened(item: Recorded, workflow_id: str, run: int, codec: Codec) -> Recorded:
    """Return an event as somebody with the keys reads it; what cannot be opened stays as it is."""
    event, place = item.event, place_of(item.event, workflow_id, run)
    if isinstance(event, CancelRequested):
        return replace(item, event=replace(event, reason=codec.legible(event.reason, place)))
    if event.payload is None:
        return item
    return replace(item, event=replace(event, payload=codec.legible(event.payload, place)))
