"""A worker that would lose work does not start, and says in one paragraph why, and what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers import RedisServer, free_port
from tests.workers import ROOT, CeleryWorker

APP = "tests.checks.plain"
Starter = Callable[..., CeleryWorker]


@pytest.fixture
def evicting(tmp_path: Path) -> Iterator[RedisServer]:
    args = ("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    with RedisServer(tmp_path / "redis", aof="everysec", extra_args=args) as server:
        yield server


@pytest.fixture
def forgetful(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis", aof="no") as server:
        yield server


def worker_env(url: str, settings: dict[str, object]) -> dict[str, str]:
    # Celery itself has a word about pickle and root, where tests run as root.
    return {"PLAIN_BROKER": url, "PLAIN_SETTINGS": json.dumps(settings), "C_FORCE_ROOT": "1"}


def refusal(start_worker: Starter, url: str, **settings: object) -> str:
    """Start a worker that refuses, and return the paragraph that it prints."""
    worker = start_worker(APP, wait=False, pool="solo", env=worker_env(url, settings))
    assert worker.wait(40) == 1
    *_, last = worker.log.strip().splitlines()
    assert last.startswith("Error: this worker does not start. ")
    assert "Traceback" not in worker.log
    return last


def accepted(start_worker: Starter, url: str, **settings: object) -> CeleryWorker:
    """Start a worker that runs."""
    return start_worker(APP, pool="solo", env=worker_env(url, settings))


def test_evicting_server_is_refused_with_consequence_and_cure(start_worker: Starter, evicting: RedisServer) -> None:
    message = refusal(start_worker, evicting.url)

    assert "maxmemory-policy is allkeys-lru" in message
    assert "3,960 of 8,000 acknowledged events vanished" in message
    assert "Set it to noeviction" in message
    assert "durable_allow = ['maxmemory-policy']" in message


def test_evicting_server_is_accepted_by_who_says_so(start_worker: Starter, evicting: RedisServer) -> None:
    worker = accepted(start_worker, evicting.url, durable_allow=["maxmemory-policy"])

    assert "accepted by durable_allow: maxmemory-policy is allkeys-lru" in worker.log


def test_server_without_persistence_is_warned_about(start_worker: Starter, forgetful: RedisServer) -> None:
    worker = accepted(start_worker, forgetful.url)

    assert "WARNING" in worker.log
    assert "appendonly is no: durability class D0. After a crash of the server everything" in worker.log
    assert "29,407 of 29,407 acknowledged events in our measurement. Set appendonly yes" in worker.log


def test_safe_server_is_told_with_its_class_and_without_a_warning(start_worker: Starter, redis_url: str) -> None:
    worker = accepted(start_worker, redis_url)

    assert "INFO/MainProcess] appendfsync is everysec: durability class D1." in worker.log
    assert "WARNING" not in worker.log.partition("appendfsync is")[2]


def test_pickle_is_refused(start_worker: Starter, redis_url: str) -> None:
    message = refusal(start_worker, redis_url, accept_content=["json", "pickle"])

    assert "accept_content allows pickle" in message
    assert "can then run code in this worker" in message
    assert "Set accept_content = ['json']" in message


def test_pickle_is_accepted_by_who_says_so(start_worker: Starter, redis_url: str) -> None:
    worker = accepted(start_worker, redis_url, accept_content=["json", "pickle"], durable_allow=["pickle"])

    assert "accepted by durable_allow: accept_content allows pickle" in worker.log


def test_eager_tasks_are_refused_by_the_worker(start_worker: Starter, redis_url: str) -> None:
    assert "task_always_eager runs tasks inside the caller" in refusal(start_worker, redis_url, task_always_eager=True)


def test_eager_tasks_are_refused_at_the_caller(redis_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"from {APP} import nap; nap.delay(1)"],
        env={**os.environ, "PYTHONPATH": str(ROOT), **worker_env(redis_url, {"task_always_eager": True})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("durable_celery.errors.ConfigurationError: task_always_eager runs tasks inside the caller")


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("durable_retenshun", 7, "there is no setting 'durable_retenshun'; known are durable_allow, "),
        ("durable_owner_ttl", "ten", "the setting durable_owner_ttl is 'ten'; it takes a positive number"),
        ("durable_sweep_interval", 0, "the setting durable_sweep_interval is 0; it takes a positive number"),
        ("durable_namespace", "{a}", "the setting durable_namespace is '{a}'; it takes a name without spaces"),
        ("durable_allow", "pickle", "the setting durable_allow is 'pickle'; it takes a list of names"),
        ("durable_store", "amqp://h//", "Set durable_store to the URL of a Redis, Valkey or SQL database"),
        ("durable_store", "sqlite://", "durable_store is an SQLite database in memory"),
    ],
)
def test_wrong_settings_are_refused(
    start_worker: Starter, redis_url: str, setting: str, value: object, message: str
) -> None:
    assert message in refusal(start_worker, redis_url, **{setting: value})


def test_another_number_of_shards_is_refused(start_worker: Starter, redis_url: str) -> None:
    accepted(start_worker, redis_url).stop()

    assert "Set the number of shards back" in refusal(start_worker, redis_url, durable_shards=4)


def test_store_that_does_not_answer_is_told(start_worker: Starter, redis_url: str) -> None:
    message = refusal(start_worker, redis_url, durable_store=f"redis://127.0.0.1:{free_port()}/0")

    assert "the Redis server does not answer: " in message
    assert "refused" in message


def test_app_without_any_redis_is_told_to_name_one(start_worker: Starter) -> None:
    message = refusal(start_worker, "amqp://guest:guest@127.0.0.1:1//")

    assert "durable_celery needs a store for its histories" in message
    assert "Set durable_store to the URL of a Redis, Valkey or SQL database" in message
    assert "guest:guest" not in message


def test_a_worker_of_an_app_without_workflows_is_left_alone(start_worker: Starter, evicting: RedisServer) -> None:
    env = {"STRANGER_BROKER": evicting.url, "C_FORCE_ROOT": "1"}

    start_worker("tests.checks.stranger", pool="solo", env=env)

    assert not evicting.client().keys("durable:*")
