"""The handle of a run: an ``AsyncResult`` with and without a result backend, that can also steer the run."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult

from durable_celery import WorkflowClosedError, WorkflowHandle, WorkflowNotFoundError
from tests.celery.conftest import shop_env
from tests.servers import RedisServer
from tests.waiting import wait_until
from tests.workers import CeleryWorker

WAIT = 30


def test_state_and_result_go_from_pending_to_the_end(shop: Any, key: str) -> None:
    handle = shop.waits.AsyncResult(key)
    assert (handle.state, handle.result, handle.ready()) == ("PENDING", None, False)

    shop.waits.apply_async((key,), task_id=key)
    wait_until(lambda: handle.status == "STARTED", WAIT)
    assert not handle.ready()
    handle.signal("go", {"by": "test"})

    assert handle.get(WAIT) == {"by": "test"}
    assert (handle.state, handle.result, handle.name) == ("SUCCESS", {"by": "test"}, "shop.waits")
    assert handle.ready()
    assert handle.successful()
    assert not handle.failed()
    assert handle.date_done is not None


def test_a_failed_run_is_told_in_all_the_ways_of_a_result(shop: Any) -> None:
    handle = shop.raises.delay("public")
    with pytest.raises(LookupError) as caught:
        handle.get(WAIT)

    assert caught.value.args == ("gone", 7)
    assert 'raise LookupError("gone", 7)' in str(caught.value.__cause__)
    again = handle.get(WAIT, propagate=False)
    assert isinstance(again, LookupError)
    assert (handle.state, handle.failed(), handle.successful()) == ("FAILURE", True, False)
    assert 'raise LookupError("gone", 7)' in handle.traceback


def test_celerys_own_result_gets_the_end_from_the_backend(shop: Any, key: str) -> None:
    shop.double.apply_async((21,), task_id=key)
    assert AsyncResult(key, app=shop.app).get(timeout=WAIT) == 42
    failed = shop.raises.delay("public")
    with pytest.raises(LookupError) as caught:
        AsyncResult(failed.id, app=shop.app).get(timeout=WAIT)

    assert caught.value.args == ("gone", 7)
    assert 'raise LookupError("gone", 7)' in AsyncResult(failed.id, app=shop.app).traceback


def test_the_backend_has_no_result_of_a_run_that_ignores_it(shop: Any) -> None:
    handle = shop.quiet_flow.delay(1)

    assert handle.get(WAIT) == 2
    wait_until(lambda: handle.describe().delivered, WAIT)
    assert AsyncResult(handle.id, app=shop.app).state == "PENDING"


def test_get_gives_up_after_its_timeout_and_says_what_the_run_waits_for(shop: Any, key: str) -> None:
    handle = shop.waits.delay(key)
    wait_until(lambda: handle.describe().waiting, WAIT)
    before = time.monotonic()

    with pytest.raises(CeleryTimeoutError, match=r"did not end within 0\.3 s; it waits for .*signal go"):
        handle.get(timeout=0.3)
    assert time.monotonic() - before < 5
    handle.signal("go")
    handle.get(WAIT)


def test_get_calls_back(shop: Any) -> None:
    called: list[Any] = []
    handle = shop.double.delay(1)
    handle.get(WAIT, callback=lambda *given: called.append(given))

    assert called == [(handle.id, 2)]


def test_the_handle_shows_run_and_history(shop: Any, key: str) -> None:
    handle = shop.double.apply_async((1,), task_id=key)
    handle.get(WAIT)

    kinds = [type(item.event).__name__ for item in handle.history()]
    assert kinds == ["RunStarted", "StepScheduled", "StepCompleted", "RunCompleted"]
    assert handle.describe().status == "completed"
    with pytest.raises(WorkflowClosedError):
        handle.signal("go")
    with pytest.raises(WorkflowNotFoundError):
        shop.double.AsyncResult(f"{key}-other").history()


def test_signals_with_one_key_are_one(shop: Any, key: str) -> None:
    handle = shop.waits.delay(key)
    for value in (1, 2):
        handle.signal("go", value, key="the-same")

    assert handle.get(WAIT) == 1
    assert [type(item.event).__name__ for item in handle.history()].count("SignalReceived") == 1


def test_a_handle_is_copied_and_told_as_a_tuple(shop: Any, key: str) -> None:
    handle = shop.double.apply_async((1,), task_id=key)

    assert copy.copy(handle).get(WAIT) == 2
    assert handle.as_tuple() == ((key, None), None)
    assert handle == AsyncResult(key, app=shop.app)


def test_a_pickled_handle_works_in_another_process(
    shop: Any, shop_server: RedisServer, run_python: Callable[..., str]
) -> None:
    answer = run_python(
        "import pickle\nfrom tests.celery.shop import app, double\n"
        "app.set_current()\n"
        "copied = pickle.loads(pickle.dumps(double.delay(4)))\n"
        "print(type(copied).__name__, copied.get(30), copied.describe().name)",
        **shop_env(shop_server),
    )

    assert answer == "WorkflowHandle 8 shop.double"


@pytest.fixture(scope="module")
def bare_worker(shop_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Run a worker whose app has no result backend; give its environment."""
    env = shop_env(shop_server, backend=False, first=8)
    with CeleryWorker("tests.celery.shop", Path(tmp_path_factory.mktemp("bare")), env=env):
        yield env


def test_without_a_result_backend_the_handle_has_it_all(
    bare_worker: dict[str, str], run_python: Callable[..., str], key: str
) -> None:
    answer = run_python(
        "from celery import group\n"
        "from tests.celery.shop import app, double, on_end, raises, tell\n"
        f"one = double.apply_async((2,), link=on_end.s('{key}'))\n"
        "print(one.get(30), one.state, one.result)\n"
        "bad = raises.delay('public')\n"
        "print(repr(bad.get(30, propagate=False)), bad.state)\n"
        "print(group(double.s(n) for n in range(3))().get(timeout=30))\n"
        f"print(double.AsyncResult('{key}').state)\n",
        **bare_worker,
    )

    assert answer.splitlines() == ["4 SUCCESS 4", "LookupError('gone', 7) FAILURE", "[0, 2, 4]", "PENDING"]


def test_a_handle_is_what_a_start_returns(shop: Any) -> None:
    assert isinstance(shop.double.delay(1), WorkflowHandle)
    assert isinstance(shop.double.s(1).delay(), WorkflowHandle)
