"""The tables of transactional steps and of the outbox; their columns are those of the tables for SQLAlchemy."""

from typing import Any

from django.db import models


class StepField(models.CharField):
    """A step's key: compared byte by byte, also on MySQL, which would else take "A" for "a"."""

    def db_type(self, connection: Any) -> str | None:
        """Return the column's type."""
        kind: Any = super().db_type(connection)
        return f"{kind} COLLATE utf8mb4_bin" if connection.vendor == "mysql" else kind


class Outcome(models.Model):
    """What a transactional step has committed."""

    step = StepField(max_length=320, primary_key=True)
    attempt = models.IntegerField()
    outcome = models.TextField(null=True)  # noqa: DJ001 - there is none yet, and "" could be one
    at = models.BigIntegerField(db_index=True)

    class Meta:
        """Where it is."""

        app_label = "durable_celery"
        db_table = "durable_outcomes"

    def __str__(self) -> str:
        return f"{self.step}, attempt {self.attempt}"


class OutboxEntry(models.Model):
    """A start or a signal that waits to be relayed; see :func:`durable_celery.outbox_table`."""

    id = models.BigAutoField(primary_key=True)
    kind = models.CharField(max_length=16)
    workflow_id = models.CharField(max_length=255)
    body = models.TextField()
    at = models.BigIntegerField()
    not_before = models.BigIntegerField(null=True, db_index=True)
    tries = models.IntegerField()
    error = models.TextField(null=True)  # noqa: DJ001 - as the table of SQLAlchemy has it

    class Meta:
        """Where it is."""

        app_label = "durable_celery"
        db_table = "durable_outbox"

    def __str__(self) -> str:
        return f"{self.kind} of {self.workflow_id}"
