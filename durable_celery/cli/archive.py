"""``celery -A app durable archive``: put closed runs into the archive now."""

from __future__ import annotations

import click

from durable_celery.cli.console import command, show_json, show_lines
from durable_celery.errors import ConfigurationError

__all__ = ["archive"]


@click.command()
@click.pass_context
@command
def archive(ctx: click.Context, *, as_json: bool) -> None:
    """Put all closed runs that are not there yet into the archive (durable_archive). Workers do so by themselves."""
    # Not before it is needed: this module is loaded for every app, see the package's docstring.
    from durable_celery.app import binding_of

    binding = binding_of(ctx.obj.app)
    if binding.archive is None:
        raise ConfigurationError("this app has no archive: set durable_archive to the URL of an SQL database")
    from durable_celery.archive.archiver import Archiver

    binding.archive.check()
    moved = Archiver(binding.store, binding.archive, binding.settings.retention).look()
    if as_json:
        show_json(ctx, {"archived": moved, "runs": binding.archive.count()})
    else:
        show_lines(ctx, [f"{moved} runs were put into the archive; it has {binding.archive.count()}"])
