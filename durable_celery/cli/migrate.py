"""``migrate``: make the tables of an SQL store, or bring them up to date."""

from __future__ import annotations

from typing import Any

import click

from durable_celery.cli.console import command, show_json, show_lines
from durable_celery.errors import ConfigurationError

__all__ = ["migrate"]


@click.command()
@click.pass_context
@command
def migrate(ctx: click.Context, *, as_json: bool) -> None:
    """Make the tables of an SQL store, or bring them up to date. May be repeated, and while workers run."""
    from durable_celery.app import binding_of

    binding = binding_of(ctx.obj.app)
    store: Any = binding.store
    if not hasattr(store, "migrate"):
        raise ConfigurationError("this app's store has no tables: only SQL stores are migrated")
    version = store.migrate()
    if as_json:
        show_json(ctx, {"namespace": binding.settings.namespace, "schema": version})
    else:
        show_lines(ctx, [f"the tables {binding.settings.namespace}_* are at schema {version}"])
