"""Servers and workers for every test: one Redis, Valkey and cluster per session, started when first asked for.

`redis_url`, `valkey_url` and `redis_cluster` are flushed before each test. RabbitMQ is somebody else's server: tests
keep apart by names, see `broker_isolation`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.databases import Database, server_url, tables_at
from tests.servers import (
    RedisCluster,
    RedisServer,
    broker_answers,
    delete_from_rabbitmq,
    rabbitmq_server_url,
    require_service,
    valkey_binary,
)
from tests.workers import CeleryWorker

#: Lines of a worker's log that a failing test shows.
LOG_TAIL = 60


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Run the Redis server of this test session: AOF each second and no eviction, as production should have it."""
    directory = tmp_path_factory.mktemp("redis")
    with RedisServer(directory, aof="everysec", extra_args=("--maxmemory-policy", "noeviction")) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Run the Valkey server of this test session: the embedded one, whatever is installed."""
    directory = tmp_path_factory.mktemp("valkey")
    with RedisServer(directory, binary=valkey_binary(), aof="everysec") as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Run the Redis Cluster of this test session: three local masters."""
    with RedisCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """Give the URL of the session's Redis server, alive and empty."""
    redis_server.start().flush()
    return redis_server.url


@pytest.fixture
def valkey_url(valkey_server: RedisServer) -> str:
    """Give the URL of the session's Valkey server, alive and empty."""
    valkey_server.start().flush()
    return valkey_server.url


@pytest.fixture
def redis_cluster(redis_cluster_servers: RedisCluster) -> RedisCluster:
    """Give the session's Redis Cluster, alive and empty."""
    redis_cluster_servers.start().flush()
    return redis_cluster_servers


@pytest.fixture(scope="session")
def rabbitmq_url() -> str:
    """Give the URL of a RabbitMQ server that answers; without one, skip (fail in CI)."""
    url = rabbitmq_server_url()
    require_service(
        "RabbitMQ",
        lambda: broker_answers(url),
        f"start one at {url} or set DURABLE_TEST_RABBITMQ_URL",
    )
    return url


@pytest.fixture(scope="session")
def sqlite_tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """Give the tables of this test session in an SQLite file."""
    with tables_at(f"sqlite:///{tmp_path_factory.mktemp('sqlite')}/durable.db") as database:
        yield database


@pytest.fixture(scope="session")
def postgresql_tables() -> Iterator[Database]:
    """Give the tables of this test session on PostgreSQL; without a server, skip (fail in CI)."""
    with tables_at(server_url("postgresql")) as database:
        yield database


@pytest.fixture(scope="session")
def mariadb_tables() -> Iterator[Database]:
    """Give the tables of this test session on MariaDB; without a server, skip (fail in CI)."""
    with tables_at(server_url("mariadb")) as database:
        yield database


@pytest.fixture
def broker_isolation(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Give Celery settings that keep this test's messages apart on a broker that others use at the same time.

    The names are new for each test. What stands under them on RabbitMQ is deleted after a test that used it.
    """
    settings = isolation_settings()
    yield settings
    if "rabbitmq_url" in request.fixturenames:
        delete_isolated(rabbitmq_server_url(), settings)


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[Callable[..., CeleryWorker]]:
    """Give a function that starts a `CeleryWorker` with its log in the test's directory, and ends it afterwards.

    It takes the app and the keyword arguments of `CeleryWorker`; `wait=False` does not wait for readiness.
    """
    workers: list[CeleryWorker] = []

    def start(app: str, *, wait: bool = True, **options: Any) -> CeleryWorker:
        worker = CeleryWorker(app, tmp_path, **options)
        workers.append(worker)
        return worker.start(wait=wait)

    yield start
    for worker in workers:
        worker.stop()
        tail = "\n".join(worker.log.splitlines()[-LOG_TAIL:])
        # Captured by pytest: seen only when the test fails.
        print(f"--- log of {worker.name}\n{tail}")  # noqa: T201


def isolation_settings() -> dict[str, str]:
    """Return Celery settings with queue, control and event names that nobody else uses."""
    run = f"test-{uuid.uuid4().hex[:12]}"
    return {"task_default_queue": run, "control_exchange": f"{run}-control", "event_exchange": f"{run}-event"}


def delete_isolated(url: str, settings: dict[str, str]) -> None:
    """Delete from RabbitMQ what stands under the names of `isolation_settings`."""
    queue, control, event = (settings[key] for key in ("task_default_queue", "control_exchange", "event_exchange"))
    exchanges = (queue, f"{control}.pidbox", f"reply.{control}.pidbox", event)
    delete_from_rabbitmq(url, queues=[queue], exchanges=exchanges)
