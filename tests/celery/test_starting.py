"""Every way to start a durable task is that of any task."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import QueueNotFound, TaskRevokedError
from redis import Redis

from durable_celery import ConfigurationError, DurableError, WorkflowConflictError
from durable_celery.app import binding_of
from durable_celery.events import TimerFired
from tests.celery.conftest import shop_env
from tests.servers import RedisServer
from tests.waiting import wait_until
from tests.workers import ROOT, CeleryWorker

WAIT = 30


def test_delay_and_signatures_start_a_run(shop: Any) -> None:
    assert shop.double.delay(2).get(WAIT) == 4
    assert shop.double.s(3).delay().get(WAIT) == 6
    assert shop.double.si(4).apply_async().get(WAIT) == 8
    assert shop.double.s().apply_async((5,)).get(WAIT) == 10


def test_a_start_costs_a_stored_result_nothing(shop: Any, shop_server: RedisServer, key: str) -> None:
    """Only where results are messages does the caller need a queue for them; a Redis backend would be subscribed to."""

    def subscriptions() -> int:
        client: Any = Redis.from_url(shop_server.url)
        with client:
            return int(client.info("commandstats").get("cmdstat_subscribe", {}).get("calls", 0))

    before = subscriptions()
    handle = shop.double.apply_async((2,), task_id=key)

    assert "reply_to" not in handle.describe().envelope
    assert handle.get(WAIT) == 4
    assert subscriptions() == before


def test_the_same_task_id_twice_gives_one_run(shop: Any, key: str) -> None:
    first = shop.note_flow.apply_async((key,), task_id=key)
    second = shop.note_flow.apply_async((key,), task_id=key)

    assert first.get(WAIT) == second.get(WAIT) == f"done {key}"
    third = shop.note_flow.apply_async((key,), task_id=key)
    assert third.get(WAIT) == f"done {key}"
    assert shop.noted(f"flow:{key}") == [key]


def test_queue_and_priority_of_a_start_are_those_of_its_messages(shop: Any, key: str) -> None:
    shop.note_flow.apply_async((key,), task_id=key, queue="side", priority=3).get(WAIT)

    envelope = shop.note_flow.binding.store.get(key).envelope
    assert '"side"' in envelope
    assert '"priority":3' in envelope


def test_a_queue_that_celery_does_not_know_is_refused_before_anything_is_written(
    shop: Any, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shop.app.amqp.queues, "create_missing", False)

    with pytest.raises(QueueNotFound):
        shop.double.apply_async((1,), task_id=key, queue="nowhere")

    assert shop.double.AsyncResult(key).client.store.get(key) is None


def test_a_delayed_start_has_nothing_in_the_broker_and_outlives_a_worker(
    run_python: Callable[..., str], shop_server: RedisServer, tmp_path: Path, key: str
) -> None:
    env = shop_env(shop_server, first=4)
    client = shop_server.client(5)
    script = (
        f"from tests.celery.shop import note_flow\nnote_flow.apply_async(('{key}',), task_id='{key}', countdown=4)\n"
    )
    run_python(script, **env)
    assert client.llen("celery") == 0

    first = CeleryWorker("tests.celery.shop", tmp_path, env=env).start()
    first.kill()
    assert client.llen("celery") == 0
    assert client.hlen("unacked") == 0
    store = shop_server.client(4)
    assert store.lrange(f"notes:flow:{key}", 0, -1) == []
    with CeleryWorker("tests.celery.shop", tmp_path, env=env):
        wait_until(lambda: store.lrange(f"notes:flow:{key}", 0, -1) == [key.encode()], WAIT)


@pytest.mark.parametrize("how", ["countdown", "eta"])
def test_a_start_waits_for_its_time(shop: Any, key: str, how: str) -> None:
    when = {"countdown": 1.0} if how == "countdown" else {"eta": datetime.now(UTC) + timedelta(seconds=1)}
    started = shop.note_flow.apply_async((key,), task_id=key, **when)

    assert started.state == "PENDING"
    started.get(WAIT)
    history = started.history()
    fired = next(item for item in history if isinstance(item.event, TimerFired))
    assert 900 <= fired.at - history[0].at <= 3000


def test_a_run_that_expired_before_it_began_is_revoked_and_never_runs(shop: Any, key: str) -> None:
    started = shop.note_flow.apply_async((key,), task_id=key, countdown=1, expires=0.2)

    with pytest.raises(TaskRevokedError):
        started.get(WAIT)
    assert started.state == "REVOKED"
    wait_until(lambda: shop.app.AsyncResult(key).state == "REVOKED", WAIT)
    assert shop.noted(f"flow:{key}") == []


def test_a_run_that_began_in_time_does_not_expire(shop: Any, key: str) -> None:
    assert shop.note_flow.apply_async((key,), task_id=key, expires=20).get(WAIT) == f"done {key}"


def test_a_producer_that_knows_nothing_of_the_library_starts_a_run(
    shop: Any, key: str, stranger: Callable[[str], str]
) -> None:
    answer = stranger(
        f"first = app.send_task('shop.note_flow', ['{key}'], task_id='{key}')\n"
        f"second = app.send_task('shop.note_flow', ['{key}'], task_id='{key}')\n"
        "print(first.get(timeout=30), second.get(timeout=30))"
    )

    assert answer == f"done {key} done {key}"
    assert shop.noted(f"flow:{key}") == [key]
    assert shop.note_flow.AsyncResult(key).get(WAIT) == f"done {key}"


def test_a_strangers_countdown_is_a_durable_timer(shop: Any, key: str, stranger: Callable[[str], str]) -> None:
    stranger(f"app.send_task('shop.note_flow', ['{key}'], task_id='{key}', countdown=1.5)")
    handle = shop.note_flow.AsyncResult(key)

    started = wait_until(lambda: handle.client.store.get(key) and handle.history()[0].event, WAIT)
    assert started.start_at is not None
    assert handle.get(WAIT) == f"done {key}"


def test_a_strangers_expired_start_never_runs(shop: Any, key: str, stranger: Callable[[str], str]) -> None:
    stranger(f"app.send_task('shop.note_flow', ['{key}'], task_id='{key}', countdown=1, expires=0.2)")

    wait_until(lambda: shop.app.AsyncResult(key).state == "REVOKED", WAIT)
    assert shop.noted(f"flow:{key}") == []


def test_a_strangers_wrong_arguments_fail_the_run(shop: Any, key: str, stranger: Callable[[str], str]) -> None:
    stranger(f"app.send_task('shop.double', [], task_id='{key}')")

    with pytest.raises(TypeError):
        shop.double.AsyncResult(key).get(WAIT)


def test_beat_starts_runs(shop: Any, shop_server: RedisServer, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "celery", "-A", "tests.celery.shop", "beat", "-s", str(tmp_path / "beat")]
    with (tmp_path / "beat.log").open("wb") as log:
        beat = subprocess.Popen(
            command, cwd=tmp_path, env={**_environment(), **shop_env(shop_server)}, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: len(set(shop.noted("flow:beat"))) >= 2, WAIT, (tmp_path / "beat.log").read_text)
    finally:
        beat.terminate()
        beat.wait(20)


def test_a_run_that_a_task_starts_is_that_tasks_child(shop: Any, key: str) -> None:
    outer = shop.starts.delay(key)

    assert outer.get(WAIT) == key
    assert shop.note_flow.AsyncResult(key).get(WAIT) == f"done {key}"
    wait_until(lambda: shop.app.AsyncResult(key).state == "SUCCESS", WAIT)
    assert [child.id for child in shop.app.AsyncResult(outer.id).children] == [key]


def test_a_workflow_is_not_called_and_not_applied(shop: Any) -> None:
    with pytest.raises(DurableError, match="not called"):
        shop.double(2)
    with pytest.raises(ConfigurationError, match="inside the caller"):
        shop.double.apply((2,))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_many_runs_start_at_once_and_all_complete(shop: Any, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durable_celery.engine.starting._BATCH", 10)
    handles = shop.double.start_many([(number,) for number in range(35)])
    named = shop.double.start_many([(1,), (2,)], task_ids=[f"{key}-1", f"{key}-2"], countdown=0.5)

    assert [handle.get(WAIT) for handle in handles] == [2 * number for number in range(35)]
    assert [(handle.id, handle.get(WAIT)) for handle in named] == [(f"{key}-1", 2), (f"{key}-2", 4)]
    # The same again finds them.
    assert [handle.get(WAIT) for handle in shop.double.start_many([(1,)], task_ids=[f"{key}-1"])] == [2]
    assert shop.double.start_many([]) == []


def test_bad_input_among_many_starts_writes_nothing(shop: Any, key: str) -> None:
    with pytest.raises(TypeError):
        shop.double.start_many([(1,), ()], task_ids=[f"{key}-1", f"{key}-2"])
    with pytest.raises(ValueError, match="argument 2"):
        shop.double.start_many([(1,), (2,)], task_ids=[f"{key}-1"])

    assert binding_of(shop.app).store.get(f"{key}-1") is None


def test_a_taken_id_among_many_starts_is_told_and_the_others_run(shop: Any, key: str) -> None:
    shop.double.apply_async((7,), task_id=f"{key}-2").get(WAIT)

    with pytest.raises(WorkflowConflictError, match=f"{key}-2"):
        shop.double.start_many([(1,), (2,), (3,)], task_ids=[f"{key}-{number}" for number in (1, 2, 3)])

    assert [binding_of(shop.app).handle(f"{key}-{number}").get(WAIT) for number in (1, 2, 3)] == [2, 14, 6]
