"""Workers that lose a pool child in a turn, and workers whose clock is wrong."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from durable_celery.events import TimerFired, TimerStarted
from tests.sites import Site, check_history


def test_a_turn_that_loses_its_pool_child_is_taken_again(make_site: Callable[..., Site], broker: str) -> None:
    site = make_site(broker=broker)
    worker = site.worker()
    handle = site.start("held_local", str(site.directory), "local")
    ((_, _, pid),) = site.wait_for_notes("local.began", 1)
    before = handle.history()
    assert pid in worker.child_pids

    os.kill(pid, signal.SIGKILL)
    site.wait_for_notes("local.began", 2)
    site.release("local")

    assert handle.get(timeout=60) == [0, 2]
    assert handle.history()[: len(before)] == before
    check_history(handle)
    assert worker.is_running


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_worker_whose_clock_is_wrong_fires_timers_by_the_clock_of_the_store(
    make_site: Callable[..., Site], hours: int
) -> None:
    site = make_site()
    site.worker(app="tests.chaos.faulty_worker", env={"DURABLE_TEST_FAULT": "clock", "DURABLE_TEST_HOURS": str(hours)})
    site.worker()

    # Started as well by the wrong clock's own turns, and by those of the right one.
    handles = [site.start("nap", 1.0) for _ in range(8)]
    site.wait_all(handles, timeout=60)

    for handle in handles:
        assert handle.get(timeout=1) >= 1.0
        (due,) = [item.event.due_at for item in handle.history() if isinstance(item.event, TimerStarted)]
        (fired,) = [item.at for item in handle.history() if isinstance(item.event, TimerFired)]
        assert 0 <= fired - due < 60_000
