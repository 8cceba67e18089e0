"""What all commands of ``celery -A app durable`` share: the way to the client, what is printed, how errors are told."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any, ParamSpec

import click
from celery.exceptions import CeleryCommandException

from durable_celery.errors import (
    DurableError,
    EventConflictError,
    InvalidRequestError,
    StepNotOpenError,
    StoreUnavailableError,
    WorkflowClosedError,
    WorkflowNotFoundError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from durable_celery.client import Client

__all__ = ["client_of", "command", "read_value", "show_json", "show_lines"]

P = ParamSpec("P")

_EXIT_CODES: dict[type[DurableError], int] = {
    InvalidRequestError: 2,
    WorkflowNotFoundError: 3,
    WorkflowClosedError: 4,
    StepNotOpenError: 4,
    EventConflictError: 4,
    StoreUnavailableError: 69,  # EX_UNAVAILABLE, as Celery's own commands have it
}


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Add ``--json``, and turn errors of this library into one line and an exit code."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except DurableError as error:
            code = next((code for kind, code in _EXIT_CODES.items() if isinstance(error, kind)), 1)
            raise CeleryCommandException(str(error), code) from error

    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(run)


def client_of(ctx: click.Context) -> Client:
    """Return the client of the app that ``celery -A`` was given."""
    # Not before it is needed: this module is loaded for every app, see the package's docstring.
    from durable_celery.app import binding_of

    return binding_of(ctx.obj.app).client


def show_lines(ctx: click.Context, lines: Sequence[str]) -> None:
    """Print lines; colours stay only on a terminal, and only where Celery's ``--no-color`` is not given."""
    for line in lines:
        click.echo(line, color=False if ctx.obj.no_color else None)


def show_json(ctx: click.Context, form: object) -> None:
    """Print a document for programs."""
    show_lines(ctx, [json.dumps(form, indent=2, ensure_ascii=False)])


def read_value(value: str) -> Any:
    """Return the value of an argument VALUE, which is JSON.

    Raises:
        UsageError: it is none.
    """
    try:
        return json.loads(value)
    except ValueError as error:
        raise click.UsageError(f"VALUE is no JSON ({error}): {value!r}. A text needs its quotes: '\"text\"'") from error
