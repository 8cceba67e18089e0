"""``celery -A app durable export``: save histories to files, to be replayed by tests.

A file is the exported form of :mod:`durable_celery.events`, as ``durable_celery.testing`` reads it. A file that is
there is kept, because a history that was once saved is a test; it is written again only where that is asked for.
"""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from durable_celery.cli.console import client_of, command, show_json, show_lines
from durable_celery.codec import digest, place_of
from durable_celery.events import CancelRequested, StepScheduled, history_to_json
from durable_celery.store.protocol import RunStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from durable_celery.client import Client
    from durable_celery.codec import Codec
    from durable_celery.events import Event
    from durable_celery.store.protocol import RunRecord

__all__ = ["export"]

_FOLDER = Path("tests") / "histories"
#: Longest file name that is made of an id, without its suffix; file systems take 255 bytes.
_LONGEST = 200


@click.command()
@click.argument("workflow_ids", nargs=-1, metavar="[WORKFLOW_ID]...")
@click.option("--status", type=click.Choice([status.value for status in RunStatus]), help="Only runs of this status.")
@click.option("--name", help="Only runs of this workflow.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Save at most so many.")
@click.option(
    *("--output", "-o"),
    type=click.Path(path_type=Path),
    default=_FOLDER,
    show_default=True,
    help="A folder (a file for each run), a .json file (one run) or a .jsonl file (one run on each line).",
)
@click.option("--overwrite", is_flag=True, help="Write files again that are there.")
@click.option("--decode", is_flag=True, help="Save encrypted or compressed payloads as plain text.")
@click.pass_context
@command
def export(  # noqa: PLR0913 - one parameter for each option
    ctx: click.Context,
    workflow_ids: tuple[str, ...],
    *,
    status: str | None,
    name: str | None,
    limit: int,
    output: Path,
    overwrite: bool,
    decode: bool,
    as_json: bool,
) -> None:
    """Save histories, to be replayed by tests.

    Saves the runs of these ids; without ids the newest runs, of a status or a workflow if given. A run that is open
    is saved as far as it is. Arguments, results and failures are in the files: look at them before you commit them.
    """
    if workflow_ids and (status or name):
        raise click.UsageError("give ids, or --status and --name, not both")
    client = client_of(ctx)
    runs = map(client.describe, workflow_ids) if workflow_ids else _runs(client, status, name, limit)
    forms = {run.workflow_id: _form(client, run, decode=decode) for run in runs}
    try:
        files = list(_write(output, forms, overwrite=overwrite))
    except OSError as error:
        raise click.FileError(str(output), error.strerror or str(error)) from error
    if as_json:
        show_json(ctx, {"files": [{"path": str(path), "written": written} for path, written in files]})
    else:
        lines = [f"{'saved' if written else 'kept '}  {path}" for path, written in files]
        show_lines(ctx, lines or ["no runs match"])


def _runs(client: Client, status: str | None, name: str | None, limit: int) -> Iterator[RunRecord]:
    """Yield the newest runs, page by page."""
    cursor, left = None, limit
    while left:
        page = client.runs(status=status, name=name, cursor=cursor, limit=left)
        yield from page.runs
        cursor, left = page.cursor, left - len(page.runs)
        if cursor is None:
            return


def _form(client: Client, run: RunRecord, *, decode: bool) -> dict[str, Any]:
    """Return the exported form of a run's history."""
    history = client.history(run.workflow_id, run.run)
    if decode:
        history = [replace(item, event=_decoded(item.event, run, client.codec)) for item in history]
    return history_to_json(run.workflow_id, history, run.run)


def _decoded(event: Event, run: RunRecord, codec: Codec) -> Event:
    """Return an event as an app without ``durable_codec`` would have written it.

    But for the digests of local steps: their arguments are not in the history, so they stay under their key.
    """
    place = place_of(event, run.workflow_id, run.run)
    if isinstance(event, CancelRequested):
        return replace(event, reason=codec.legible(event.reason, place))
    if event.payload is None:
        return event
    text = codec.open(event.payload, place) if event.payload.startswith("~") else event.payload
    changed = replace(event, payload=text)
    return replace(changed, digest=digest(text)) if isinstance(changed, StepScheduled) else changed


def _write(output: Path, forms: Mapping[str, dict[str, Any]], *, overwrite: bool) -> Iterator[tuple[Path, bool]]:
    """Write the files; yield each with whether it was written now."""
    if output.suffix == ".jsonl":
        lines = (json.dumps(form, ensure_ascii=False) for form in forms.values())
        yield output, _save(output, lines, overwrite=overwrite)
    elif output.suffix == ".json":
        if len(forms) != 1:
            raise click.UsageError(f"{output} takes one run, not {len(forms)}; give a folder or a .jsonl file")
        yield output, _save(output, map(_pretty, forms.values()), overwrite=overwrite)
    else:
        for workflow_id, form in forms.items():
            # A workflow's next run is another history. No name of an id has a '#'.
            which = f"#{form['run']}" if "run" in form else ""
            path = output / f"{_file_name(workflow_id)}{which}.json"
            yield path, _save(path, [_pretty(form)], overwrite=overwrite)


def _save(path: Path, lines: Iterable[str], *, overwrite: bool) -> bool:
    if path.exists() and not overwrite:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return True


def _pretty(form: Mapping[str, Any]) -> str:
    return json.dumps(form, indent=1, ensure_ascii=False)


def _file_name(workflow_id: str) -> str:
    """Return a name that belongs to this id alone and leads to no other folder: an id may be ``../..``."""
    name = quote(workflow_id, safe="@:+=,")
    if len(name) <= _LONGEST:
        return name
    return f"{name[:_LONGEST]}-{blake2b(workflow_id.encode(), digest_size=8).hexdigest()}"
