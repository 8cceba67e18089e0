"""pytest-celery on local processes: the public nodes of `durable_celery.testing`, and a RabbitMQ that others use too.

With `DURABLE_TEST_CONTAINERS=1` pytest-celery's own containers are used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from pytest_celery import CeleryTestSetup

from durable_celery.testing.nodes import ServerNode, WorkerNode
from tests.conftest import delete_isolated, isolation_settings

USES_CONTAINERS = os.environ.get("DURABLE_TEST_CONTAINERS") == "1"


@pytest.fixture(params=["celery_redis_broker", "celery_rabbitmq_broker"])
def celery_broker(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each test runs on both brokers, in a fixed order: pytest-celery's own set has none, which breaks pytest-xdist."""
    broker = request.getfixturevalue(request.param)
    yield broker
    broker.teardown()


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
    def default_worker_container_cls() -> type[IsolatedWorkerNode]:
        return type("OneTestsWorkerNode", (IsolatedWorkerNode,), {"isolation": isolation_settings()})

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
