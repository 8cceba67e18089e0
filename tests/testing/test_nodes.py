"""Real workers for users' tests: a project of its own uses the plugin, and its tests kill, restart and look."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import RedisServer
from tests.workers import ROOT

pytestmark = pytest.mark.integration

SHOP = """
import os, time
from celery import Celery
from durable_celery import durable_task

#: Nothing answers there: the fixtures lead the app elsewhere.
app = Celery("shop", broker="redis://127.0.0.1:1/0", backend=os.environ.get("SHOP_BACKEND"))
app.conf.durable_store = os.environ.get("SHOP_STORE", "redis://127.0.0.1:1/0")

@app.task
def charge(order):
    print("charging", order, flush=True)
    while not os.path.exists(order):
        time.sleep(0.02)
    return f"pay-{order}"

@durable_task(app=app)
def checkout(ctx, order):
    payment = ctx.step(charge, order)
    return [payment, ctx.wait_signal("approve")]
"""
CONFTEST = 'pytest_plugins = ["durable_celery.testing.nodes"]\n'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\ndurable_app = shop\npythonpath = .\naddopts = --strict-markers\n")
    return tmp_path


def pytest_in(project: Path, test: str, **env: str) -> str:
    (project / "test_it.py").write_text(test)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "--rootdir", str(project)],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    return done.stdout + done.stderr


KILLED = """
from celery import Celery
from durable_celery.app import binding_of
from shop import app, checkout

def test_a_killed_worker(durable_worker, tmp_path):
    order = str(tmp_path / "o-1")
    run = checkout.delay(order)
    durable_worker.wait_for_log("charging", timeout=60)
    durable_worker.kill()
    assert not durable_worker.is_running
    durable_worker.restart()
    durable_worker.wait_for_log("charging", timeout=60)
    (tmp_path / "o-1").touch()
    assert durable_worker.wait_for_run(run, "signal approve").status == "running"
    run.signal("approve", True)
    assert run.get(timeout=60) == [f"pay-{order}", True]
    assert durable_worker.wait_for_run(run).status == "completed"
    assert [item.event.attempt for item in run.history() if type(item.event).__name__ == "StepCompleted"] == [2]

def test_two_workers_and_a_server_that_is_killed(start_durable_worker, durable_redis, tmp_path):
    first, second = start_durable_worker("-P", "solo"), start_durable_worker("-P", "threads", "-c", "2")
    assert first.pid != second.pid
    run = checkout.delay(str(tmp_path / "o-2"))
    first.wait_for_run(run, "step shop.charge")
    durable_redis.kill()
    durable_redis.start()
    (tmp_path / "o-2").touch()
    run.signal("approve", 2)
    assert run.get(timeout=60)[1] == 2

def test_the_app_is_back_where_it_was():
    assert app.conf.broker_url == "redis://127.0.0.1:1/0"
    with app.pool.acquire() as connection:
        assert connection.port == 1
    assert app.conf.durable_store == "redis://127.0.0.1:1/0"
"""


def test_a_real_worker_of_the_users_app_is_killed_and_comes_back(project: Path) -> None:
    said = pytest_in(project, KILLED, SHOP_BACKEND="redis://127.0.0.1:1/0")

    assert "3 passed" in said, said


BROKER = """
from shop import checkout

def test_it(durable_worker, tmp_path):
    (tmp_path / "o").touch()
    run = checkout.delay(str(tmp_path / "o"))
    run.signal("approve")
    assert run.get(timeout=60)[1] is None
"""


def test_a_broker_of_ones_own_is_used_and_never_emptied(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with RedisServer(tmp_path_factory.mktemp("own")) as server, server.client() as client:
        client.set("mine", 1)
        with (project / "pytest.ini").open("a") as file:
            file.write(f"durable_broker = {server.url}\n")

        said = pytest_in(project, BROKER, SHOP_STORE=server.url)

        assert "1 passed" in said, said
        assert client.get("mine") == b"1"
        assert any(key.startswith(b"durable:") for key in client.scan_iter())


def test_a_worker_that_does_not_start_and_a_run_that_goes_nowhere_are_told_with_the_log(project: Path) -> None:
    said = pytest_in(
        project,
        """
from shop import checkout

def test_no_start(start_durable_worker):
    start_durable_worker("--pool=nonsense")

def test_nowhere(durable_worker):
    durable_worker.wait_for_run(checkout.delay("never"), "signal approve", timeout=2)
""",
    )

    assert "2 failed" in said
    assert "ended with 2:" in said
    assert "nonsense" in said
    assert "waited 2 s in vain for 'signal approve' of run RunRecord(workflow_id=" in said
    assert "; the worker:" in said
    assert " ready." in said


def test_an_app_that_is_not_named_is_asked_for(project: Path) -> None:
    (project / "pytest.ini").write_text("[pytest]\n")

    said = pytest_in(project, "def test_it(durable_worker):\n    pass\n")

    assert "name the app under test: the setting durable_app of pytest, or the fixture durable_app" in said


def test_pytest_celerys_own_setup_runs_on_processes(project: Path) -> None:
    said = pytest_in(
        project,
        """
import pytest

@pytest.fixture
def celery_broker(celery_redis_broker):
    return celery_redis_broker

def test_it(celery_setup):
    assert celery_setup.ready(ping=True)
    assert celery_setup.app.send_task("pytest_celery.vendors.worker.tasks.add", (2, 3)).get(timeout=60) == 5
""",
    )

    assert "1 passed" in said, said
