"""The commands that end a step from outside, by its token: complete, fail."""

from __future__ import annotations

import json

import click

from durable_celery.cli.console import client_of, command, show_json, show_lines

__all__ = ["complete", "fail"]


@click.command()
@click.argument("token")
@click.argument("result", default="null")
@click.pass_context
@command
def complete(ctx: click.Context, token: str, result: str, *, as_json: bool) -> None:
    """Give the result of a step that waits for it. TOKEN is the step's key; RESULT is JSON, null if left out."""
    try:
        decoded = json.loads(result)
    except ValueError as error:
        raise click.UsageError(
            f"RESULT is no JSON ({error}): {result!r}. A text needs its quotes: '\"text\"'"
        ) from error
    client_of(ctx).complete_step(token, decoded)
    _show(ctx, token, "result", as_json=as_json)


@click.command()
@click.argument("token")
@click.argument("reason")
@click.pass_context
@command
def fail(ctx: click.Context, token: str, reason: str, *, as_json: bool) -> None:
    """Let a step fail that waits for its result. TOKEN is the step's key; REASON is text for people."""
    client_of(ctx).fail_step(token, reason)
    _show(ctx, token, "failure", as_json=as_json)


def _show(ctx: click.Context, token: str, what: str, *, as_json: bool) -> None:
    if as_json:
        show_json(ctx, {"token": token, "outcome": what, "accepted": True})
    else:
        show_lines(ctx, [f"the {what} of step {token} is in the history"])
