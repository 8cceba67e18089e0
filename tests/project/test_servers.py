"""The test servers keep what they promise: without this, nothing above them proves anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from celery import Celery
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers import RedisCluster, RedisServer, require_service, valkey_binary
from tests.waiting import WaitTimeoutError, wait_until
from tests.workers import CeleryWorker

APP = """
from celery import Celery

app = Celery("probe", broker={url!r}, backend={backend!r})
app.conf.update({isolation!r}, broker_connection_retry_on_startup=True)

@app.task(name="probe.add")
def add(x, y):
    return x + y
"""


def test_redis_server_answers_at_its_url(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.ping()
        assert client.dbsize() == 0


def test_appended_writes_survive_a_kill_of_the_server(tmp_path: Path) -> None:
    with RedisServer(tmp_path, aof="always") as server:
        with server.client() as client:
            client.set("kept", "yes")

        server.kill()
        assert not server.is_running
        server.start()

        with server.client() as client:
            assert client.get("kept") == b"yes"


def test_server_without_persistence_forgets_on_a_kill(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        with server.client() as client:
            client.set("kept", "no")

        server.kill()
        server.start()

        with server.client() as client:
            assert client.get("kept") is None


def test_extra_arguments_reach_the_server(tmp_path: Path) -> None:
    options = ("--maxmemory-policy", "allkeys-lru")
    with RedisServer(tmp_path, extra_args=options) as server, server.client() as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "allkeys-lru"}


def test_suspended_server_answers_again_when_resumed(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        server.suspend()
        impatient = redis.Redis(port=server.port, socket_timeout=0.2, retry=Retry(NoBackoff(), 0))
        with pytest.raises(redis.TimeoutError), impatient as client:
            client.ping()

        server.resume()
        with server.client() as client:
            assert client.ping()


def test_embedded_server_is_valkey(valkey_server: RedisServer, valkey_url: str) -> None:
    assert valkey_server.binary == valkey_binary()
    with redis.Redis.from_url(valkey_url) as client:
        assert client.info("server")["server_name"] == "valkey"


def test_cluster_spreads_keys_over_three_nodes(redis_cluster: RedisCluster) -> None:
    client = redis_cluster.client()
    for number in range(50):
        client.set(f"key-{number}", number)

    counts: list[int] = []
    for node in redis_cluster.nodes:
        with node.client() as direct:
            counts.append(direct.dbsize())
    client.close()
    assert sum(counts) == 50
    assert len(counts) == 3
    assert all(counts)


def test_cluster_comes_back_after_a_node_was_killed(tmp_path: Path) -> None:
    with RedisCluster(tmp_path, aof="always") as cluster:
        client = cluster.client()
        client.set("kept", "yes")
        client.close()

        cluster.nodes[1].kill()
        cluster.start()

        client = cluster.client()
        assert client.get("kept") == b"yes"
        client.close()


def test_missing_service_skips_locally_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="Nothing does not answer: start it"):
        require_service("Nothing", lambda: False, "start it")

    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="failure in CI"):
        require_service("Nothing", lambda: False, "start it")


def test_waiting_in_vain_tells_what_was_waited_for() -> None:
    with pytest.raises(WaitTimeoutError, match="in vain for a miracle"):
        wait_until(lambda: False, timeout=0.05, message="a miracle")


def test_worker_loses_a_pool_child_and_then_everything(
    tmp_path: Path,
    redis_url: str,
    broker_isolation: dict[str, str],
    start_worker: Callable[..., CeleryWorker],
) -> None:
    _write_app(tmp_path, redis_url, redis_url, broker_isolation)
    worker = start_worker("probe_app", pool="prefork", concurrency=2)
    wait_until(lambda: len(worker.child_pids) == 2, message="two children")
    children = worker.child_pids

    dead = worker.kill_child()
    assert dead in children
    wait_until(lambda: len(worker.child_pids) == 2 and dead not in worker.child_pids, message="a new child")
    assert worker.is_running

    worker.kill()
    assert worker.exit_code == -9
    assert worker.child_pids == []

    worker.start()
    assert " ready." in worker.log


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_worker_of_each_pool_runs_a_task_from_rabbitmq(
    tmp_path: Path,
    pool: str,
    rabbitmq_url: str,
    redis_url: str,
    broker_isolation: dict[str, str],
    start_worker: Callable[..., CeleryWorker],
) -> None:
    _write_app(tmp_path, rabbitmq_url, redis_url, broker_isolation)
    worker = start_worker("probe_app", pool=pool)

    # A producer that knows only the name: a task that is defined here would join every other app of this process.
    producer = Celery("producer", broker=rabbitmq_url, backend=redis_url, set_as_current=False)
    producer.conf.update(broker_isolation)
    assert producer.send_task("probe.add", (2, 3)).get(timeout=20) == 5
    producer.close()

    worker.stop()
    assert worker.exit_code == 0


def _write_app(directory: Path, broker: str, backend: str, isolation: dict[str, str]) -> None:
    source = APP.format(url=broker, backend=backend, isolation=isolation)
    (directory / "probe_app.py").write_text(source)
