"""The store under test, over every implementation; its invariants are checked when the test is over."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import redis

from durable_celery.store.protocol import Store, Timing
from tests.servers import RedisCluster, RedisServer
from tests.store.backends import Backend, MemoryBackend, RedisBackend, SqlBackend, server_client
from tests.store.invariants import check_invariants

#: How many shards the store on the cluster has: two on each node.
SHARDS = 6


@pytest.fixture
def timing() -> Timing:
    """The waits of the store under test; a module or class may give its own."""
    return Timing()


@pytest.fixture(scope="session")
def cluster_client(redis_cluster_servers: RedisCluster) -> redis.RedisCluster:
    """One client for all tests: a cluster's is slow to set up."""
    return redis.RedisCluster(host="127.0.0.1", port=redis_cluster_servers.nodes[0].port, decode_responses=True)


@pytest.fixture(params=["memory", "redis", "valkey", "cluster", "sqlite", "postgresql", "mariadb"])
def backend(request: pytest.FixtureRequest, timing: Timing) -> Iterator[Backend]:
    """Give an empty store of each kind."""
    made = make_backend(request, timing)
    yield made
    check_invariants(made.store)
    made.delete()


@pytest.fixture
def store(backend: Backend) -> Store:
    """The store under test."""
    return backend.store


def make_backend(request: pytest.FixtureRequest, timing: Timing) -> Backend:
    """Make the backend that the parameter names; only its server is started. Each has a namespace of its own."""
    if request.param == "memory":
        return MemoryBackend(timing)
    if request.param in {"sqlite", "postgresql", "mariadb"}:
        return SqlBackend(request.getfixturevalue(f"{request.param}_tables"), timing)
    if request.param == "cluster":
        cluster: RedisCluster = request.getfixturevalue("redis_cluster_servers")
        client: Any = request.getfixturevalue("cluster_client")
        make = partial(redis.RedisCluster, host="127.0.0.1", port=cluster.nodes[0].port, decode_responses=True)
        return RedisBackend(client, make, timing, shards=SHARDS)
    server: RedisServer = request.getfixturevalue(f"{request.param}_server")
    make_client = partial(server_client, server.start().url)
    return RedisBackend(make_client(), make_client, timing)
