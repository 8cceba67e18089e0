"""Sites whose store is an SQL database. No Redis runs for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import delete_isolated, isolation_settings
from tests.databases import Database
from tests.sites import Site


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Give a function that makes a site on some tables; its workers are stopped at the end."""
    isolation = isolation_settings()
    sites: list[Site] = []

    def make(tables: Database, broker: str, **settings: Any) -> Site:
        given = {"durable_namespace": tables.namespace, **isolation, **settings}
        sites.append(Site(tmp_path / "site", broker=broker, store=tables.url, **given))
        return sites[-1]

    yield make
    for site in sites:
        site.close()
        if site.config["broker_url"].startswith("amqp"):
            delete_isolated(site.config["broker_url"], isolation)
