"""Real workers whose store is an SQL database: beside RabbitMQ, and on one SQLite file with nothing else at all."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from durable_celery.store.sql import SqlStore
from tests.crash.test_kills import SETTINGS, survive
from tests.databases import Database, server_url
from tests.sites import Site, check_history
from tests.waiting import wait_until
from tests.workers import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_workflows_run_beside_rabbitmq(
    request: pytest.FixtureRequest, make_site: Callable[..., Site], rabbitmq_url: str, database: str
) -> None:
    tables: Database = request.getfixturevalue(f"{database}_tables")

    run_one_of_each(make_site(tables, rabbitmq_url))


def test_one_sqlite_file_is_store_and_broker(make_site: Callable[..., Site], tmp_path: Path) -> None:
    """The smallest set-up: no server of any kind, and nobody makes tables."""
    broker = f"sqla+sqlite:///{tmp_path}/shop.db"
    site = make_site(Database(f"sqlite:///{tmp_path}/shop.db", "durable"), broker)
    del site.config["durable_store"]  # the broker's database is the store

    run_one_of_each(site)


def test_one_postgresql_is_store_and_broker(make_site: Callable[..., Site], postgresql_tables: Database) -> None:
    """No Redis and no RabbitMQ: kombu has its tables beside ours, and the broker's database is the store."""
    site = make_site(postgresql_tables, f"sqla+{postgresql_tables.url}")
    del site.config["durable_store"]

    run_one_of_each(site)


@pytest.mark.crash
@pytest.mark.parametrize("database", ["postgresql", "sqlite"])
def test_a_worker_that_is_killed_on_one_database_alone_loses_nothing(
    request: pytest.FixtureRequest, make_site: Callable[..., Site], database: str
) -> None:
    """kombu counts a message there as delivered when it is fetched, so what a worker had is sent by the agenda."""
    tables: Database = request.getfixturevalue(f"{database}_tables")

    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - for a failure's report

    survive(make_site(tables, f"sqla+{tables.url}", **SETTINGS), seed, kills=4)


def test_an_idle_child_that_is_killed_does_not_hold_up_the_others(
    make_site: Callable[..., Site], tmp_path: Path
) -> None:
    """Over such a transport the pool's children wait for their work under one lock; the dead must not keep it."""
    site = make_site(Database(f"sqlite:///{tmp_path}/shop.db", "durable"), f"sqla+sqlite:///{tmp_path}/shop.db")
    worker = site.worker(concurrency=3)
    before = worker.child_pids

    for pid in before:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(set(worker.child_pids) - {pid}) == 3, 20, site.story)  # noqa: B023 - called at once

    assert site.start("fan_out", 3).get(timeout=20) == 6
    assert not set(before) & set(worker.child_pids)


def run_one_of_each(site: Site) -> None:
    """Run workflows that need turns, steps, timers, signals, retries and cancels."""
    site.worker(concurrency=3)
    directory = str(site.directory)
    handles = {
        "sequence": site.start("sequence", directory, 5),
        "asequence": site.start("asequence", directory, 4),
        "fan_out": site.start("fan_out", 20),
        "nap": site.start("nap", 0.4),
        "approval": site.start("approval"),
        "retrying": site.start("retrying", directory),
        "later": site.start("fan_out", 2, countdown=1),
    }
    guarded = site.start("guarded", directory)
    wait_until(lambda: "approve" in handles["approval"].describe().waiting, 40, site.story)
    handles["approval"].signal("approve", "yes")
    site.wait_all(handles.values(), timeout=60)
    guarded.cancel()
    wait_until(lambda: guarded.describe().status.is_closed, 40, site.story)

    assert handles["sequence"].get(timeout=5) == [0, 10, 20, 30, 40]
    assert handles["fan_out"].get(timeout=5) == 210
    assert handles["approval"].get(timeout=5) == [3, "yes"]
    for handle in handles.values():
        check_history(handle)
    wait_until(lambda: all(handle.describe().delivered for handle in handles.values()), 30, site.story)
    assert "ERROR" not in site.workers[0].log, site.workers[0].log


# -- the tables ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["postgresql", "mariadb"])
def untouched(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A namespace without tables."""
    made = Database(server_url(request.param), f"t_{uuid.uuid4().hex[:12]}")
    yield made
    store = made.store()
    store._server.drop()
    with store._server.engine.begin() as connection:
        connection.execute(text(f"DROP TABLE IF EXISTS {made.namespace}_alembic"))
    store.close()


def durable(tables: Database, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``celery -A app durable ...`` to its end."""
    settings = {"durable_store": tables.url, "durable_namespace": tables.namespace}
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PLAIN_BROKER": "memory://", "PLAIN_SETTINGS": json.dumps(settings)}
    command = [sys.executable, "-m", "celery", "-A", "tests.checks.plain", "durable", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_a_worker_without_its_tables_does_not_start_and_names_the_command(
    make_site: Callable[..., Site], untouched: Database, rabbitmq_url: str
) -> None:
    site = make_site(untouched, rabbitmq_url)
    worker = site.worker(wait=False)

    assert worker.wait(40) == 1
    assert "celery -A <app> durable migrate" in worker.log.strip().splitlines()[-1]

    done = durable(untouched, "migrate")
    assert done.stdout == f"the tables {untouched.namespace}_* are at schema 1\n", done
    site.worker()
    assert site.start("fan_out", 3).get(timeout=40) == 6


def test_migrate_answers_programs_and_refuses_other_stores(untouched: Database) -> None:
    answer = {"namespace": untouched.namespace, "schema": 1, "archive": False}
    assert json.loads(durable(untouched, "migrate", "--json").stdout) == answer
    assert json.loads(durable(untouched, "migrate", "--post", "--json").stdout) == answer
    assert SqlStore(untouched.url, namespace=untouched.namespace).get("w") is None

    refused = durable(Database("redis://127.0.0.1:1/0", "durable"), "migrate")
    assert (refused.returncode, "no tables" in refused.stderr) == (1, True), refused
