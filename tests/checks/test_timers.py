"""Timers of an idle system fire on time: never early, and within half a second, by the clock of the store."""

from __future__ import annotations

import pytest
from celery import Celery

from durable_celery.app import Binding
from durable_celery.events import RunStarted, TimerFired, TimerStarted
from tests.checks.test_start import APP, Starter, worker_env
from tests.waiting import wait_until

#: Milliseconds by which a timer may be late.
LATE = 500


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_timers_fire_on_time(start_worker: Starter, redis_url: str, pool: str) -> None:
    start_worker(APP, pool=pool, env=worker_env(redis_url, {}))
    app = Celery("elsewhere", broker=redis_url, set_as_current=False)
    client = Binding(app).client

    app.send_task("plain.nap", (0.1, 1, 3), task_id="nap", countdown=1)
    wait_until(lambda: client.ending("nap"), 30, "the end of the naps")

    due: dict[int, int] = {}
    late: dict[int, int] = {}
    for item in client.history("nap"):
        match item.event:
            case RunStarted(start_at=int() as at):
                due[0] = at
            case TimerStarted(number=number, due_at=at):
                due[number] = at
            case TimerFired(number=number):
                late[number] = item.at - due[number]
            case _:
                pass
    assert set(late) == {0, 1, 2, 3}
    assert all(0 <= wait < LATE for wait in late.values()), late
