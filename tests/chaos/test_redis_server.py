"""Redis pauses, drops clients, is busy, is full, has no disk, loses its last second: runs wait and go on."""

from __future__ import annotations

import os
import random
import resource
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import RedisError

from durable_celery.app import binding_of
from durable_celery.errors import StoreUnavailableError
from durable_celery.store.protocol import RunStatus
from tests.chaos.conftest import start_again, worker_with
from tests.chaos.proxy import TcpProxy
from tests.servers import RedisServer, redis_binary
from tests.sites import Site, check_history, repeats
from tests.store.invariants import check_invariants
from tests.waiting import wait_until

STEPS = 4


def begin(site: Site, count: int = 10, pause: float = 0.02) -> list[Any]:
    return [site.start("sequence", str(site.directory), STEPS, pause) for _ in range(count)]


def check_all(site: Site, handles: list[Any], timeout: float = 90) -> None:
    """Wait for the runs and hold them against what no fault may break."""
    site.wait_all(handles, timeout=timeout, tend=site.supervise)
    wait_until(lambda: all(handle.describe().delivered for handle in handles), 60, site.story)
    for handle in handles:
        check_history(handle)
        assert handle.get(timeout=1) == [number * 10 for number in range(STEPS)]
    check_invariants(binding_of(site.app).store)


def test_a_store_that_pauses_makes_runs_wait_and_records_nothing_twice(
    make_site: Callable[..., Site], own_server: RedisServer
) -> None:
    site = make_site(store=own_server.url, durable_owner_ttl=4.0)
    site.worker()
    handles = begin(site)
    with own_server.client() as client:
        site.wait_for_notes("effects", 5)
        # Longer than the store's clients wait for an answer: what they asked for happens all the same, later.
        client.execute_command("CLIENT", "PAUSE", 6000, "ALL")

    check_all(site, handles)


def test_a_store_that_sleeps_longer_than_a_lease_lets_no_zombie_write(
    make_site: Callable[..., Site], own_server: RedisServer
) -> None:
    site = make_site(store=own_server.url, durable_owner_ttl=2.0)
    for _ in range(2):
        site.worker()
    handles = begin(site)
    site.wait_for_notes("effects", 5)

    own_server.suspend()
    # Nobody can renew; all leases are over when the server wakes up.
    wait_until(lambda: any("the store does not answer" in worker.log for worker in site.workers), 40, site.story)
    own_server.resume()

    check_all(site, handles)


@pytest.mark.parametrize("pool", ["prefork", pytest.param("gevent", marks=pytest.mark.chaos)])
def test_connections_that_are_killed_again_and_again_cost_no_run(
    make_site: Callable[..., Site], own_server: RedisServer, pool: Any
) -> None:
    chance = random.Random(os.environ.get("DURABLE_CHAOS_SEED", "35"))
    site = make_site(broker=own_server.url, store=own_server.database_url(1), durable_watchdog=3.0)
    site.worker(pool=pool)
    handles = begin(site, 20, 0.01)

    with own_server.client() as client:
        for progress in range(4, 4 + 3 * 20, 3):
            wait_for_effects(site, progress)
            kind = chance.choice(["normal", "normal", "pubsub"])
            client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

    check_all(site, handles)


def wait_for_effects(site: Site, count: int) -> None:
    """Wait for progress, and start workers again that have ended meanwhile."""

    def has_come() -> bool:
        site.supervise()
        return len(site.notes("effects")) >= count

    wait_until(has_come, 120, site.story)


@pytest.mark.parametrize("fault", [pytest.param("delay", marks=pytest.mark.chaos), "hang", "reset", "cut reply"])
@pytest.mark.parametrize("of", ["broker_url", "durable_store"])
def test_a_bad_network_costs_time_and_no_run(
    make_site: Callable[..., Site], own_server: RedisServer, fault: str, of: str
) -> None:
    urls = {"broker_url": own_server.url, "durable_store": own_server.database_url(1)}
    site = make_site(broker=urls["broker_url"], store=urls["durable_store"])
    with TcpProxy(own_server.url) as proxy, site:
        worker_with(
            site,
            {of: proxy.url(urls[of]), "broker_transport_options": LOOKS_AFTER_ITSELF, "durable_watchdog": 4.0},
        )
        handles = begin(site, 6)
        for progress in (4, 12):
            site.wait_for_notes("effects", progress)
            worsen(proxy, fault)
        check_all(site, handles)


#: kombu finds by itself a broker that says nothing any more.
LOOKS_AFTER_ITSELF = {"socket_timeout": 3, "health_check_interval": 2, "polling_interval": 1}


def worsen(proxy: TcpProxy, fault: str) -> None:
    """Let the network be bad in one way, until it has shown; then heal it."""
    if fault == "reset":
        proxy.reset()
    elif fault == "cut reply":
        proxy.cut_reply(part=0.5).wait(20)
    else:
        proxy.delay(1.0) if fault == "delay" else proxy.hang()
        # That it lasts is the fault: no condition ends it.
        threading.Event().wait(4.0)
    proxy.heal()


def test_a_store_that_is_busy_with_a_foreign_script_is_asked_again(
    make_site: Callable[..., Site], tmp_path: Path
) -> None:
    with RedisServer(tmp_path / "busy", aof="everysec", extra_args=("--lua-time-limit", "100")) as server:
        site = make_site(store=server.url)
        site.worker()
        handles = begin(site)
        site.wait_for_notes("effects", 5)

        occupier = threading.Thread(target=occupy, args=(server,))
        occupier.start()
        try:
            wait_until(lambda: "the store does not answer" in site.workers[0].log, 40, site.story)
        finally:
            with server.client() as client:
                client.script_kill()
            occupier.join()

        check_all(site, handles)


def occupy(server: RedisServer) -> None:
    """Run a script until somebody kills it."""
    with pytest.raises(RedisError), redis.Redis(port=server.port, socket_timeout=120) as client:
        client.eval("while true do end", 0)


def test_a_store_without_room_refuses_starts_clearly_and_runs_go_on_when_there_is_some(
    make_site: Callable[..., Site], own_server: RedisServer
) -> None:
    site = make_site(store=own_server.url)
    site.worker()
    handles = begin(site)
    site.wait_for_notes("effects", 5)

    with own_server.client() as client:
        client.config_set("maxmemory", 1)
        with pytest.raises(StoreUnavailableError, match="at its memory limit and refused the write"):
            site.start("sequence", str(site.directory), 1)
        wait_until(lambda: any("memory limit" in worker.log for worker in site.workers), 40, site.story)
        client.config_set("maxmemory", 0)

    check_all(site, handles)


# -- the disk --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[RedisServer]:
    """Run a Redis whose files cannot grow beyond a limit, as on a full disk: its writes fail, and it lives."""
    script = tmp_path / "redis-with-little-disk"
    # A limit of its files' size, and not a signal but an error at it; the soft limit can be raised from outside.
    script.write_text(f"#!/bin/sh\ntrap '' XFSZ\nulimit -S -f 64\nexec {redis_binary()} \"$@\"\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    args = ("--maxmemory-policy", "noeviction", "--logfile", "/dev/null")
    with RedisServer(tmp_path / "small", binary=str(script), aof="everysec", extra_args=args) as server:
        yield server


def test_a_store_whose_disk_is_full_refuses_writes_and_runs_go_on_when_there_is_room(
    make_site: Callable[..., Site], small_disk: RedisServer
) -> None:
    site = make_site(store=small_disk.url)
    site.worker()
    handles = [site.start("fan_out", 3)]
    with small_disk.client() as client:
        fill(client)
        wait_until(lambda: client.info("persistence")["aof_last_write_status"] == "err", 40, "the AOF to be refused")
        with pytest.raises(StoreUnavailableError, match="MISCONF"):
            site.start("fan_out", 3)

        resource.prlimit(small_disk.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        wait_until(lambda: client.info("persistence")["aof_last_write_status"] == "ok", 40, "the AOF to be written")
    handles += [site.start("fan_out", 3) for _ in range(3)]
    site.wait_all(handles, timeout=60, tend=site.supervise)
    for handle in handles:
        check_history(handle)

    small_disk.kill()
    small_disk.start()
    assert [handle.describe().status for handle in handles] == [RunStatus.COMPLETED] * 4


def fill(client: Any) -> None:
    """Write until the server says that it cannot."""

    def is_refused() -> bool:
        try:
            client.set("filler", os.urandom(16384))
        except RedisError as error:
            return "MISCONF" in str(error)
        return False

    wait_until(is_refused, 40, "the disk to be full")


@pytest.mark.parametrize("end", ["cut off", "garbage"])
def test_a_log_that_lost_its_last_second_goes_on_from_an_older_state(
    make_site: Callable[..., Site], own_server: RedisServer, end: str
) -> None:
    """What a power loss leaves behind with `appendfsync everysec`."""
    site = make_site(store=own_server.url)
    site.worker()
    handles = begin(site)
    site.wait_for_notes("effects", 12)

    own_server.kill()
    damage(own_server.directory, garbage=end == "garbage")
    own_server.start()
    assert "ncat" in own_server.log  # "Truncated" or "truncating": the server said what it did
    start_again(site)

    site.wait_all(handles, timeout=90, tend=site.supervise)
    # What is looked at below has to be at rest.
    wait_until(lambda: all(handle.describe().delivered for handle in handles), 60, site.story)
    for handle in handles:
        check_history(handle)
    check_invariants(binding_of(site.app).store)
    # Steps whose record was lost ran again: that is what class D1 says.
    assert len(repeats(site.notes("effects"))) <= 12


def damage(directory: Path, *, garbage: bool) -> None:
    """Take the last tenth of the append-only file away, or only break it off in mid word and put noise at its end."""
    (path,) = [*directory.glob("appendonlydir/*.incr.aof"), *directory.glob("appendonly.aof")]
    size = path.stat().st_size
    os.truncate(path, size - (7 if garbage else size // 10))


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_redis_that_is_killed_again_and_again_under_load_loses_no_run(
    make_site: Callable[..., Site], own_server: RedisServer
) -> None:
    site = make_site(broker=own_server.url, store=own_server.database_url(1), durable_watchdog=5.0)
    for _ in range(2):
        site.worker()
    handles = begin(site, 200)
    for progress in range(20, 700, 60):
        wait_for_effects(site, progress)
        os.kill(own_server.pid, signal.SIGKILL)
        own_server.kill()
        own_server.start()

    check_all(site, handles, timeout=300)
