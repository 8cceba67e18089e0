"""Talking to runs on a real worker and a real store: races of clients, tasks that ask, readers that follow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery.exceptions import TimeoutError as CeleryTimeoutError

from durable_celery import UpdateError, WorkflowClosedError
from durable_celery.events import RunStarted, SignalReceived
from durable_celery.workflow import Note, read_note
from tests.waiting import wait_until

WAIT = 30


def at_once(count: int, call: Callable[[int], Any]) -> list[Any]:
    """Let so many threads call something at the same moment; return what each got, or its error."""
    barrier = threading.Barrier(count)

    def one(number: int) -> Any:
        barrier.wait()
        try:
            return call(number)
        except Exception as error:  # noqa: BLE001 - it is looked at
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_clients_that_race_with_one_key_get_one_outcome(shop: Any, key: str) -> None:
    handle = shop.counts.apply_async((2,), task_id=key)

    answers = at_once(8, lambda _: handle.update(shop.count_on, 1, key="same", timeout=WAIT))

    assert answers == [1] * 8
    events = [item.event for item in handle.history()]
    assert len([event for event in events if isinstance(event, SignalReceived)]) == 1
    assert [note for note in map(read_note, events) if note and note[0] is Note.UPDATED] == [(Note.UPDATED, "same")]
    assert handle.update(shop.count_on, 1, timeout=WAIT) == 2
    assert handle.get(WAIT) == 2


def test_updates_of_many_clients_are_all_done_and_each_is_streamed_once(shop: Any, key: str) -> None:
    handle = shop.counts.apply_async((20,), task_id=key)
    followed: list[Any] = []
    reader = threading.Thread(target=lambda: followed.extend(handle.stream("totals", timeout=WAIT)))
    reader.start()

    answers = at_once(10, lambda _: [handle.update(shop.count_on, 1, timeout=WAIT) for _ in range(2)])
    reader.join(WAIT)

    assert sorted(total for totals in answers for total in totals) == list(range(1, 21))
    assert [value for _, value in followed] == list(range(1, 21))
    offsets = [offset for offset, _ in followed]
    assert offsets == sorted(set(offsets))
    assert list(handle.stream("totals", after=offsets[9])) == followed[10:]
    assert handle.get(WAIT) == 20


def test_a_run_that_ends_while_clients_ask_leaves_nobody_waiting(shop: Any, key: str) -> None:
    """Whoever gets an outcome was counted; all others learn that the run has ended."""
    handle = shop.counts.apply_async((1,), task_id=key)
    began = time.monotonic()

    answers = at_once(8, lambda number: handle.update(shop.count_on, 1, key=f"k{number}", timeout=WAIT))

    assert time.monotonic() - began < WAIT
    done = [answer for answer in answers if isinstance(answer, int)]
    assert sorted(done) == list(range(1, handle.get(WAIT) + 1))
    assert {type(answer) for answer in answers} <= {int, UpdateError, WorkflowClosedError}


def test_clients_that_race_to_begin_a_run_begin_one(shop: Any, key: str) -> None:
    def ask(number: int) -> int:
        update = shop.counts.update_with_start(shop.count_on, (1,), args=(6 + number,), task_id=key, key=f"k{number}")
        return int(update.result(WAIT))

    answers = at_once(6, ask)

    assert sorted(answers) == [1, 2, 3, 4, 5, 6]
    events = [item.event for item in shop.counts.AsyncResult(key).history()]
    assert len([event for event in events if isinstance(event, RunStarted)]) == 1


def test_a_signal_with_start_begins_a_run_that_gets_it(shop: Any, key: str) -> None:
    handle = shop.waits.signal_with_start("go", "now", args=(key,), task_id=key, key="s")
    assert handle.get(WAIT) == "now"
    assert shop.waits.signal_with_start("go", "now", args=(key,), task_id=key, key="s").get(WAIT) == "now"
    with pytest.raises(WorkflowClosedError):
        shop.waits.signal_with_start("go", "again", args=(key,), task_id=key, key="another")


def test_a_task_asks_a_query_and_may_not_wait_for_an_update(shop: Any, key: str) -> None:
    handle = shop.counts.apply_async((2,), task_id=key)
    handle.update(shop.count_on, 1, timeout=WAIT)

    assert shop.ask_total.delay(key).get(timeout=WAIT) == handle.query(shop.total_so_far) == 1
    assert "within a task" in shop.count_on_from_a_task.delay(key).get(timeout=WAIT)
    # It was asked for all the same.
    assert handle.get(WAIT) == 2


def test_waiting_for_what_no_worker_does_has_a_limit(shop: Any, key: str) -> None:
    handle = shop.counts.apply_async((1,), task_id=key, countdown=3600)
    with pytest.raises(CeleryTimeoutError, match=r"update .* has no outcome within 0\.2 s"):
        handle.update(shop.count_on, 1, timeout=0.2)
    with pytest.raises(CeleryTimeoutError, match=r"showed no progress within 0\.2 s"):
        next(handle.stream("totals", timeout=0.2))
    handle.cancel()
    wait_until(lambda: handle.status == "REVOKED", WAIT)
