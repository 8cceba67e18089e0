"""A replica takes the place of the server: what it had not received is gone, and everything goes on from there.

Replication is asynchronous, and this release offers no `WAIT`: an acknowledged start that the replica never had is lost
with the old primary. What is asserted is what holds nevertheless: nothing hangs, and nothing is recorded twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from durable_celery.app import binding_of
from tests.chaos.conftest import start_again, worker_with
from tests.chaos.proxy import TcpProxy
from tests.servers import RedisServer
from tests.sites import CONFIG_VARIABLE, Site, check_history, repeats
from tests.store.invariants import check_invariants
from tests.waiting import wait_until


@pytest.fixture
def replica(tmp_path: Path, own_server: RedisServer) -> Iterator[RedisServer]:
    """Run a second server that replicates the first."""
    args = ("--replicaof", "127.0.0.1", str(own_server.port), "--maxmemory-policy", "noeviction")
    with RedisServer(tmp_path / "replica", aof="everysec", extra_args=args) as server:
        with server.client() as client:
            wait_until(lambda: client.info("replication")["master_link_status"] == "up", 40, "the first sync")
        yield server


def test_runs_go_on_from_what_a_lagging_replica_had(
    make_site: Callable[..., Site], own_server: RedisServer, replica: RedisServer
) -> None:
    site = make_site(store=own_server.url)
    with TcpProxy(own_server.url) as address, site:
        # The address that outlives the primary, as a virtual IP or Sentinel gives it.
        site.config["durable_store"] = address.url(own_server.url)
        site.worker()
        handles = [site.start("sequence", str(site.directory), 6, 0.02) for _ in range(8)]
        site.wait_for_notes("effects", 8)

        with replica.client() as new, own_server.client() as old:
            wait_until(lambda: is_level(old, new), 40, "the replica to catch up")
            # From here on it hears nothing; the primary still acknowledges.
            new.replicaof("NO", "ONE")
        site.wait_for_notes("effects", 14)
        own_server.kill()
        address._target = ("127.0.0.1", replica.port)
        start_again(site)

        site.wait_all(handles, timeout=90, tend=site.supervise)
        wait_until(lambda: all(handle.describe().delivered for handle in handles), 60, site.story)
        for handle in handles:
            check_history(handle)
            assert handle.get(timeout=1) == [0, 10, 20, 30, 40, 50]
        check_invariants(binding_of(site.app).store)
    # What ran after the link was cut ran again; nothing else did.
    assert repeats(site.notes("effects"))


def is_level(old: Any, new: Any) -> bool:
    return bool(old.info("replication")["master_repl_offset"] - new.info("replication")["slave_repl_offset"] < 2000)


def test_a_broker_that_becomes_a_replica_costs_no_run(
    make_site: Callable[..., Site], own_server: RedisServer, replica: RedisServer
) -> None:
    """The blocked BRPOPs of all consumers are ended with an error that is not about the connection."""
    site = make_site(durable_watchdog=4.0, broker=own_server.url)
    with TcpProxy(own_server.url) as address, site:
        worker_with(site, {"broker_url": address.url(own_server.url)})
        handles = [site.start("sequence", str(site.directory), 4, 0.02) for _ in range(8)]
        site.wait_for_notes("effects", 6)

        with replica.client() as new, own_server.client() as old:
            new.replicaof("NO", "ONE")
            address._target = ("127.0.0.1", replica.port)
            old.replicaof("127.0.0.1", replica.port)
            # Clients that ask by the name of the primary get the new one.
            address.reset()
        # A worker of Celery may end on such an error, and is started again.
        site.wait_all(handles, timeout=90, tend=lambda: supervise_behind(site, address.url(own_server.url)))

        for handle in handles:
            check_history(handle)


def supervise_behind(site: Site, broker: str) -> None:
    for worker in site.workers:
        worker.env[CONFIG_VARIABLE] = json.dumps({**site.config, "broker_url": broker})
    site.supervise()
