"""The commands that talk to a run: query, update, follow."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
from celery.exceptions import TimeoutError as CeleryTimeoutError

from durable_celery import progress
from durable_celery.cli.console import client_of, command, show_lines
from durable_celery.codec import Codec
from durable_celery.errors import DurableError
from durable_celery.workflow import Note

if TYPE_CHECKING:
    from collections.abc import Sequence

    from durable_celery.handle import WorkflowHandle

__all__ = ["follow", "query", "update"]


@click.command()
@click.argument("workflow_id")
@click.argument("name")
@click.argument("args", nargs=-1, metavar="[JSON]...")
@click.pass_context
@command
def query(ctx: click.Context, workflow_id: str, name: str, args: tuple[str, ...], *, as_json: bool) -> None:
    """Ask a query of a run. Its arguments are JSON. The answer is worked out here, and no worker is needed."""
    answer = _ask(_handle_of(ctx, workflow_id).query, name, *_read(args))
    _show(ctx, answer, f"the answer of query {name!r}", as_json=as_json)


@click.command()
@click.argument("workflow_id")
@click.argument("name")
@click.argument("args", nargs=-1, metavar="[JSON]...")
@click.option("--key", help="Requests with the same key are one; give it where the command may be repeated.")
@click.option("--timeout", type=click.FloatRange(0), help="Wait so many seconds for the outcome at most.")
@click.pass_context
@command
def update(
    ctx: click.Context,
    workflow_id: str,
    name: str,
    args: tuple[str, ...],
    *,
    key: str | None,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Ask a run for an update, wait for its outcome and print it. Its arguments are JSON."""
    answer = _ask(_handle_of(ctx, workflow_id).update, name, *_read(args), key=key, timeout=timeout)
    _show(ctx, answer, f"the outcome of update {name!r}", as_json=as_json)


@click.command()
@click.argument("workflow_id")
@click.argument("key", required=False)
@click.option("--after", type=click.IntRange(0), default=0, help="Go on behind this offset.")
@click.pass_context
@command
def follow(ctx: click.Context, workflow_id: str, key: str | None, *, after: int, as_json: bool) -> None:
    """Print what a run publishes and adds to its streams, as it comes, until the run ends.

    With KEY only what stands under this key, or in this stream. With --json each line is a document.
    """
    client = client_of(ctx)
    for one in progress.follow(client, workflow_id, after=after):
        if key not in {None, one.key}:
            continue
        if as_json:
            form = {"offset": one.offset, "at": one.at, "kind": one.kind, "key": one.key, "value": _plain(one.value)}
            show_lines(ctx, [json.dumps(form, ensure_ascii=False)])
        else:
            sign = "=" if one.kind is Note.PUBLISHED else "<<"
            show_lines(ctx, [f"{one.offset:>6}  {one.key} {sign} {one.value!r}"])


def _handle_of(ctx: click.Context, workflow_id: str) -> WorkflowHandle[Any]:
    from durable_celery.app import binding_of

    return binding_of(ctx.obj.app).handle(workflow_id)


def _ask(verb: Any, *args: Any, **options: Any) -> Any:
    """Call a verb of the handle; what the workflow's own code raises is told in one line too."""
    try:
        return verb(*args, **options)
    except DurableError:
        raise
    except CeleryTimeoutError as error:
        raise DurableError(str(error)) from error
    except Exception as error:
        raise DurableError(f"{type(error).__name__}: {error}") from error


def _read(args: Sequence[str]) -> list[Any]:
    values = []
    for word in args:
        try:
            values.append(json.loads(word))
        except ValueError as error:
            raise click.UsageError(f"{word!r} is no JSON ({error}). A text needs its quotes: '\"text\"'") from error
    return values


def _show(ctx: click.Context, value: object, what: str, *, as_json: bool) -> None:
    lines = json.dumps(_plain(value, what), indent=2 if as_json else None, ensure_ascii=False)
    show_lines(ctx, [lines])


def _plain(value: object, what: str = "a value") -> Any:
    """Return a value as JSON has it: datetimes and the like as text."""
    return json.loads(Codec().dumps(value, what))
