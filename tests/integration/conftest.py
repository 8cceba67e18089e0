"""pytest-celery on local processes: the public nodes of `durable_celery.testing`, and servers that others use too.

Each test runs on Redis, on RabbitMQ, and on one SQL database alone: it is broker, store and result backend. With
`DURABLE_TEST_CONTAINERS=1` pytest-celery's own containers are used, for the first two.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from pytest_celery import CeleryTestBackend, CeleryTestBroker, CeleryTestSetup

from durable_celery.testing.nodes import ServerNode, WorkerNode
from tests.conftest import delete_isolated, isolation_settings
from tests.databases import Database

USES_CONTAINERS = os.environ.get("DURABLE_TEST_CONTAINERS") == "1"


#: In a fixed order: pytest-celery's own set has none, which breaks pytest-xdist.
BROKERS = ["redis", "rabbitmq"]
DATABASES = [] if USES_CONTAINERS else ["postgresql", "sqlite"]


@pytest.fixture(params=BROKERS + DATABASES)
def place(request: pytest.FixtureRequest) -> str:
    """Give the name of what each test runs on."""
    return str(request.param)


@pytest.fixture
def alone(request: pytest.FixtureRequest, place: str) -> Database | None:
    """Give the database that is everything, if it is one."""
    return request.getfixturevalue(f"{place}_tables") if place in DATABASES else None


@pytest.fixture
def celery_broker(request: pytest.FixtureRequest, place: str, alone: Database | None) -> Iterator[Any]:
    if alone is None:
        broker = request.getfixturevalue(f"celery_{place}_broker")
    else:
        broker = CeleryTestBroker(ServerNode(f"sqla+{alone.url}"))
    yield broker
    broker.teardown()


@pytest.fixture
def celery_backend(request: pytest.FixtureRequest, alone: Database | None) -> Iterator[Any]:
    if alone is None:
        backend = request.getfixturevalue("celery_redis_backend")
    else:
        backend = CeleryTestBackend(ServerNode(f"db+{alone.url}"))
    yield backend
    backend.teardown()


if not USES_CONTAINERS:
    # As a plugin they would hold for all tests of this project: here they hold for this folder.
    from durable_celery.testing.nodes import (
        default_redis_backend,
        default_redis_broker,
        default_worker_command,
        default_worker_container,
        durable_redis,
    )

    __all__ = [
        "default_redis_backend",
        "default_redis_broker",
        "default_worker_command",
        "default_worker_container",
        "durable_redis",
    ]

    class IsolatedWorkerNode(WorkerNode):
        """A worker whose queue and name are a test's own, so that runs on one broker never meet."""

        isolation: dict[str, str]

        @classmethod
        def worker_queue(cls) -> str:
            return cls.isolation["task_default_queue"]

        @classmethod
        def worker_name(cls) -> str:
            return cls.isolation["task_default_queue"]

    @pytest.fixture
    def default_rabbitmq_broker(rabbitmq_url: str) -> ServerNode:
        return ServerNode(rabbitmq_url)

    @pytest.fixture
    def default_worker_container_cls(alone: Database | None) -> type[IsolatedWorkerNode]:
        isolation = isolation_settings() | ({"durable_namespace": alone.namespace} if alone else {})
        return type("OneTestsWorkerNode", (IsolatedWorkerNode,), {"isolation": isolation})

    @pytest.fixture
    def celery_setup_config(
        celery_setup_cls: type[CeleryTestSetup],
        celery_worker_cluster_config: dict[str, Any],
        default_worker_container_cls: type[IsolatedWorkerNode],
    ) -> Iterator[dict[str, Any]]:
        config = celery_setup_cls.config(celery_worker_cluster_config=celery_worker_cluster_config)
        isolation = default_worker_container_cls.isolation
        yield {**config, **isolation}
        if config["broker_url"].startswith("amqp"):
            delete_isolated(config["broker_url"], isolation)

    @pytest.fixture
    def default_worker_app(celery_setup_app: Celery, default_worker_container_cls: type[IsolatedWorkerNode]) -> Celery:
        # pytest-celery carries over to the worker what was set by hand, and not what came as a configuration object.
        celery_setup_app.conf.update(default_worker_container_cls.isolation)
        return celery_setup_app
