"""Sites for the chaos suite: like those of the crash suite, and a Redis of its own where a test harms the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import delete_isolated, isolation_settings
from tests.servers import RedisServer, rabbitmq_server_url
from tests.sites import Site
from tests.workers import CeleryWorker

#: Databases of the session's Redis server.
BROKER, STORE = 3, 4
#: What a test waits for a message that is sent again, in place of the default of 10 s.
RESEND = {"durable_resend_after": 2.0, "durable_resend_limit": 4.0}


@pytest.fixture
def make_site(redis_server: RedisServer, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Give a function that makes a site on the session's Redis; another broker or store may be given."""
    redis_server.start().flush()
    isolation = isolation_settings()
    sites: list[Site] = []

    def make(**given: Any) -> Site:
        urls = {"broker": redis_server.database_url(BROKER), "store": redis_server.database_url(STORE)}
        settings: dict[str, Any] = {**urls, **isolation, **RESEND, **given}
        sites.append(Site(tmp_path / "site", **settings))
        return sites[-1]

    yield make
    for site in sites:
        site.close()
        # A RabbitMQ of the test's own is gone by now, with all that it held.
        if site.config["broker_url"] == rabbitmq_server_url():
            delete_isolated(rabbitmq_server_url(), isolation)


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest, redis_server: RedisServer) -> str:
    """Give the URL of each broker."""
    if request.param == "redis":
        return redis_server.start().database_url(BROKER)
    url: str = request.getfixturevalue("rabbitmq_url")
    return url


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """Run a Redis that a test may harm: AOF each second and no eviction, as production should have it."""
    with RedisServer(tmp_path / "own", aof="everysec", extra_args=("--maxmemory-policy", "noeviction")) as server:
        yield server


def worker_with(site: Site, settings: dict[str, Any], **options: Any) -> CeleryWorker:
    """Start a worker with other settings than the site's clients have, such as a way to a server through a proxy."""
    plain = dict(site.config)
    site.config |= settings
    try:
        return site.worker(**options)
    finally:
        site.config.clear()
        site.config.update(plain)


def start_again(site: Site) -> None:
    """Start all workers again, as one has to after the store has lost writes that it had acknowledged.

    A step whose record was lost is again in the hands of a process that has long finished it, and that process lives.
    """
    for worker in site.workers:
        worker.kill()
        worker.start()
