"""``celery -A app durable``: look at runs and act on them, from the command line.

Everything here goes through :class:`durable_celery.client.Client`, so it works while no worker runs. ``--json`` prints
one JSON document for programs: instants are milliseconds since 1970, as in the log.

Exit codes: 0 done; 1 other errors; 2 wrong usage; 3 no such run; 4 the run or the step has ended already; 69 the store
does not answer.
"""

from __future__ import annotations

import click

from durable_celery.cli.archive import archive
from durable_celery.cli.callbacks import callback
from durable_celery.cli.export import export
from durable_celery.cli.migrate import migrate
from durable_celery.cli.named_events import publish_event
from durable_celery.cli.runs import cancel, history, list_, show, signal
from durable_celery.cli.talking import follow, query, update
from durable_celery.cli.tokens import complete, fail

__all__ = ["durable"]


@click.group()
def durable() -> None:
    """Look at durable workflows, talk to them and cancel them, answer their callbacks, save their histories."""


for _command in (
    list_, show, history, export, signal, callback, complete, fail, cancel, query, update, follow, publish_event,
    migrate, archive,
):  # fmt: skip
    durable.add_command(_command)
