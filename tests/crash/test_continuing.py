"""Workers are killed while workflows go on from run to run: no round is lost, none is done twice."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from durable_celery.app import binding_of
from durable_celery.events import RunContinued
from tests.crash.test_kills import kill_somebody
from tests.sites import Site
from tests.store.invariants import check_invariants
from tests.waiting import wait_until

KILLS, RUNS, ROUNDS = 8, 6, 4
SETTINGS = {"durable_lost_attempts": 10_000, "durable_resend_after": 2.0, "durable_resend_limit": 8.0}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_kills_between_two_runs_lose_no_round_and_no_signal(make_site: Callable[..., Site], broker: str) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - for a failure's report
    survive_continuing(make_site(broker=broker, **SETTINGS), random.Random(seed))


def survive_continuing(site: Site, chance: random.Random) -> None:
    """Kill workers again and again while runs continue as the next ones, and count what was done."""
    for _ in range(2):
        site.worker(wait=False)

    handles = [site.start("rounds", str(site.directory), ROUNDS) for _ in range(RUNS)]
    for handle in handles:
        for number in range(ROUNDS):
            handle.signal("round", 100 + number, key=f"{number}")

    def is_over() -> bool:
        return all(handle.describe().status.is_closed for handle in handles)

    for _ in range(KILLS):
        if is_over():
            break
        kill_somebody(site, chance, is_over=is_over)
    site.wait_all(handles, timeout=120, tend=site.supervise)
    wait_until(lambda: all(handle.describe().delivered for handle in handles), 60, site.story)

    for handle in handles:
        assert handle.get(timeout=1) == [value for number in range(ROUNDS) for value in (0, 10, 100 + number)]
        assert handle.describe().run == ROUNDS
        for run in range(1, ROUNDS):
            assert isinstance(handle.history(run)[-1].event, RunContinued)
    for worker in site.workers:
        worker.kill()
    check_invariants(binding_of(site.app).store)
    assert len({key for key, _, _ in site.notes("effects")}) == RUNS * ROUNDS * 2
