"""Sites for the crash suite: broker and store apart, so that a test can lose one and keep the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import delete_isolated, isolation_settings
from tests.databases import Database
from tests.servers import RedisServer
from tests.sites import Site

#: Databases of the session's Redis server.
BROKER, STORE = 1, 2
#: The database (sqlite, postgresql) that is broker and store of all sites, where the environment names one.
ALONE = os.environ.get("DURABLE_TEST_ALONE", "")

#: What looks into servers that are not there then.
_OF_SERVERS = {"test_servers_down.py", "test_lost_messages.py"}
_OF_REDIS = {"test_a_worker_that_lost_its_lease_works_on_with_new_ones"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this folder; on a database alone leave out what is about other servers."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.crash)
            if ALONE and (item.path.name in _OF_SERVERS or getattr(item, "originalname", "") in _OF_REDIS):
                item.add_marker(pytest.mark.skip(f"is about servers that {ALONE} alone has not"))


@pytest.fixture
def make_site(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path
) -> Iterator[Callable[..., Site]]:
    """Give a function that makes a site on the session's Redis; another broker or store may be given.

    With ALONE broker and store are one database. At the end what stands on RabbitMQ is deleted.
    """
    isolation, urls = isolation_settings(), {}
    sites: list[Site] = []
    if ALONE:
        tables: Database = request.getfixturevalue(f"{ALONE}_tables")
        isolation |= {"durable_namespace": tables.namespace}
        urls = {"broker": f"sqla+{tables.url}", "store": tables.url}
    else:
        redis_server.start().flush()
        urls = {"broker": redis_server.database_url(BROKER), "store": redis_server.database_url(STORE)}

    def make(**given: Any) -> Site:
        sites.append(Site(tmp_path / "site", **{**urls, **isolation, **given}))
        return sites[-1]

    yield make
    for site in sites:
        site.close()
        if site.config["broker_url"].startswith("amqp"):
            delete_isolated(site.config["broker_url"], isolation)


@pytest.fixture(params=[ALONE] if ALONE else ["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest, redis_server: RedisServer) -> str:
    """Give the URL of each broker."""
    if ALONE:
        tables: Database = request.getfixturevalue(f"{ALONE}_tables")
        return f"sqla+{tables.url}"
    if request.param == "redis":
        return redis_server.start().database_url(BROKER)
    url: str = request.getfixturevalue("rabbitmq_url")
    return url
