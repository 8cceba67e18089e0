"""A bank with Django's ORM, on an SQLite file; Django is set up when this is imported."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import django
from django.conf import settings

from durable_celery.transactions.exactly_once import Ledger
from tests.transactions.banks import Bank

FILE = Path(tempfile.mkdtemp(prefix="django-bank-")) / "bank.db"

settings.configure(
    INSTALLED_APPS=["durable_celery.contrib.django", "tests.transactions.django_accounts"],
    DATABASES={
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(FILE), "OPTIONS": {"timeout": 10}},
        # No table was made here.
        "bare": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(FILE.with_name("bare.db"))},
    },
    USE_TZ=True,
)
django.setup()


class DjangoBank(Bank):
    """With Django's ORM."""

    def __init__(self) -> None:
        from django.core.management import call_command
        from django.db.utils import OperationalError

        from durable_celery.contrib.django.models import Outcome
        from tests.transactions.django_accounts.models import Account

        self.away: type[Exception] = OperationalError
        call_command("migrate", run_syncdb=True, verbosity=0)
        self.accounts: Any = Account
        self.outcomes: Any = Outcome
        self.outcomes.objects.all().delete()
        self.accounts.objects.all().delete()
        self.accounts.objects.create(id=1, balance=0)

    @contextmanager
    def ledger(self) -> Generator[Ledger]:
        from django.db import connections

        from durable_celery.contrib.django.steps import _DjangoLedger

        yield cast("Ledger", _DjangoLedger("default", timedelta(days=30)))
        # Each thread of a test has connections of its own.
        connections.close_all()

    def pay(self) -> int:
        from django.db.models import F

        self.accounts.objects.update(balance=F("balance") + 1)
        return self.balance

    @property
    def balance(self) -> int:
        return int(self.accounts.objects.get(id=1).balance)

    @property
    def rows(self) -> int:
        return int(self.outcomes.objects.count())
