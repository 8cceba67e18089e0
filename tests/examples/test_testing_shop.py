"""The example project with tests: its own tests pass, as its README says, and fail where the project is broken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2] / "examples" / "testing_shop"
#: Its test files that need nothing but Python.
FILES = ("tests/test_workflows.py", "tests/test_crashes.py")


def run_tests(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the tests of a project in a process of their own."""
    ours = {"BROKER_URL", "RESULT_BACKEND", "DURABLE_STORE_URL", "DATABASE_URL", "SHOP_DATABASE", "PYTEST_ADDOPTS"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words],
        cwd=project,
        env={key: value for key, value in os.environ.items() if key not in ours},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_the_shop_is_tested_without_a_server_and_with_a_fault_at_every_place() -> None:
    done = run_tests(PROJECT, *FILES)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "11 passed" in done.stdout


def test_its_crash_tests_notice_a_task_that_does_not_use_its_key(tmp_path: Path) -> None:
    project = tmp_path / "shop"
    shutil.copytree(PROJECT, project)
    tasks = project / "shop" / "tasks.py"
    tasks.write_text(tasks.read_text().replace("return step.key", 'return f"{step.key}#{step.attempt}"'))

    done = run_tests(project, "tests/test_crashes.py")

    assert "2 failed, 1 passed" in done.stdout
    assert "shop.tasks.charge was executed as attempt 2 under the key crash-everywhere/1.1." in done.stdout


def test_its_saved_histories_replay_and_a_real_worker_is_killed() -> None:
    done = run_tests(PROJECT, "tests/test_histories.py", "tests/test_real_worker.py")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_its_saved_histories_notice_a_changed_order_of_steps(tmp_path: Path) -> None:
    project = tmp_path / "shop"
    shutil.copytree(PROJECT, project)
    workflows = project / "shop" / "workflows.py"
    changed = workflows.read_text().replace("ctx.step(charge, order_id, amount)", "ctx.step(ship, order_id)", 1)
    workflows.write_text(changed)

    done = run_tests(project, "tests/test_histories.py")

    assert "1 failed, 2 passed" in done.stdout
    assert "order-3.json: today's code does not do what this history says" in done.stdout
    assert "history has 'shop.tasks.charge', the code 'shop.tasks.ship'" in done.stdout
