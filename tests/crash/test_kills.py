"""Workers and pool children are killed at random under load: no run is lost, no step is recorded twice."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from typing import Any

import pytest

from durable_celery import WorkflowHandle
from durable_celery.app import binding_of
from tests.sites import Site, check_history, repeats
from tests.store.invariants import check_invariants
from tests.waiting import wait_until

#: Random kills are no poison, and what a killed worker had prefetched is sent again soon.
SETTINGS: dict[str, Any] = {
    "durable_lost_attempts": 10_000,
    "durable_resend_after": 2.0,
    "durable_resend_limit": 8.0,
}
KILLS = int(os.environ.get("DURABLE_CRASH_KILLS", "40"))
STEPS = 6


@pytest.mark.slow
@pytest.mark.timeout(120 + 12 * KILLS)
def test_random_kills_lose_no_run_and_record_no_step_twice(make_site: Callable[..., Site], broker: str) -> None:
    seed = int(os.environ.get("DURABLE_CRASH_SEED") or random.randrange(2**32))
    print(f"repeat with DURABLE_CRASH_SEED={seed} DURABLE_CRASH_KILLS={KILLS}")  # noqa: T201 - for a failure's report
    survive(make_site(broker=broker, **SETTINGS), seed, KILLS)


def survive(site: Site, seed: int, kills: int) -> None:
    """Run workflows on a site while workers and pool children are killed, and prove what must be true in the end."""
    chance = random.Random(seed)
    for _ in range(2):
        site.worker(wait=False)

    handles: list[WorkflowHandle[Any]] = []
    groups = 0
    for number in range(kills):
        # One or two for each kill, so that there is work as long as there are kills.
        handles += [
            site.start("sequence", str(site.directory), STEPS, chance.choice([0.0, 0.02, 0.1]))
            for _ in range(1 + number % 2)
        ]
        groups += kill_somebody(site, chance)
    site.wait_all(handles, timeout=120, tend=site.supervise)
    wait_until(lambda: all(handle.describe().delivered for handle in handles), 60, site.story)

    for handle in handles:
        check_history(handle)
        assert handle.get(timeout=1) == [number * 10 for number in range(STEPS)]
    for worker in site.workers:
        worker.kill()
    check_invariants(binding_of(site.app).store)
    effects = site.notes("effects")
    again = sum(repeats(effects).values()) - len(repeats(effects))
    assert len({key for key, _, _ in effects}) == len(handles) * STEPS
    print(  # noqa: T201 - the figures are reported, not hidden
        f"{kills} kills ({groups} of whole workers), seed {seed}: {len(handles)} runs, {len(handles) * STEPS} steps, "
        f"0 lost, 0 recorded twice, {again} effects repeated"
    )


def kill_somebody(site: Site, chance: random.Random, *, is_over: Callable[[], bool] = lambda: False) -> bool:
    """Kill a whole worker or one of its children when a few more steps have run; tell whether it was a worker.

    Where all has ended meanwhile, no more steps come: then somebody is killed all the same.
    """
    victim = chance.choice(site.workers)
    wanted = len(site.notes("effects")) + chance.randint(1, 6)

    def has_come() -> bool:
        site.supervise()
        return " ready." in victim.log and (len(site.notes("effects")) >= wanted or is_over())

    wait_until(has_come, 60, site.story)
    if chance.random() < 0.5:
        children = victim.child_pids
        if children:
            os.kill(chance.choice(children), signal.SIGKILL)
        return False
    victim.kill()
    victim.start(wait=False)
    return True
