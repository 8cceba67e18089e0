"""A short soak: random programs on real workers under random faults, and the checker finds nothing.

`make soak` is the long one. It ends by condition: when the faults are over, every program has to come to its end.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.field import Broker, Crew, Field, StoreKind
from tests.chaos.soak import SoakError, soak
from tests.workers import Pool

#: Random kills are no poison, and what got lost is sent again soon, so that the calm after the faults is short.
SETTINGS: dict[str, Any] = {"durable_lost_attempts": 10_000, "durable_resend_after": 2.0, "durable_resend_limit": 8.0}


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("broker", "store", "pool", "seconds"),
    [
        ("redis", "redis", "threads", 60.0),
        ("rabbitmq", "redis", "gevent", 45.0),
        pytest.param("rabbitmq", "postgresql", "threads", 60.0, marks=pytest.mark.chaos),
    ],
)
def test_random_programs_outlive_all_faults(
    broker: Broker, store: StoreKind, pool: Pool, seconds: float, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if broker == "rabbitmq":
        request.getfixturevalue("rabbitmq_url")
    seed = int(os.environ.get("DURABLE_SOAK_SEED") or random.randrange(2**32))
    crews = (Crew(pool="prefork"), Crew(pool=pool, concurrency=3))
    print(f"repeat with DURABLE_SOAK_SEED={seed}")  # noqa: T201 - for a failure's report
    with Field(tmp_path / "field", broker=broker, store=store, crews=crews, **SETTINGS) as field:
        report = soak(
            field,
            seed=seed,
            seconds=seconds,
            kill_every=3.0,
            fault_every=6.0,
            open_runs=6,
            patience=240.0,
            drain=480.0,
        )

    print(report.figures)  # noqa: T201 - the figures are reported, not hidden
    assert not report.violations, "\n".join(report.violations[:50])
    assert report.figures["kills"] > 0
    assert report.figures["programs"] > 0
    assert report.figures["runs"] >= report.figures["runs expected at least"]


def test_a_run_that_stands_still_ends_the_soak_with_its_story(tmp_path: Path) -> None:
    with (
        # Nobody works.
        Field(tmp_path / "field", broker="redis", crews=()) as field,
        pytest.raises(SoakError, match="stands still") as caught,
    ):
        soak(field, seed=1, seconds=60.0, kill_every=1000.0, fault_every=1000.0, open_runs=1, patience=1.0)

    story = str(caught.value)
    assert "RunStarted" in story
    assert "agenda: [(b'r:p-1'" in story
