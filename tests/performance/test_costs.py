"""What things cost, counted and never timed: scripts, messages, bytes. Redis tells with MONITOR and MEMORY USAGE.

One worker with one process, so that the counts are exact: two processes would share the work by chance.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
import redis

from durable_celery.store.redis import RedisStore
from durable_celery.store.redis_server import script
from tests.performance.costs_app import app, echo, fan, local, sequence
from tests.servers import RedisServer
from tests.waiting import wait_until
from tests.workers import CeleryWorker

VERBS = ("start", "append", "take", "commit", "release", "deliver", "claim", "finish", "postpone", "settle", "get")
HEART = ("renew", "sweep")


@dataclass
class Costs:
    """What a server was asked for between two moments."""

    #: Calls of each script.
    scripts: Counter[str] = field(default_factory=Counter)
    #: The words of each call, without the script and its key; texts with spaces come in pieces.
    words: dict[str, list[list[str]]] = field(default_factory=dict)
    #: Messages pushed to the queue.
    messages: int = 0

    def of_runs(self) -> dict[str, int]:
        """Return the calls but for those of the heart, which come by the clock."""
        return {name: count for name, count in self.scripts.items() if name not in HEART}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    args = ("--maxmemory-policy", "noeviction")
    with RedisServer(tmp_path_factory.mktemp("costs-redis"), extra_args=args) as server:
        yield server


@pytest.fixture(scope="module")
def worker(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CeleryWorker]:
    with working(server, tmp_path_factory.mktemp("costs-worker")) as worker:
        yield worker


@contextmanager
def working(server: RedisServer, directory: Path, **env: str) -> Generator[CeleryWorker]:
    """Give a worker on a server that knows all scripts."""
    app.conf.broker_url = server.url
    env["COSTS_BROKER"] = server.url
    with server.client() as client:
        for name in (*VERBS, *HEART):
            # So that each call is one EVALSHA.
            client.script_load(script(name)[0])
    with CeleryWorker("tests.performance.costs_app:app", directory, concurrency=1, env=env) as worker:
        # The delivery of the first run comes after its end is readable, and must not be counted with what follows.
        first = sequence.delay(1)
        wait_until(lambda: _is_delivered(server, first.id), 60, lambda: f"the first run's end{worker.log}")
        yield worker


def _is_delivered(server: RedisServer, workflow_id: str | None) -> bool:
    run = RedisStore.from_url(server.url).get(str(workflow_id))
    return run is not None and run.delivered


class Monitor:
    """Everything the server is asked for while this is open."""

    def __init__(self, server: RedisServer) -> None:
        self._client = server.client()
        self._names = {script(name)[1]: name for name in (*VERBS, *HEART)}

    def __enter__(self) -> Self:
        self._monitor = self._client.monitor()  # type: ignore[no-untyped-call]  # redis-py
        self._monitor.__enter__()
        self._monitor.connection._sock.settimeout(60)  # the default of the client is too short for a slow machine
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._monitor.__exit__(*exc_info)
        self._client.close()

    def until(self, verb: str, times: int = 1) -> Costs:
        """Count up to the given call of a verb, that call included."""
        costs = Costs()
        while costs.scripts[verb] < times:
            self._note(costs)
        return costs

    def _note(self, costs: Costs) -> None:
        seen: Any = self._monitor.next_command()
        if seen["client_type"] == "lua":
            return
        command, *words = shlex.split(seen["command"])
        # kombu has scripts of its own, on keys of its own.
        if command.upper() == "EVALSHA" and words[2].startswith("durable:"):
            name = self._names[words[0]]
            costs.scripts[name] += 1
            costs.words.setdefault(name, []).append(words[3:])
        elif command.upper() == "LPUSH" and words[0] == "celery":
            costs.messages += 1


def test_a_sequential_step_costs_two_scripts_and_one_message(server: RedisServer, worker: CeleryWorker) -> None:
    with Monitor(server) as monitor:
        sequence.delay(10)
        costs = monitor.until("deliver")

    # The lease with which the run ends is kept for its delivery.
    assert costs.of_runs() == {"start": 1, "take": 1, "claim": 10, "commit": 11, "deliver": 1}
    # One message begins the run.
    assert costs.messages == 10 + 1


def test_a_local_step_costs_one_script_and_no_message(server: RedisServer, worker: CeleryWorker) -> None:
    with Monitor(server) as monitor:
        local.delay(10)
        costs = monitor.until("deliver")

    # Each local step but the first commits the one before it; the end goes with the last. One message brings it about.
    assert costs.of_runs() == {"start": 1, "take": 1, "commit": 10, "deliver": 1}
    assert costs.messages == 1


def test_the_results_of_a_fan_out_are_taken_in_together(server: RedisServer, worker: CeleryWorker) -> None:
    with Monitor(server) as monitor:
        fan.delay(100)
        costs = monitor.until("deliver")

    # One turn starts all steps. The first result calls for another turn, whose message stands behind all steps.
    assert costs.of_runs() == {"start": 1, "take": 2, "claim": 100, "finish": 100, "commit": 2, "deliver": 1}
    assert costs.messages == 100 + 2
    assert " ".join(costs.words["commit"][0]).count("e:S,") == 100


def test_a_task_that_no_workflow_called_does_not_touch_the_store(server: RedisServer, worker: CeleryWorker) -> None:
    with Monitor(server) as monitor:
        for number in range(20):
            echo.delay(number)
        # It comes behind them in the queue.
        local.delay(1)
        costs = monitor.until("deliver")

    assert costs.of_runs() == {"start": 1, "take": 1, "commit": 1, "deliver": 1}
    assert costs.messages == 20 + 1


def test_an_idle_worker_asks_the_store_for_one_script_a_beat(server: RedisServer, worker: CeleryWorker) -> None:
    with Monitor(server) as monitor:
        costs = monitor.until("sweep", times=8)

    assert set(costs.scripts) <= {"sweep", "renew"}
    # The sweep comes each quarter of a second, the renewal each second; a machine that stalls can delay either.
    assert costs.scripts["renew"] <= 8
    assert costs.messages == 0


def test_a_finished_run_of_ten_steps_takes_at_most_two_and_a_half_kilobytes(
    server: RedisServer, worker: CeleryWorker
) -> None:
    with Monitor(server) as monitor:
        handle = sequence.delay(10)
        monitor.until("deliver")

    assert handle.id is not None
    with server.client() as client:
        keys = [key for key in client.scan_iter("durable:*", count=1000) if handle.id in key.decode()]
        names = {key.decode().split(":")[2] for key in keys}
        size = sum(client.memory_usage(key, samples=0) or 0 for key in keys)
        members = _index_members(client, handle.id)

    # Open commands and keys of inputs are gone with the run.
    assert names == {"run", "log"}
    assert members == {"durable:{0}:agenda", "durable:{0}:index:closed"}
    assert size <= 2500


def _index_members(client: redis.Redis, workflow_id: str) -> set[str]:
    """Return the sorted sets that still name a run."""
    keys = {key.decode() for key in client.scan_iter("durable:*", count=1000) if client.type(key) == b"zset"}
    return {key for key in keys if workflow_id in str(client.zrange(key, 0, -1))}


def sequence_costs(server: RedisServer, directory: Path, **env: str) -> Costs:
    """Count what ten steps in sequence cost in a worker with other settings."""
    with working(server, directory, **env), Monitor(server) as monitor:
        sequence.delay(10)
        return monitor.until("deliver")


def test_a_step_whose_message_goes_with_the_commit_costs_no_more_round_trips(
    server: RedisServer, worker: CeleryWorker, tmp_path: Path
) -> None:
    """Near the end of this file: the worker that the others share would take a part of it."""
    worker.stop()
    costs = sequence_costs(server, tmp_path, COSTS_ATOMIC_PUBLISH="1")

    assert costs.of_runs() == {"start": 1, "take": 1, "claim": 10, "commit": 11, "deliver": 1}
    # That of the start, by this process, which publishes as ever.
    assert costs.messages == 1


def test_a_step_that_runs_ahead_costs_one_script_and_no_message(
    server: RedisServer, worker: CeleryWorker, tmp_path: Path
) -> None:
    """As above."""
    worker.stop()
    costs = sequence_costs(server, tmp_path, COSTS_RUN_AHEAD="60")

    assert costs.of_runs() == {"start": 1, "take": 1, "commit": 11, "deliver": 1}
    assert costs.messages == 1
