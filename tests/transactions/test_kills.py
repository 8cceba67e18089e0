"""Real workers that are killed with SIGKILL at every place around the commit: each step takes effect once."""

from __future__ import annotations

import importlib
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from durable_celery.events import StepCompleted
from tests.servers import RedisServer
from tests.transactions.banks import sql_url
from tests.workers import CeleryWorker

WAIT = 90.0
#: How many runs there are for each place and each task.
EACH = 2


def async_url(url: str) -> str:
    """Return the URL for an asynchronous engine; nothing for MariaDB, whose asynchronous drivers are not here."""
    scheme, _, rest = url.partition("://")
    drivers = {"sqlite": "sqlite+aiosqlite", "postgresql+psycopg": "postgresql+psycopg"}
    return f"{drivers[scheme]}://{rest}" if scheme in drivers else ""


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgresql", "mariadb"])
def test_a_step_takes_effect_once_wherever_its_process_is_killed(
    redis_server: RedisServer,
    tmp_path: Path,
    start_worker: Callable[..., CeleryWorker],
    monkeypatch: pytest.MonkeyPatch,
    database: str,
) -> None:
    url = sql_url(database, tmp_path)
    env = {
        "BANK_BROKER": redis_server.database_url(1),
        "BANK_STORE": redis_server.database_url(0),
        "BANK_URL": url,
        "BANK_ASYNC_URL": async_url(url),
        "BANK_FOLDER": str(tmp_path),
        "BANK_SUFFIX": f"t_{uuid.uuid4().hex[:10]}",
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    sys.modules.pop("tests.transactions.kill_app", None)
    bank: Any = importlib.import_module("tests.transactions.kill_app")
    engine = create_engine(url)
    bank.Base.metadata.create_all(engine)
    try:
        start_worker("tests.transactions.kill_app", env={**env, "BANK_IS_WORKER": "1"}, concurrency=3, cwd=tmp_path)
        tasks = ["bank.pay", *(["bank.pay_async"] if env["BANK_ASYNC_URL"] else [])]
        runs = [
            bank.payment.apply_async((task,), task_id=f"{place}.{bank.SUFFIX}.{task}-{number}")
            for place in ("nowhere", *bank.PLACES)
            for task in tasks
            for number in range(EACH)
        ]

        ends = {run.id: run.get(timeout=WAIT) for run in runs}

        with Session(engine) as session:
            paid = {payment.of: payment.id for payment in session.scalars(select(bank.Payment))}
            times = Counter(session.scalars(select(bank.Payment.of)))
    finally:
        bank.Base.metadata.drop_all(engine)
        engine.dispose()
    assert times == dict.fromkeys(ends, 1)
    assert {name: end[0][0] for name, end in ends.items()} == paid
    for run in runs:
        place = run.id.partition(".")[0]
        # Each was really killed, once, and whatever had been committed was found and not done again.
        assert (tmp_path / run.id).exists() == (place != "nowhere")
        done_in = ends[run.id][0][1]
        outcome = next(item.event for item in run.history() if isinstance(item.event, StepCompleted))
        assert done_in == (1 if place in {"nowhere", "committed", "recording", "recorded"} else 2)
        assert outcome.attempt == (1 if place in {"nowhere", "recorded"} else 2)
