"""More than is good for anybody at once: results, signals, failures."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from durable_celery.errors import InboxFullError
from durable_celery.events import SignalReceived
from tests.servers import RedisServer
from tests.sites import Site, check_history, repeats
from tests.waiting import wait_until


def test_two_hundred_results_at_once_are_all_taken_in(make_site: Callable[..., Site], broker: str) -> None:
    site = make_site(broker=broker)
    for _ in range(2):
        site.worker(concurrency=4)

    handle = site.start("fan_out", 200)

    assert handle.get(timeout=90) == sum(range(200)) + 200
    check_history(handle)


def test_a_flood_of_signals_to_a_run_that_nobody_takes_is_refused_at_the_limit_and_none_is_lost(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(durable_inbox_limit=1000)
    handle = site.start("approval")

    # The start counts as well.
    for number in range(999):
        handle.signal("approve", number)
    with pytest.raises(InboxFullError):
        handle.signal("approve", "one too many")

    assert len([item for item in handle.history() if isinstance(item.event, SignalReceived)]) == 999
    site.worker()
    assert handle.get(timeout=60) == [3, 0]


def test_a_storm_of_retries_over_a_store_that_stalls_makes_no_attempt_too_many(
    make_site: Callable[..., Site], own_server: RedisServer
) -> None:
    site = make_site(store=own_server.url)
    site.worker(concurrency=4)
    directories = []
    for number in range(60):
        directory = site.directory / str(number)
        directory.mkdir()
        directories.append(directory)
    handles = [site.start("retrying", str(directory)) for directory in directories]
    wait_until(lambda: sum((directory / "unsteady").exists() for directory in directories) > 5, 60, site.story)

    with own_server.client() as client:
        client.execute_command("CLIENT", "PAUSE", 3000, "ALL")
    site.wait_all(handles, timeout=90)

    for handle, directory in zip(handles, directories, strict=True):
        check_history(handle)
        # Two that fail and one that does not; one may be lost in the stall.
        attempts = [int(line.split()[1]) for line in (directory / "unsteady").read_text().splitlines()]
        assert set(attempts) <= {1, 2, 3, 4}
        assert len(attempts) <= 4
    assert repeats(site.notes("effects")) == {}
