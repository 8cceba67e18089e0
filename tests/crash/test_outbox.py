"""Workers that relay are killed, two at a time relay at once: what was committed runs once, what was not never does."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import MetaData, create_engine, func, select

from durable_celery import outbox_table
from durable_celery.store.protocol import RunStatus
from tests.sites import Site, check_history
from tests.transactions.banks import sql_url
from tests.waiting import wait_until

RUNS, KILLS = 40, 4


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgresql", "mariadb"])
def test_killed_relays_neither_lose_nor_repeat_what_was_committed(
    make_site: Callable[..., Site], tmp_path: Path, database: str
) -> None:
    url, prefix = sql_url(database, tmp_path), f"t_{uuid.uuid4().hex[:10]}"
    metadata, engine = MetaData(), create_engine(url)
    table = outbox_table(metadata, prefix)
    metadata.create_all(engine)
    chance = random.Random()
    site = make_site(durable_outbox=url, durable_outbox_prefix=prefix, durable_resend_after=2.0)

    def waiting() -> int:
        with engine.connect() as connection:
            return int(connection.execute(select(func.count()).select_from(table)).scalar_one())

    try:
        workers = [site.worker(wait=False) for _ in range(2)]
        committed: list[Any] = []
        rolled_back: list[Any] = []
        for number in range(RUNS):
            with engine.connect() as connection:
                task: Any = site.app.tasks["approval"]
                handle = task.start_in(connection)
                handle.signal_in(connection, "approve", number)
                if number % 4 == 3:
                    rolled_back.append(handle)
                    continue
                connection.commit()
                committed.append(handle)
            if number % (RUNS // KILLS) == RUNS // KILLS // 2:
                wait_until(lambda: waiting() < 5, 60, site.story)
                victim = chance.choice(workers)
                victim.kill()
                victim.start(wait=False)

        wait_until(lambda: waiting() == 0, 60, site.story)
        site.wait_all(committed, 90)
        for number, handle in enumerate(committed):
            check_history(handle)
            assert handle.describe().status is RunStatus.COMPLETED
            assert handle.get()[1] == number + number // 3
            assert [type(item.event).__name__ for item in handle.history()].count("SignalReceived") == 1
        assert [handle.state for handle in rolled_back] == ["PENDING"] * len(rolled_back)
    finally:
        metadata.drop_all(engine)
        engine.dispose()
