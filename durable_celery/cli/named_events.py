"""``celery -A app durable publish-event``: publish a named event, from a script or by hand."""

from __future__ import annotations

import click

from durable_celery.cli.console import command, read_value, show_json, show_lines

__all__ = ["publish_event"]


@click.command()
@click.argument("name")
@click.argument("value", default="null")
@click.pass_context
@command
def publish_event(ctx: click.Context, name: str, value: str, *, as_json: bool) -> None:
    """Publish a named event. VALUE is JSON: true, 12, '"text"', '{"paid": 12}'; null if left out."""
    # Not before it is needed: this module is loaded for every app, see the package's docstring.
    from durable_celery.named_events import publish_event as publish

    is_new = publish(name, read_value(value), app=ctx.obj.app)
    if as_json:
        show_json(ctx, {"published": is_new})
    else:
        show_lines(ctx, ["published" if is_new else "it was published before with this value; nothing was changed"])
