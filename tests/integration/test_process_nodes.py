"""pytest-celery's own setup works on process nodes, on Redis, on RabbitMQ and on one database alone."""

from __future__ import annotations

from typing import Any

import pytest
from pytest_celery import CeleryTestSetup

from tests.databases import Database

pytestmark = pytest.mark.integration

ADD = "pytest_celery.vendors.worker.tasks.add"


def test_setup_is_ready_and_runs_a_task(celery_setup: CeleryTestSetup, alone: Database | None) -> None:
    # kombu's SQL transport has no broadcasts, and so no remote control.
    assert celery_setup.ready(ping=True, control=alone is None, docker=True)

    assert celery_setup.app.send_task(ADD, (2, 3)).get(timeout=20) == 5


def test_killed_worker_comes_back_and_takes_the_waiting_task(celery_setup: CeleryTestSetup) -> None:
    worker: Any = celery_setup.worker
    assert celery_setup.ready(ping=True)
    worker.kill()
    assert worker.container.status == "exited"

    result = celery_setup.app.send_task(ADD, (1, 1))
    worker.restart()

    assert result.get(timeout=20) == 2
    worker.assert_log_exists("succeeded")
    processes = worker.get_running_processes_info(["pid", "name"])
    assert worker.container.pid in {process["pid"] for process in processes}
