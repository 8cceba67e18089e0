"""The end of a run reaches Celery once, also where workers are killed, messages repeated or servers away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery.result import AsyncResult

from tests.celery.conftest import shop_env
from tests.servers import RedisServer
from tests.waiting import wait_until
from tests.workers import CeleryWorker

WAIT = 30


def test_callbacks_fire_once_when_the_worker_is_killed_in_mid_flight(
    shop_server: RedisServer, run_python: Callable[..., str], tmp_path: Path, key: str
) -> None:
    env = shop_env(shop_server, first=12)
    store = shop_server.client(12)
    worker = CeleryWorker("tests.celery.shop", tmp_path, env=env).start()
    run_python(
        "from tests.celery.shop import on_end, two_halves\n"
        f"two_halves.apply_async(('{key}',), task_id='{key}', link=on_end.s('end:{key}'))",
        **env,
    )
    wait_until(lambda: store.llen(f"notes:first:{key}") == 1, WAIT)
    worker.kill()
    run_python(f"from tests.celery.shop import two_halves\ntwo_halves.AsyncResult('{key}').signal('go')", **env)

    with CeleryWorker("tests.celery.shop", tmp_path, env=env):
        answer = run_python(
            "from tests.celery.shop import two_halves\nfrom tests.waiting import wait_until\n"
            f"handle = two_halves.AsyncResult('{key}')\n"
            "print(handle.get(30))\nwait_until(lambda: handle.describe().delivered, 30)",
            **env,
        )
        wait_until(lambda: store.llen(f"notes:end:{key}") > 0, WAIT)
        # A second chain of messages through the same queue: a repeated callback would have been seen by then.
        run_python("from tests.celery.shop import double\ndouble.delay(1).get(30)", **env)
    assert answer == f"second:{key}"
    assert [store.llen(f"notes:{name}:{key}") for name in ("first", "second", "end")] == [1, 1, 1]


def test_an_end_that_the_result_backend_could_not_take_comes_again(
    shop_server: RedisServer, run_python: Callable[..., str], tmp_path: Path, key: str
) -> None:
    with RedisServer(tmp_path / "backend", aof="everysec") as backend:
        env = {**shop_env(shop_server, first=12), "SHOP_BACKEND": backend.url}
        with CeleryWorker("tests.celery.shop", tmp_path, env=env) as worker:
            start = (
                "from tests.celery.shop import two_halves\n"
                f"handle = two_halves.apply_async(('{key}',), task_id='{key}')\n"
            )
            run_python(start + "from tests.waiting import wait_until\n"
                       "wait_until(lambda: 'signal' in handle.describe().waiting, 30)", **env)  # fmt: skip
            backend.stop()
            run_python(start + "handle.signal('go')\nhandle.get(30)", **env)
            worker.wait_for_log("refused", WAIT)
            backend.start()
            answer = run_python(
                "from celery.result import AsyncResult\nfrom tests.celery.shop import app\n"
                f"print(AsyncResult('{key}', app=app).get(timeout=30))",
                **env,
            )
    assert answer == f"second:{key}"


def test_a_base_class_may_have_its_own_after_return(shop: Any) -> None:
    handle = shop.selfish.delay(1)

    assert handle.get(WAIT) == 2
    wait_until(lambda: handle.describe().delivered, WAIT)
    assert shop.noted(f"selfish:{handle.id}") == ["SUCCESS"]


def test_the_messages_of_a_run_never_have_its_steps_as_parents(shop: Any, key: str) -> None:
    shop.double.apply_async((2,), task_id=key)
    assert AsyncResult(key, app=shop.app).get(timeout=WAIT) == 4

    assert not shop.app.backend.get_task_meta(key).get("parent_id")


def test_no_process_subscribes_to_the_results_of_runs(shop: Any, shop_server: RedisServer, key: str) -> None:
    # The delayed first message is published by the worker's main process, where a subscription would never be read.
    handle = shop.double.apply_async((2,), task_id=key, countdown=0.2)
    handle.get(WAIT)

    assert shop_server.client(2).pubsub_channels(f"*{key}*") == []
