"""Cancelling a run, by its handle or by revoking its task id, lets clean-up code run and reaches children."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError

from durable_celery import ChildCancelledError, WorkflowClosedError
from tests.waiting import wait_until

WAIT = 30


def _started(shop: Any, flow: str, key: str) -> Any:
    """Start a run that waits, and wait until it does."""
    handle = getattr(shop, flow).apply_async((key,), task_id=key)
    innermost = shop.waits.AsyncResult(f"{key}/1.1" if flow == "parent" else key)
    wait_until(lambda: "signal go" in getattr(innermost.client.store.get(innermost.id), "waiting", ""), WAIT)
    return handle


def _assert_cancelled(shop: Any, handle: Any, *, cleaned: str) -> None:
    with pytest.raises(TaskRevokedError):
        handle.get(WAIT)
    assert handle.state == "REVOKED"
    assert shop.noted(f"cleanup:{handle.id}") == [cleaned]
    wait_until(lambda: shop.app.AsyncResult(handle.id).state == "REVOKED", WAIT)


def test_cancel_raises_at_the_await_and_clean_up_steps_run(shop: Any, key: str) -> None:
    handle = _started(shop, "waits", key)
    handle.cancel("enough")
    handle.cancel("once more")

    _assert_cancelled(shop, handle, cleaned=key)
    handle.cancel("it is over")


def test_cancel_reaches_children(shop: Any, key: str) -> None:
    handle = _started(shop, "parent", key)
    handle.cancel()

    child = shop.waits.AsyncResult(f"{key}/1.1")
    with pytest.raises(TaskRevokedError):
        child.get(WAIT)
    assert handle.get(WAIT, propagate=False) is not None
    assert handle.state == "REVOKED"
    assert shop.noted(f"cleanup:{key}") == [f"{key}/1.1"]


def test_revoking_a_handle_cancels(shop: Any, key: str) -> None:
    handle = _started(shop, "waits", key)
    handle.revoke()

    _assert_cancelled(shop, handle, cleaned=key)


@pytest.mark.parametrize("call", ["app.control.revoke('{key}')", "app.AsyncResult('{key}').revoke()"])
def test_revoking_the_task_id_from_a_plain_producer_cancels(
    shop: Any, key: str, call: str, stranger: Callable[[str], str]
) -> None:
    handle = _started(shop, "waits", key)
    stranger(call.format(key=key))

    _assert_cancelled(shop, handle, cleaned=key)


def test_revoking_a_childs_task_id_cancels_the_child(shop: Any, key: str) -> None:
    handle = _started(shop, "parent", key)
    shop.app.control.revoke(f"{key}/1.1")

    with pytest.raises(TaskRevokedError):
        shop.waits.AsyncResult(f"{key}/1.1").get(WAIT)
    assert shop.noted(f"cleanup:{key}") == [f"{key}/1.1"]
    failure = handle.get(WAIT, propagate=False)
    assert isinstance(failure, ChildCancelledError)
    assert f"{key}/1.1" in str(failure)


def test_revoking_a_steps_id_fails_the_step(shop: Any, key: str) -> None:
    handle = shop.stranded.apply_async((), task_id=key)
    wait_until(lambda: getattr(handle.client.store.get(key), "steps", ()), WAIT)
    shop.app.control.revoke(f"{key}/1.1")

    assert handle.get(WAIT) == "TaskRevokedError"


def test_a_start_that_was_revoked_before_a_worker_had_it_never_runs(
    shop: Any, key: str, stranger: Callable[[str], str]
) -> None:
    stranger(
        f"app.control.revoke('{key}')\n"
        "app.control.ping(timeout=1)\n"
        f"app.send_task('shop.note_flow', ['{key}'], task_id='{key}')"
    )

    handle = shop.note_flow.AsyncResult(key)
    with pytest.raises(TaskRevokedError):
        handle.get(WAIT)
    assert shop.noted(f"flow:{key}") == []
    assert handle.client.store.get(key) is None


def test_a_run_that_has_ended_cannot_be_cancelled(shop: Any) -> None:
    handle = shop.double.delay(1)
    handle.get(WAIT)

    with pytest.raises(WorkflowClosedError):
        handle.cancel()
