"""The tables and the views of an archive; reports may rely on what is documented here.

``<namespace>_archive_runs``: one row for each run.

================  ====================================================================================================
``workflow_id``   the workflow
``created_at``    when it was started (ms since 1970); an id may be used again, so this is part of the key
``run``           counts continue-as-new, from 1
``name``          of the durable task
``version``       of its code
``status``        ``completed``, ``failed``, ``cancelled``, or ``continued`` for a run that went on as the next
``closed_at``     when it ended (ms since 1970)
``parent``        key of the step that waited for it
``length``        how many events it has
``record``        all that the store knew of it (JSON)
``archived_at``   when it was put here (ms since 1970)
================  ====================================================================================================

``<namespace>_archive_events``: the histories, one row for each event: the run's key, ``seq``, ``at`` (ms since 1970),
``kind`` (``StepScheduled``, ...), ``number`` of the command, ``task``, ``attempt``, ``header`` (JSON) and ``payload``
(as ``durable_codec`` left it).

``<namespace>_archive_steps`` (a view): one row for each step: the run's key, ``number``, ``task``, ``scheduled_at``,
``ended_at``, ``outcome`` (``StepCompleted``, ``StepFailed`` or nothing) and ``attempt``.

``<namespace>_archive_state``: when somebody last looked for runs to move.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, String, Table

from durable_celery.columns import INNODB, LONG, exact
from durable_celery.errors import ConfigurationError
from durable_celery.store.sql.tables import NAMESPACE

__all__ = ["ArchiveTables"]


class ArchiveTables:
    """The tables of one namespace.

    Raises:
        ConfigurationError: the namespace cannot be part of a table's name.
    """

    def __init__(self, namespace: str) -> None:
        if not NAMESPACE.fullmatch(namespace):
            raise ConfigurationError(
                f"durable_namespace {namespace!r} cannot name the tables of an archive: it takes up to 40 lower-case "
                "letters, digits and underscores, a letter first"
            )
        self.prefix = f"{namespace}_archive"
        self.metadata = MetaData()
        key = ("workflow_id", "created_at", "run")
        self.runs = Table(
            f"{self.prefix}_runs",
            self.metadata,
            *_key_columns(),
            Column("name", String(255), nullable=False),
            Column("version", Integer, nullable=False),
            Column("status", String(16), nullable=False),
            Column("closed_at", BigInteger, nullable=False),
            Column("parent", LONG),
            Column("length", Integer, nullable=False),
            Column("record", LONG, nullable=False),
            Column("archived_at", BigInteger, nullable=False),
            **INNODB,
        )
        Index(f"{self.prefix}_runs_closed", self.runs.c.closed_at)
        Index(f"{self.prefix}_runs_created", self.runs.c.created_at, self.runs.c.workflow_id)
        self.events = Table(
            f"{self.prefix}_events",
            self.metadata,
            *_key_columns(),
            Column("seq", Integer, primary_key=True, autoincrement=False),
            Column("at", BigInteger, nullable=False),
            Column("kind", String(32), nullable=False),
            Column("number", Integer),
            Column("task", String(255)),
            Column("attempt", Integer),
            Column("header", LONG, nullable=False),
            Column("payload", LONG),
            **INNODB,
        )
        self.state = Table(
            f"{self.prefix}_state",
            self.metadata,
            Column("id", Integer, primary_key=True, autoincrement=False),
            Column("looked_at", BigInteger, nullable=False),
            **INNODB,
        )
        of_run = " AND ".join(f"done.{column} = begun.{column}" for column in key)
        shown = ", ".join(f"begun.{column}" for column in (*key, "number", "task"))
        #: The view is made by hand: not every release of SQLAlchemy has a construct for one.
        self.steps = f"{self.prefix}_steps"
        self.view = (
            f"CREATE VIEW {self.steps} AS SELECT {shown}, "  # noqa: S608 - names of our own
            "begun.at AS scheduled_at, done.at AS ended_at, done.kind AS outcome, done.attempt AS attempt "
            f"FROM {self.events.name} begun LEFT JOIN {self.events.name} done ON {of_run} "
            "AND done.number = begun.number AND done.kind IN ('StepCompleted', 'StepFailed') "
            "WHERE begun.kind = 'StepScheduled'"
        )


def _key_columns() -> list[Any]:
    return [
        Column("workflow_id", exact(255), primary_key=True),
        Column("created_at", BigInteger, primary_key=True, autoincrement=False),
        Column("run", Integer, primary_key=True, autoincrement=False),
    ]
