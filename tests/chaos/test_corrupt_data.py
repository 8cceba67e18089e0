"""The store loses what it had, comes back with an older copy, or has a bad byte: one run's trouble stays its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from durable_celery import WorkflowHandle
from durable_celery.app import binding_of
from durable_celery.errors import WorkflowNotFoundError
from durable_celery.store.protocol import RunStatus
from tests.chaos.conftest import STORE, start_again
from tests.servers import RedisServer
from tests.sites import Site, check_history
from tests.store.invariants import check_invariants
from tests.waiting import wait_until


def test_a_store_that_was_emptied_drops_the_messages_of_its_runs(
    make_site: Callable[..., Site], redis_server: RedisServer, broker: str
) -> None:
    site = make_site(broker=broker)
    worker = site.worker(concurrency=1)
    handle = site.start("held", str(site.directory), "step")
    site.wait_for_notes("step.began", 1)
    waiting = site.start("sequence", str(site.directory), 2)

    with redis_server.client(STORE) as client:
        client.flushdb()
    site.release("step")

    worker.wait_for_log(f"a message names workflow {waiting.id}, which is not in the store; dropped", timeout=60)
    # Nobody makes a run of what was left of it, and new ones work.
    assert binding_of(site.app).store.get(str(waiting.id)) is None
    assert binding_of(site.app).store.get(str(handle.id)) is None
    assert site.start("sequence", str(site.directory), 2).get(timeout=60) == [0, 10]
    assert len(site.notes("effects")) == 2
    assert worker.is_running


def test_a_log_that_was_restored_from_an_older_copy_goes_on_from_there(
    make_site: Callable[..., Site], own_server: RedisServer
) -> None:
    site = make_site(store=own_server.url)
    site.worker()
    early = site.start("held", str(site.directory), "early")
    site.wait_for_notes("early.began", 1)
    copy = Copy(own_server)
    late = site.start("sequence", str(site.directory), 2)
    assert late.get(timeout=60) == [0, 10]
    site.release("early")
    assert early.get(timeout=60)[0] == 1

    copy.restore()
    start_again(site)

    # What the copy does not know is gone; what it knows goes on, and may run again what it had run.
    site.wait_all([early], timeout=60)
    assert len(site.notes("early.began")) == 2
    check_history(early)
    try:
        gone = late.describe()
    except WorkflowNotFoundError:
        gone = None
    assert gone is None
    wait_until(lambda: early.describe().delivered, 60, site.story)
    check_invariants(binding_of(site.app).store)


class Copy:
    """The contents of a server at one moment, to be put back as a restored backup would be."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        with server.client() as client:
            self.values: dict[Any, Any] = {key: client.dump(key) for key in client.scan_iter()}

    def restore(self) -> None:
        with self.server.client() as client, client.pipeline(transaction=True) as pipe:
            pipe.flushdb()
            for key, value in self.values.items():
                pipe.restore(key, 0, value)
            pipe.execute()


def test_a_bad_byte_in_one_event_parks_that_run_and_no_other(
    make_site: Callable[..., Site], redis_server: RedisServer
) -> None:
    site, sick = with_a_bad_byte(make_site, redis_server)
    healthy = site.start("sequence", str(site.directory), 3)

    site.release("sick")

    assert healthy.get(timeout=60) == [0, 10, 20]
    wait_until(lambda: sick.describe().status is RunStatus.BLOCKED, 60, site.story)
    assert all(worker.is_running for worker in site.workers)


@pytest.mark.chaos
def test_a_run_with_a_bad_byte_goes_on_when_it_is_mended(
    make_site: Callable[..., Site], redis_server: RedisServer
) -> None:
    site, sick = with_a_bad_byte(make_site, redis_server)
    site.release("sick")
    wait_until(lambda: sick.describe().status is RunStatus.BLOCKED, 60, site.story)

    flip(redis_server, sick)

    # A run that cannot be read is looked at once a minute.
    site.wait_all([sick], timeout=100)
    assert sick.get(timeout=10) == [1, 1, 2]


def with_a_bad_byte(make_site: Callable[..., Site], server: RedisServer) -> tuple[Site, WorkflowHandle[Any]]:
    """Return a site, and a run on it whose history nobody can read any more."""
    site = make_site(durable_cache_size=0)
    site.worker()
    sick = site.start("held", str(site.directory), "sick")
    site.wait_for_notes("sick.began", 1)
    flip(server, sick)
    return site, sick


def flip(server: RedisServer, handle: WorkflowHandle[Any]) -> None:
    """Turn one bit of an event over: an opening brace becomes something else, or the other way round."""
    log, event = f"durable:{{0}}:log:{handle.id}", 2
    client: Any = server.client(STORE)
    with client:
        line = bytearray(client.lindex(log, event))
        line[line.index(b" ") + 1] ^= 1
        client.lset(log, event, bytes(line))
