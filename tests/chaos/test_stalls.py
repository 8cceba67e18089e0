"""Celery's three ways to hang: a worker that ends, a pool that restores nothing, a consumer that takes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import celery
import kombu
import pytest
import redis

from durable_celery.events import TimerFired
from tests.chaos.conftest import BROKER
from tests.crash.test_lost_messages import waiting_in
from tests.servers import RedisServer
from tests.sites import Site, check_history
from tests.waiting import wait_until
from tests.workers import CeleryWorker, Pool

#: Seconds of patience of the watchdog in these tests: a look each half second.
PATIENCE = 1.5
#: What it says.
AGAIN = "it connects again"


def faulty(site: Site, fault: str, **options: Any) -> CeleryWorker:
    return site.worker(app="tests.chaos.faulty_worker", env={"DURABLE_TEST_FAULT": fault}, **options)


# -- a worker that ends when its Redis broker goes away --------------------------------------------------------------


@pytest.mark.skipif(
    (celery.__version__, kombu.__version__) != ("5.7.0", "5.7.0"), reason="the fault is that of these very versions"
)
def test_without_the_guard_a_worker_with_a_late_task_ends_with_its_broker_and_nothing_is_lost(
    make_site: Callable[..., Site], own_server: RedisServer
) -> None:
    site = make_site(broker=own_server.url)
    worker = faulty(site, "unguarded")
    handle = site.start("held_local", str(site.directory), "local")
    site.wait_for_notes("local.began", 1)

    own_server.kill()
    worker.wait_for_log("'NoneType' object has no attribute 'hostname'", timeout=60)
    own_server.start()
    site.release("local")
    # It lets the task end, and then ends itself, although the broker is back.
    assert worker.wait(60) == 1
    site.worker()

    assert handle.get(timeout=60)[1] == 2
    check_history(handle)


@pytest.mark.parametrize("pool", ["prefork", pytest.param("threads", marks=pytest.mark.chaos), "gevent"])
def test_with_the_guard_a_worker_with_a_late_task_outlives_its_broker(
    make_site: Callable[..., Site], own_server: RedisServer, pool: Pool
) -> None:
    site = make_site(broker=own_server.url)
    worker = site.worker(pool=pool)
    handle = site.start("held_local", str(site.directory), "local")
    site.wait_for_notes("local.began", 1)

    own_server.kill()
    worker.wait_for_log("Connection to broker lost", timeout=40)
    own_server.start()
    site.release("local")

    assert handle.get(timeout=60) == [0, 2]
    assert len(site.notes("local.began")) == 1
    assert worker.is_running


# -- a pool that restores nothing ------------------------------------------------------------------------------------

#: kombu looks each second for messages that are unacknowledged for a second.
SHORT_VISIBILITY = {"visibility_timeout": 1, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}


def test_a_green_worker_restores_no_message_of_a_killed_one_and_its_run_completes_all_the_same(
    make_site: Callable[..., Site], redis_server: RedisServer
) -> None:
    site = make_site(broker_transport_options=SHORT_VISIBILITY)
    with redis_server.client(BROKER) as broker:
        left = unacknowledged_of_a_killed_worker(site, broker)
        site.worker(pool="gevent")
        site.release("local")

        # The agenda has its own clock: the messages are sent again, whatever becomes of the old ones.
        site.wait_all([site.app.AsyncResult(name) for name in left.values()], timeout=60)
        still = tags_in(broker)

        # More than the visibility timeout has passed for each of them, and they are what they were: dead letters.
        assert left.keys() <= still

        # The first worker of another pool clears them away; what it restores finds nothing to do.
        worker = site.worker()
        wait_until(lambda: not broker.hlen("unacked") and not broker.llen(site.queue), 60, site.story)
    assert worker.is_running
    assert {attempt for _, attempt, _ in site.notes("effects")} == {1}


def unacknowledged_of_a_killed_worker(site: Site, broker: Any) -> dict[str, str]:
    """Kill a worker with a message in hand and others prefetched; return the delivery tags with their workflow ids."""
    worker = site.worker(pool="threads", concurrency=1, args=["--prefetch-multiplier", "4"])
    held = site.start("held_local", str(site.directory), "local")
    site.wait_for_notes("local.began", 1)
    others = [site.start("sequence", str(site.directory), 2) for _ in range(2)]
    wait_until(lambda: broker.hlen("unacked") == 1 + len(others), 40, site.story)
    worker.kill()
    assert broker.llen(site.queue) == 0
    return dict(zip(sorted(tags_in(broker)), [str(handle.id) for handle in (held, *others)], strict=True))


def tags_in(broker: Any) -> set[str]:
    """Return the delivery tags of all messages that no worker has acknowledged."""
    return {tag.decode() for tag in broker.hkeys("unacked")}


# -- a consumer that takes nothing -----------------------------------------------------------------------------------

#: Pools with and without an event loop, on both brokers.
PLACES = [
    ("prefork", "redis"),
    pytest.param("gevent", "redis", marks=pytest.mark.chaos),
    pytest.param("solo", "redis", marks=pytest.mark.chaos),
    ("prefork", "rabbitmq"),
]
#: Where one broker is enough for each commit.
BOTH = pytest.mark.parametrize("broker", ["redis", pytest.param("rabbitmq", marks=pytest.mark.chaos)], indirect=True)


#: More than a worker prefetches: a deaf consumer of RabbitMQ still has its share in the socket.
RUNS = 6


@pytest.mark.parametrize(("pool", "broker"), PLACES, indirect=["broker"])
def test_the_watchdog_lets_a_deaf_worker_hear_again(make_site: Callable[..., Site], broker: str, pool: Pool) -> None:
    site = make_site(broker=broker, durable_watchdog=PATIENCE, worker_prefetch_multiplier=1)
    worker = faulty(site, "deaf", pool=pool)
    assert site.start("sequence", str(site.directory), 1).get(timeout=60) == [0]

    deafen(site)
    handles = [site.start("sequence", str(site.directory), 2) for _ in range(RUNS)]

    site.wait_all(handles, timeout=60)
    assert worker.is_running
    assert AGAIN in worker.log


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_the_watchdog_ends_a_worker_that_stays_deaf_and_says_so(make_site: Callable[..., Site], pool: Pool) -> None:
    site = make_site(durable_watchdog=PATIENCE, worker_prefetch_multiplier=1)
    worker = faulty(site, "stone-deaf", pool=pool)
    deafen(site)
    handles = [site.start("sequence", str(site.directory), 2) for _ in range(RUNS)]

    assert worker.wait(90) == 1
    assert "although it has connected again 2 times; it ends, to be started again" in worker.log
    assert not worker.child_pids
    site.worker()

    site.wait_all(handles, timeout=60)


@BOTH
def test_a_deaf_worker_that_nobody_watches_leaves_its_messages(make_site: Callable[..., Site], broker: str) -> None:
    site = make_site(broker=broker, durable_watchdog=0, worker_prefetch_multiplier=1)
    worker = faulty(site, "deaf")
    deafen(site)

    handles = [site.start("sequence", str(site.directory), 2) for _ in range(RUNS)]
    wait_for_looks(site)

    assert waiting_in(broker, site.queue) > 0
    assert AGAIN not in worker.log
    # Nothing of it is lost: any other worker finds it.
    site.worker()
    site.wait_all(handles, timeout=60)


def deafen(site: Site) -> None:
    (site.directory / "deafen").touch()
    wait_until((site.directory / "deafened").exists, 40, site.story)


def wait_for_looks(site: Site) -> None:
    """Let the time of many looks of a watchdog pass, by a durable timer that some worker's sweep has to see."""
    timer = site.start("nap", 0.0, countdown=2.5 * PATIENCE)
    wait_until(lambda: any(isinstance(item.event, TimerFired) for item in timer.history()), 60, site.story)


# -- a worker that is only busy, paused, or somewhere else -----------------------------------------------------------


@BOTH
def test_a_busy_worker_with_a_long_queue_is_not_suspected(make_site: Callable[..., Site], broker: str) -> None:
    site = make_site(broker=broker, durable_watchdog=PATIENCE)
    worker = site.worker(concurrency=1)
    site.start("held", str(site.directory), "step")
    site.wait_for_notes("step.began", 1)
    handles = [site.start("sequence", str(site.directory), 1, 0.1) for _ in range(30)]
    wait_until(lambda: waiting_in(broker, site.queue) > 10, 40, site.story)

    wait_for_looks(site)
    assert AGAIN not in worker.log
    site.release("step")
    site.wait_all(handles, timeout=60)

    assert AGAIN not in worker.log


@BOTH
def test_a_paused_worker_is_not_suspected(make_site: Callable[..., Site], broker: str) -> None:
    site = make_site(broker=broker, durable_watchdog=PATIENCE)
    worker = site.worker()
    site.app.control.cancel_consumer(site.queue)
    worker.wait_for_log(f"Canceling queue {site.queue}", timeout=40)
    handle = site.start("sequence", str(site.directory), 1)

    wait_for_looks(site)
    assert waiting_in(broker, site.queue) > 0
    assert AGAIN not in worker.log

    site.app.control.add_consumer(site.queue)
    assert handle.get(timeout=60) == [0]


def test_a_worker_of_other_queues_is_not_suspected(make_site: Callable[..., Site], redis_server: RedisServer) -> None:
    site = make_site(durable_watchdog=PATIENCE)
    worker = site.worker(queues=[f"{site.queue}-other"])
    site.start("sequence", str(site.directory), 1)

    wait_for_looks(site)

    assert waiting_in(redis_server.database_url(BROKER), site.queue) > 0
    assert AGAIN not in worker.log


@pytest.mark.parametrize("reason", ["rate limit", "limit of delayed tasks"])
def test_a_worker_that_holds_all_it_may_is_not_suspected(
    make_site: Callable[..., Site], redis_server: RedisServer, reason: str
) -> None:
    site = make_site(durable_watchdog=PATIENCE, worker_prefetch_multiplier=1, worker_eta_task_limit=2)
    worker = site.worker(concurrency=1)
    options: dict[str, Any] = {"countdown": 60}
    if reason == "rate limit":
        site.app.control.rate_limit("add", "1/h")
        worker.wait_for_log("New rate limit", timeout=40)
        options = {}
    for _ in range(8):
        site.app.send_task("add", (1, 2), ignore_result=True, **options)
    broker: redis.Redis = redis_server.client(BROKER)
    with broker:
        wait_until(lambda: broker.llen(site.queue) > 0 and broker.hlen("unacked") > 0, 40, site.story)

        wait_for_looks(site)

        assert broker.llen(site.queue) > 0
    assert AGAIN not in worker.log
