"""The table of outcomes, and the outbox."""

from typing import Any, ClassVar

from django.db import migrations, models

from durable_celery.contrib.django.models import StepField


class Migration(migrations.Migration):
    """Creates them."""

    initial = True
    dependencies: ClassVar[list[tuple[str, str]]] = []
    operations: ClassVar[list[Any]] = [
        migrations.CreateModel(
            name="Outcome",
            fields=[
                ("step", StepField(max_length=320, primary_key=True, serialize=False)),
                ("attempt", models.IntegerField()),
                ("outcome", models.TextField(null=True)),
                ("at", models.BigIntegerField(db_index=True)),
            ],
            options={"db_table": "durable_outcomes"},
        ),
        migrations.CreateModel(
            name="OutboxEntry",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("kind", models.CharField(max_length=16)),
                ("workflow_id", models.CharField(max_length=255)),
                ("body", models.TextField()),
                ("at", models.BigIntegerField()),
                ("not_before", models.BigIntegerField(null=True, db_index=True)),
                ("tries", models.IntegerField()),
                ("error", models.TextField(null=True)),
            ],
            options={"db_table": "durable_outbox"},
        ),
    ]
