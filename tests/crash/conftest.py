"""Sites for the crash suite: broker and store apart, so that a test can lose one and keep the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import delete_isolated, isolation_settings
from tests.servers import RedisServer
from tests.sites import Site

#: Databases of the session's Redis server.
BROKER, STORE = 1, 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this folder."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.crash)


@pytest.fixture
def make_site(redis_server: RedisServer, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Give a function that makes a site on the session's Redis; another broker or store may be given.

    At the end the workers are stopped and what stands on RabbitMQ is deleted.
    """
    redis_server.start().flush()
    isolation = isolation_settings()
    sites: list[Site] = []

    def make(**given: Any) -> Site:
        urls = {"broker": redis_server.database_url(BROKER), "store": redis_server.database_url(STORE)}
        sites.append(Site(tmp_path / "site", **{**urls, **isolation, **given}))
        return sites[-1]

    yield make
    for site in sites:
        site.close()
        if site.config["broker_url"].startswith("amqp"):
            delete_isolated(site.config["broker_url"], isolation)


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest, redis_server: RedisServer) -> str:
    """Give the URL of each broker."""
    if request.param == "redis":
        return redis_server.start().database_url(BROKER)
    url: str = request.getfixturevalue("rabbitmq_url")
    return url
