"""``migrate``: make the tables of an SQL store and of the archive, or bring them up to date."""

from __future__ import annotations

from typing import Any

import click

from durable_celery.cli.console import command, show_json, show_lines
from durable_celery.errors import ConfigurationError

__all__ = ["migrate"]


@click.command()
@click.option("--post", is_flag=True, help="After a deploy: also take away what only the release before has used.")
@click.pass_context
@command
def migrate(ctx: click.Context, *, post: bool, as_json: bool) -> None:
    """Make the tables of an SQL store and of the archive, or bring them up to date. It may be repeated."""
    from durable_celery.app import binding_of

    binding = binding_of(ctx.obj.app)
    store: Any = binding.store
    has_tables, archive = hasattr(store, "migrate"), binding.archive
    if not has_tables and archive is None:
        raise ConfigurationError("this app's store has no tables, and it has no archive: there is nothing to migrate")
    version = store.migrate(post=post) if has_tables else None
    if archive is not None:
        archive.migrate()
    namespace = binding.settings.namespace
    if as_json:
        show_json(ctx, {"namespace": namespace, "schema": version, "archive": archive is not None})
        return
    lines = [f"the tables {namespace}_* are at schema {version}"] if has_tables else []
    show_lines(ctx, [*lines, *([f"the tables {namespace}_archive_* are there"] if archive is not None else [])])
