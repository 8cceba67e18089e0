"""Who waits for the end of a run on Redis hears of it, and asks again where it cannot."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import redis

from durable_celery.client import Client
from durable_celery.codec import Codec
from durable_celery.store.redis import RedisStore
from tests.servers import RedisCluster, RedisServer
from tests.store.moves import begin, close
from tests.store.test_hearing import Waiter, name
from tests.waiting import wait_until


@pytest.fixture(params=["redis", "valkey", "cluster"])
def open_store(request: pytest.FixtureRequest) -> Iterator[Callable[[], RedisStore]]:
    """Make stores of processes of their own on one server."""
    namespace = f"heard-{time.monotonic_ns()}"
    if request.param == "cluster":
        servers: RedisCluster = request.getfixturevalue("redis_cluster_servers")
        url = servers.url
    else:
        server: RedisServer = request.getfixturevalue(f"{request.param}_server")
        url = server.start().url

    def make() -> RedisStore:
        return RedisStore.from_url(url, namespace=namespace, shards=3, cluster=request.param == "cluster")

    yield make
    with make()._server._connected() as client:
        for key in list(client.scan_iter(f"{namespace}:*")):
            client.delete(key)


def client_of(store: RedisStore) -> Client:
    return Client(store=cast("Any", store), engine=cast("Any", None), codec=Codec())


def listening(store: RedisStore) -> bool:
    return store._server.ears.is_listening


def test_ends_are_heard_of(open_store: Callable[[], RedisStore], monkeypatch: pytest.MonkeyPatch) -> None:
    # Longer than anybody waits here: who does not hear of the end finds nothing.
    monkeypatch.setattr("durable_celery.client._SELDOM", 60.0)
    store, other = open_store(), open_store()
    other.renew(["p1"])
    ids = [name(number) for number in range(6)]
    for each in ids:
        begin(other, workflow_id=each)
    waiters = [Waiter(client_of(store), each) for each in ids]
    wait_until(lambda: listening(store), 10)
    # The looks before they listened are over, and each has looked when they did.
    time.sleep(0.5)
    for each in ids:
        close(other, each)

    assert all(waiter.end() is not None for waiter in waiters)


def test_what_ends_while_the_connection_is_lost_is_found(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durable_celery.client._SELDOM", 60.0)
    url, namespace = redis_server.start().url, f"heard-{time.monotonic_ns()}"
    store, other = (RedisStore.from_url(url, namespace=namespace) for _ in range(2))
    first, second = name(1), name(2)
    for each in (first, second):
        begin(other, workflow_id=each)
    waiting, later = (Waiter(client_of(store), each) for each in (first, second))
    wait_until(lambda: listening(store), 10)
    time.sleep(0.5)
    with redis_server.client() as client:
        pipe = client.pipeline()
        pipe.client_kill_filter(_type="pubsub")
        pipe.execute()
        close(other, first)

    assert waiting.end() is not None
    wait_until(lambda: listening(store), 10)
    close(other, second)
    assert later.end() is not None


def test_who_may_not_hear_asks_and_who_may_not_tell_ends_runs(redis_server: RedisServer) -> None:
    url, namespace = redis_server.start().url, f"heard-{time.monotonic_ns()}"
    store, other = (RedisStore.from_url(url, namespace=namespace) for _ in range(2))
    with redis_server.client() as admin:
        admin.acl_setuser(
            "mute", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all"], reset_channels=True
        )
    mute = redis.Redis(port=redis_server.port, username="mute", password="secret", decode_responses=True)  # noqa: S106
    silent = RedisStore(mute, namespace=namespace)
    workflow_id = name(1)
    begin(silent, workflow_id=workflow_id)
    waiting = Waiter(client_of(silent), workflow_id)
    also = Waiter(client_of(store), workflow_id)
    wait_until(lambda: listening(store), 10)
    close(silent, workflow_id)

    assert waiting.end() is not None
    assert not listening(silent)
    assert also.end() is not None
    assert other.get(workflow_id) is not None
    with redis_server.client() as admin:
        admin.acl_deluser("mute")
