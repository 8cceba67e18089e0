"""The kills of the crash suite, with the histories on SQL databases: no run is lost, no step is recorded twice."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from tests.crash.test_continuing import survive_continuing
from tests.crash.test_kills import SETTINGS, survive
from tests.databases import Database
from tests.sites import Site

KILLS = int(os.environ.get("DURABLE_CRASH_KILLS", "15"))


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.timeout(120 + 15 * KILLS)
@pytest.mark.parametrize(
    "database",
    ["postgresql", pytest.param("mariadb", marks=pytest.mark.chaos), pytest.param("sqlite", marks=pytest.mark.chaos)],
)
def test_random_kills_lose_no_run_and_record_no_step_twice(
    request: pytest.FixtureRequest, make_site: Callable[..., Site], rabbitmq_url: str, database: str
) -> None:
    tables: Database = request.getfixturevalue(f"{database}_tables")
    seed = int(os.environ.get("DURABLE_CRASH_SEED") or random.randrange(2**32))
    print(f"repeat with DURABLE_CRASH_SEED={seed} DURABLE_CRASH_KILLS={KILLS}")  # noqa: T201 - for a failure's report

    survive(make_site(tables, rabbitmq_url, **SETTINGS), seed, KILLS)


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_kills_between_two_runs_lose_no_round_and_no_signal(
    make_site: Callable[..., Site], rabbitmq_url: str, postgresql_tables: Database
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - for a failure's report

    survive_continuing(make_site(postgresql_tables, rabbitmq_url, **SETTINGS), random.Random(seed))
