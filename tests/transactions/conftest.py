"""Banks on each database."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transactions.banks import Bank, SqlBank, sql_url


@pytest.fixture(params=["sqlite", "postgresql", "mariadb", "django"])
def bank(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bank]:
    """Give an empty bank."""
    if request.param == "django":
        from tests.transactions.django_bank import DjangoBank

        yield DjangoBank()
        return
    bank = SqlBank(sql_url(request.param, tmp_path), uuid.uuid4().hex[:10])
    yield bank
    bank.close()
