"""Flower, a real one, shows one true row per workflow and one per step, and no row stays behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter

import pytest

from durable_celery.events import StepFailed
from tests.flower.conftest import APP, Watched
from tests.waiting import wait_until


def seconds_of(shop: Watched, workflow_id: str) -> float:
    """Return how long a run really took."""
    run = shop.closed(workflow_id)
    assert run.closed_at is not None
    return (run.closed_at - run.created_at) / 1000


def test_workflow_is_one_row_from_its_start_to_its_real_end(shop: Watched) -> None:
    shop.start("checkout", "o-1", 12, workflow_id="run-1")
    row = shop.wait_row("run-1", "STARTED")
    assert (row["name"], row["args"]) == ("shop.checkout", "('o-1', 12)")
    shop.wait_row("run-1/1.1", "SUCCESS")
    assert shop.wait_row("run-1", "STARTED")["runtime"] is None

    shop.client.signal("run-1", "go")
    rows = shop.settled("run-1")

    assert set(rows) == {"run-1", "run-1/1.1", "run-1/1.2"}
    end = rows["run-1"]
    assert (end["state"], end["name"], end["result"]) == ("SUCCESS", "shop.checkout", "['o-1:12', 'o-1:2']")
    assert end["started"] == row["started"]
    assert end["runtime"] == pytest.approx(seconds_of(shop, "run-1"), abs=1.0)
    assert end["runtime"] >= end["succeeded"] - end["started"] - 0.5
    assert not end["parent_id"]


def test_steps_are_rows_of_their_own_tasks_under_the_workflow(shop: Watched) -> None:
    shop.start("quick", "o-3", workflow_id="run-2")
    step = shop.settled("run-2")["run-2/1.1"]

    assert (step["name"], step["args"], step["state"]) == ("shop.charge", "['o-3']", "SUCCESS")
    assert (step["parent_id"], step["root_id"]) == ("run-2", "run-2")


def test_failed_workflow_is_a_failed_row_with_its_total_runtime(shop: Watched) -> None:
    shop.start("fails", workflow_id="run-3")
    row = shop.settled("run-3")["run-3"]

    assert (row["state"], row["exception"]) == ("FAILURE", "ValueError('sold out')")
    assert row["runtime"] == pytest.approx(seconds_of(shop, "run-3"), abs=1.0)
    assert row["runtime"] >= 0.5


def test_delayed_starts_show_their_arguments(shop: Watched) -> None:
    shop.app.send_task("shop.quick", ["by-name"], task_id="run-13", countdown=0.3)
    call = f"from {APP} import quick; quick.apply_async(('by-caller',), task_id='run-14', countdown=0.3)"
    subprocess.run([sys.executable, "-c", call], env=shop.process_env, check=True, timeout=60)

    assert shop.settled("run-13")["run-13"]["args"] == "['by-name']"
    assert shop.settled("run-14")["run-14"]["args"] == "('by-caller',)"


def test_child_run_is_a_row_that_links_to_its_parent(shop: Watched) -> None:
    shop.start("family", workflow_id="run-4")
    rows = shop.settled("run-4")

    assert {name: row["name"] for name, row in rows.items()} == {
        "run-4": "shop.family",
        "run-4/1.1": "shop.quick",
        "run-4/1.1/1.1": "shop.charge",
    }
    child, grandchild = rows["run-4/1.1"], rows["run-4/1.1/1.1"]
    assert (child["parent_id"], child["root_id"], child["args"]) == ("run-4", "run-4", "('from-family',)")
    assert (grandchild["parent_id"], grandchild["root_id"]) == ("run-4/1.1", "run-4")


def test_retries_end_as_success(shop: Watched) -> None:
    shop.start("stubborn", workflow_id="run-5")
    rows = shop.settled("run-5")

    assert {name: (row["name"], row["state"]) for name, row in rows.items()} == {
        "run-5": ("shop.stubborn", "SUCCESS"),
        "run-5/1.1": ("shop.stumble", "SUCCESS"),
        "run-5/1.2": ("shop.retries", "SUCCESS"),
    }


def test_fan_out_leaves_no_row_behind(shop: Watched) -> None:
    shop.start("fan", 20, workflow_id="run-6")
    rows = shop.settled("run-6")

    assert Counter(row["name"] for row in rows.values()) == {"shop.fan": 1, "shop.charge": 20}
    assert {row["state"] for row in rows.values()} == {"SUCCESS"}


def test_duplicate_messages_add_and_leave_nothing(shop: Watched) -> None:
    shop.start("holds", "gate-7", workflow_id="run-7")
    shop.wait_held("gate-7")
    publish_again(shop, "run-7", "gate-7")
    wait_ignored(shop, "run-7/1.1", 1)
    shop.open_gate("gate-7")
    assert shop.settled("run-7")["run-7"]["state"] == "SUCCESS"

    # The same message once more, after everything: it must not open the row again.
    publish_again(shop, "run-7", "gate-7")
    wait_ignored(shop, "run-7/1.1", 2)
    shop.start("quick", "after", workflow_id="run-7b")
    shop.settled("run-7b")
    assert {name: row["state"] for name, row in shop.rows("run-7").items()} == {
        "run-7": "SUCCESS",
        "run-7/1.1": "SUCCESS",
    }


def test_steps_that_nobody_wants_any_more_have_an_end(shop: Watched) -> None:
    shop.start("drops", "gate-8a", "gate-8b", workflow_id="run-8")
    # Both pool processes hold: the other two steps are received, and wait.
    shop.wait_held("gate-8a")
    shop.wait_held("gate-8b")
    shop.wait_row("run-8/1.3", "RECEIVED")
    shop.wait_row("run-8/1.4", "RECEIVED")
    wait_until(lambda: any(isinstance(item.event, StepFailed) for item in shop.client.history("run-8")), 30, "timeout")

    shop.open_gate("gate-8a")
    shop.wait_row("run-8/1.3", "REVOKED")
    shop.wait_row("run-8/1.4", "REVOKED")
    shop.open_gate("gate-8b")

    # The end of the run tells of the timeout, which no worker saw.
    assert "StepTimeoutError" in shop.wait_row("run-8/1.4", "FAILURE")["exception"]
    assert Counter(row["state"] for row in shop.settled("run-8").values()) == {"SUCCESS": 3, "REVOKED": 1, "FAILURE": 1}


def test_killed_worker_leaves_no_row_behind(shop: Watched) -> None:
    shop.start("holds", "gate-9", workflow_id="run-9")
    shop.wait_held("gate-9")
    shop.worker.kill(signal.SIGKILL)
    shop.open_gate("gate-9")
    shop.worker.start()
    rows = shop.settled("run-9")

    assert {row["state"] for row in rows.values()} == {"SUCCESS"}
    assert rows["run-9"]["runtime"] == pytest.approx(seconds_of(shop, "run-9"), abs=1.0)


def test_step_that_died_with_its_worker_and_is_not_wanted_leaves_no_row_behind(shop: Watched) -> None:
    with shop.new_worker(queues=["steps"]) as other:
        shop.start("elsewhere", "gate-12", workflow_id="run-12")
        shop.wait_held("gate-12")
        shop.wait_row("run-12/1.1", "STARTED")
        other.kill(signal.SIGKILL)
        shop.client.cancel("run-12", "nobody will ever execute the step")

        assert {name: row["state"] for name, row in shop.settled("run-12").items()} == {
            "run-12": "REVOKED",
            "run-12/1.1": "REVOKED",
        }


def test_poison_step_ends_as_failure(shop: Watched) -> None:
    shop.start("deadly", workflow_id="run-10")
    rows = shop.settled("run-10")

    assert {name: row["state"] for name, row in rows.items()} == {"run-10": "FAILURE", "run-10/1.1": "FAILURE"}


def test_revoke_button_cancels_the_workflow(shop: Watched) -> None:
    shop.start("checkout", "o-11", 1, workflow_id="run-11")
    shop.wait_row("run-11/1.1", "SUCCESS")

    answer = shop.ask("/api/task/revoke/run-11", post=True)
    assert "Revoked 'run-11'" in answer["message"]

    row = shop.settled("run-11")["run-11"]
    assert row["state"] == "REVOKED"
    assert shop.closed("run-11").status == "cancelled"
    assert row["runtime"] == pytest.approx(seconds_of(shop, "run-11"), abs=1.0)


def publish_again(shop: Watched, workflow_id: str, gate: str) -> None:
    """Publish the message of a run's only step by hand, as a broker does that repeats it."""
    header = {"id": workflow_id, "run": 1, "step": 1, "name": "shop.holds", "queue": "celery"}
    shop.app.send_task(
        "shop.hold",
        [gate],
        task_id=f"{workflow_id}/1.1",
        headers={"durable": header},
        root_id=workflow_id,
        parent_id=workflow_id,
        ignore_result=True,
    )


def wait_ignored(shop: Watched, task_id: str, times: int) -> None:
    """Wait until the worker has ignored so many messages of a task."""
    line = f"[{task_id}] ignored"
    wait_until(lambda: shop.worker.log.count(line) == times, 30, lambda: shop.worker.log)
