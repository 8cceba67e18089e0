"""The table of outcomes."""

from typing import Any, ClassVar

from django.db import migrations, models

from durable_celery.contrib.django.models import StepField


class Migration(migrations.Migration):
    """Creates it."""

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
    ]
