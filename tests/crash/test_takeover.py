"""A dead process's work goes on elsewhere within 15 s, on its own host within seconds, by default settings."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from durable_celery import WorkflowHandle
from durable_celery.events import StepCompleted
from tests.crash.test_lost_messages import waiting_in
from tests.servers import RedisServer
from tests.sites import Site, check_history
from tests.waiting import wait_until
from tests.workers import CeleryWorker

#: The promise for a lost worker, wherever it ran, in ms of the store's clock.
LIMIT = 15_000
#: A lost process of one's own host is seen at the next beat; the rest is room for a busy machine.
SAME_HOST_LIMIT = 8_000
#: Begins a command in a pid namespace of its own: to other workers, this is a process of another host.
ELSEWHERE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def test_another_worker_of_the_host_goes_on_after_a_killed_one(
    make_site: Callable[..., Site], broker: str, redis_server: RedisServer
) -> None:
    site = make_site(broker=broker)
    handle = start_held(site, site.worker())
    victim, survivor = site.workers[0], site.worker()

    killed_at = store_clock(redis_server)
    victim.kill()

    assert handle.get(timeout=40) == [1, 2, 2]
    check_history(handle)
    assert finished_at(handle) - killed_at < SAME_HOST_LIMIT
    assert survivor.is_running


def test_a_worker_of_another_host_goes_on_after_a_killed_one(
    make_site: Callable[..., Site], broker: str, redis_server: RedisServer
) -> None:
    if not shutil.which(ELSEWHERE[0]) or subprocess.run([*ELSEWHERE, "true"], check=False).returncode:
        pytest.skip("pid namespaces are not allowed here")
    site = make_site(broker=broker)
    handle = start_held(site, site.worker())
    elsewhere = site.worker(prefix=ELSEWHERE)

    killed_at = store_clock(redis_server)
    site.workers[0].kill()

    assert handle.get(timeout=40) == [1, 2, 2]
    check_history(handle)
    assert finished_at(handle) - killed_at < LIMIT
    assert elsewhere.is_running


def test_a_killed_pool_child_is_replaced_within_seconds(
    make_site: Callable[..., Site], broker: str, redis_server: RedisServer
) -> None:
    site = make_site(broker=broker)
    handle = start_held(site, site.worker())
    ((_, _, child),) = site.notes("step.began")

    killed_at = store_clock(redis_server)
    os.kill(child, signal.SIGKILL)

    assert handle.get(timeout=40) == [1, 2, 2]
    check_history(handle)
    assert finished_at(handle) - killed_at < SAME_HOST_LIMIT


def test_what_a_killed_worker_had_fetched_is_sent_again_at_once(make_site: Callable[..., Site], broker: str) -> None:
    # By the agenda alone it would be a matter of ten minutes; Redis itself gives it back after an hour.
    site = make_site(broker=broker, durable_resend_after=600.0, durable_resend_limit=600.0)
    held = start_held(site, site.worker(concurrency=1))
    fetched = [site.start("sequence", str(site.directory), 2) for _ in range(3)]
    wait_until(lambda: waiting_in(broker, site.queue) == 0, 40, site.story)

    site.workers[0].kill()
    site.worker()

    site.wait_all([held, *fetched], timeout=40)
    for handle in (held, *fetched):
        check_history(handle)


def start_held(site: Site, worker: CeleryWorker) -> WorkflowHandle[Any]:
    """Start a run whose second step is in the hands of the worker, and will end at once when it is tried again."""
    handle = site.start("held", str(site.directory), "step")
    ((_, _, pid),) = site.wait_for_notes("step.began", 1)
    assert pid in worker.child_pids
    # The first attempt must not see that it may go on.
    os.kill(pid, signal.SIGSTOP)
    site.release("step")
    return handle


def store_clock(server: RedisServer) -> int:
    """Return the store's time in ms: the clock of the histories."""
    with server.client() as client:
        seconds, micros = client.time()
    return int(seconds) * 1000 + int(micros) // 1000


def finished_at(handle: WorkflowHandle[Any]) -> int:
    """Return when the outcome of the held step was recorded."""
    (at,) = [item.at for item in handle.history() if isinstance(item.event, StepCompleted) and item.event.number == 2]
    return at
