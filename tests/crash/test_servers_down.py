"""Redis is killed, hangs and comes back while workers work: all runs complete, and workers stay alive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers import RedisServer
from tests.sites import Site, check_history
from tests.waiting import wait_until


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """Run a Redis that a test may kill: AOF each second and no eviction, as production should have it."""
    with RedisServer(tmp_path / "own", aof="everysec", extra_args=("--maxmemory-policy", "noeviction")) as server:
        yield server


def test_all_runs_complete_when_redis_is_killed_and_restarted_in_mid_flight(
    make_site: Callable[..., Site], own_server: RedisServer
) -> None:
    site = make_site(
        broker=own_server.url, store=own_server.database_url(1), durable_resend_after=2.0, durable_resend_limit=4.0
    )
    for _ in range(2):
        site.worker()
    handles = [site.start("sequence", str(site.directory), 5, 0.02) for _ in range(20)]

    for progress in (10, 40):
        site.wait_for_notes("effects", progress)
        own_server.kill()
        own_server.start()
    site.wait_all(handles, timeout=90, tend=site.supervise)

    for handle in handles:
        check_history(handle)


def test_a_worker_in_a_turn_outlives_its_broker(make_site: Callable[..., Site], own_server: RedisServer) -> None:
    site = make_site(broker=own_server.url)
    worker = site.worker()
    handle = site.start("held_local", str(site.directory), "local")
    site.wait_for_notes("local.began", 1)

    own_server.kill()
    worker.wait_for_log("Connection to broker lost", timeout=40)
    own_server.start()
    site.release("local")

    assert handle.get(timeout=60) == [0, 2]
    assert len(site.notes("local.began")) == 1
    assert worker.is_running


def test_the_heart_beats_while_the_broker_hangs(make_site: Callable[..., Site], own_server: RedisServer) -> None:
    # Much longer than the second between renewals: a machine that stalls delays one, and ends no lease.
    ttl = 20.0
    site = make_site(broker=own_server.url, durable_owner_ttl=ttl)
    site.worker()
    handle = site.start("held", str(site.directory), "step")
    site.wait_for_notes("step.began", 1)
    owner = str(handle.describe().steps[0].owner)
    naps = [site.start("nap", 1.0) for _ in range(3)]
    wait_until(lambda: all("timer" in nap.describe().waiting for nap in naps), 40, site.story)

    own_server.suspend()
    try:
        # The naps end meanwhile, so there is something to publish; three renewals come all the same.
        for _ in range(3):
            wait_until(lambda: site.owner_ends_in(owner) < ttl - 0.7, 20, "the lease to grow old")
            wait_until(lambda: site.owner_ends_in(owner) > ttl - 0.4, 20, lambda: f"a renewal of {owner}{site.story()}")
    finally:
        own_server.resume()
    site.release("step")

    assert handle.get(timeout=60) == [1, 1, 2]
    site.wait_all(naps, timeout=60)


def test_the_heart_survives_an_outage_of_the_store(make_site: Callable[..., Site], own_server: RedisServer) -> None:
    site = make_site(store=own_server.url, durable_owner_ttl=2.0)
    worker = site.worker()
    handle = site.start("held", str(site.directory), "step")
    site.wait_for_notes("step.began", 1)

    own_server.kill()
    wait_until(lambda: "the store does not answer" in worker.log, 40, site.story)
    site.release("step")
    own_server.start()

    assert handle.get(timeout=60)[2] == 2
    check_history(handle)
    assert site.start("nap", 0.2).get(timeout=40) >= 0.2
    assert worker.is_running
