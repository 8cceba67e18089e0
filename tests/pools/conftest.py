"""One worker for each pool and broker; all tests of a combination share it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.conftest import delete_isolated, isolation_settings
from tests.servers import RedisServer
from tests.sites import Site
from tests.workers import Pool


class Combination(NamedTuple):
    """What a worker runs on."""

    pool: Pool
    broker: str

    def __str__(self) -> str:
        return f"{self.pool}-{self.broker}"


COMBINATIONS = [
    *(Combination(pool, "redis") for pool in ("prefork", "threads", "solo", "gevent")),
    *(Combination("prefork", broker) for broker in ("valkey", "rabbitmq-classic", "rabbitmq-quorum")),
]


@pytest.fixture(scope="module", params=COMBINATIONS, ids=str)
def combination(request: pytest.FixtureRequest) -> Combination:
    chosen: Combination = request.param
    return chosen


@pytest.fixture(scope="module")
def site(
    combination: Combination, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """Give a site with a worker that consumes."""
    isolation = isolation_settings()
    settings = {}
    name = "valkey_server" if combination.broker == "valkey" else "redis_server"
    server: RedisServer = request.getfixturevalue(name)
    server.start().flush()
    broker, store = server.database_url(1), server.database_url(2)
    if combination.broker.startswith("rabbitmq"):
        broker = request.getfixturevalue("rabbitmq_url")
    if combination.broker == "rabbitmq-quorum":
        settings = {"task_default_queue_type": "quorum"}
    directory = tmp_path_factory.mktemp(str(combination))
    try:
        with Site(directory, broker=broker, store=store, **isolation, **settings) as made:
            made.worker(pool=combination.pool, concurrency=1 if combination.pool == "solo" else 4)
            yield made
    finally:
        if broker.startswith("amqp"):
            delete_isolated(broker, isolation)
