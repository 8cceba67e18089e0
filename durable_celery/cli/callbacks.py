"""``celery -A app durable callback``: answer a callback by its token, from a script or by hand."""

from __future__ import annotations

import click

from durable_celery.cli.console import client_of, command, read_value, show_json, show_lines

__all__ = ["callback"]


@click.group()
def callback() -> None:
    """Answer what a workflow asked an outside system, by the token that it gave out."""


@callback.command()
@click.argument("token")
@click.argument("value", default="null")
@click.pass_context
@command
def complete(ctx: click.Context, token: str, value: str, *, as_json: bool) -> None:
    """Answer with a value. VALUE is JSON: true, 12, '"text"', '{"paid": 12}'; null if left out."""
    _show(ctx, client_of(ctx).complete_callback(token, read_value(value)), as_json=as_json)


@callback.command()
@click.argument("token")
@click.argument("message")
@click.pass_context
@command
def fail(ctx: click.Context, token: str, message: str, *, as_json: bool) -> None:
    """Answer with a failure; MESSAGE says what went wrong."""
    _show(ctx, client_of(ctx).fail_callback(token, message), as_json=as_json)


@callback.command()
@click.argument("token")
@click.pass_context
@command
def heartbeat(ctx: click.Context, token: str, *, as_json: bool) -> None:
    """Show that somebody still works on the answer."""
    client_of(ctx).heartbeat_callback(token)
    if as_json:
        show_json(ctx, {"accepted": True})
    else:
        show_lines(ctx, ["the sign of life is in the history"])


def _show(ctx: click.Context, accepted: bool, *, as_json: bool) -> None:  # noqa: FBT001 - the answer of a verb
    if as_json:
        show_json(ctx, {"accepted": accepted})
    else:
        show_lines(ctx, ["the answer is in the history" if accepted else "it was answered before; nothing was changed"])
