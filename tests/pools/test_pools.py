"""Every verb on every pool and every broker, on a real worker; and the worker is killed and comes back."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from celery.exceptions import TaskRevokedError

from durable_celery.app import binding_of
from durable_celery.events import RunCancelled, StepCompleted
from durable_celery.settings import Settings
from durable_celery.store.protocol import RunStatus
from tests.sites import Site, check_history
from tests.waiting import wait_until

#: Seconds for a run to end on a busy machine.
END = 40.0


@pytest.fixture
def place(tmp_path: Path) -> str:
    """Give a directory of this test for what tasks leave."""
    return str(tmp_path)


def lines(place: str, name: str) -> int:
    return len((Path(place) / name).read_text().splitlines())


def test_steps_run_one_after_the_other(site: Site, place: str) -> None:
    handle = site.start("sequence", place, 4)

    assert handle.get(timeout=END) == [0, 10, 20, 30]
    check_history(handle)
    assert lines(place, "effects") == 4


def test_an_async_workflow_waits_for_steps_and_timers(site: Site, place: str) -> None:
    handle = site.start("asequence", place, 4)

    assert handle.get(timeout=END) == [0, 10, 20, 30]
    check_history(handle)


def test_twenty_steps_at_once_come_back_each_once(site: Site) -> None:
    handle = site.start("fan_out", 20)

    assert handle.get(timeout=END) == sum(range(20)) + 20
    check_history(handle)


def test_a_timer_fires_soon_after_its_time_and_never_before(site: Site) -> None:
    assert 0.5 <= site.start("nap", 0.5).get(timeout=END) < 2.0


def test_a_signal_goes_on_with_the_run(site: Site) -> None:
    handle = site.start("approval")
    wait_until(lambda: handle.describe().status is RunStatus.RUNNING, END)

    handle.signal("approve", {"by": "Ada"})

    assert handle.get(timeout=END) == [3, {"by": "Ada"}]


def test_a_cancelled_run_cleans_up(site: Site, place: str) -> None:
    handle = site.start("guarded", place)
    wait_until(lambda: any(isinstance(item.event, StepCompleted) for item in handle.history()), END)

    handle.cancel("not wanted")

    with pytest.raises(TaskRevokedError):
        handle.get(timeout=END)
    assert lines(place, "effects") == 2
    assert isinstance(handle.history()[-1].event, RunCancelled)


def test_local_steps_run_once(site: Site, place: str) -> None:
    assert site.start("local", place).get(timeout=END) == ["ONE", "TWO"]
    assert lines(place, "local") == 2


def test_steps_are_tried_again_by_celery_and_by_policy(site: Site, place: str) -> None:
    handle = site.start("retrying", place)

    assert handle.get(timeout=END) == [2, 3]
    check_history(handle)
    assert lines(place, "unsteady") == 3


def test_a_killed_worker_comes_back_and_goes_on(site: Site, place: str) -> None:
    handle = site.start("held", place, "step")
    wait_until((Path(place) / "step.began").exists, END, site.story)

    (worker,) = site.workers
    worker.kill()
    worker.start()
    wait_until(lambda: lines(place, "step.began") == 2, END, site.story)
    (Path(place) / "step.release").touch()

    assert handle.get(timeout=END) == [1, 2, 2]
    check_history(handle)


def test_the_main_process_renews_who_executes_a_long_step(site: Site, place: str) -> None:
    handle = site.start("held", place, "step")
    wait_until((Path(place) / "step.began").exists, END, site.story)
    (step,) = handle.describe().steps
    full = Settings().owner_ttl

    for _ in range(2):
        wait_until(lambda: site.owner_ends_in(str(step.owner)) < full - 0.4, END, site.story)
        wait_until(lambda: site.owner_ends_in(str(step.owner)) > full - 0.2, END, site.story)
    (Path(place) / "step.release").touch()

    assert handle.get(timeout=END) == [1, 1, 2]


def test_a_worker_that_shuts_down_leaves_no_lease_to_run_out(site: Site) -> None:
    store = binding_of(site.app).store
    # A message that arrives in the moment of a shutdown can keep Celery's prefork pool from ending.
    wait_until(lambda: all(run.delivered for run in store.runs().runs), END, site.story)
    processes = store.renew([])
    assert any(site.owner_ends_in(name) > 0 for name in processes)
    (worker,) = site.workers

    os.kill(worker.pid, signal.SIGTERM)
    assert worker.wait(END) == 0
    assert all(site.owner_ends_in(name) <= 0 for name in processes)

    worker.start()
    assert site.start("fan_out", 3).get(timeout=END) == 6
