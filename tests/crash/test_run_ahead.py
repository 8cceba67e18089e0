"""Steps that run ahead on real workers: without messages, visible, within their slice, and under kill -9."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.crash.test_kills import SETTINGS, survive
from tests.sites import Site, check_history
from tests.waiting import wait_until


def received(site: Site, task: str) -> int:
    return sum(f"Task {task}[" in line and line.endswith(" received") for line in site.workers[0].log.splitlines())


def test_steps_that_run_ahead_have_no_messages(make_site: Callable[..., Site]) -> None:
    site = make_site(durable_run_ahead=30.0)
    site.worker()

    handle = site.start("sequence", str(site.directory), 8)

    assert handle.get(timeout=40) == [number * 10 for number in range(8)]
    check_history(handle)
    assert received(site, "effect") == 0
    assert [key for key, _, _ in site.notes("effects")] == [f"{handle.id}/1.{number}" for number in range(1, 9)]
    assert len({pid for _, _, pid in site.notes("effects")}) == 1


def test_an_end_has_no_message_of_its_own(make_site: Callable[..., Site]) -> None:
    site = make_site(durable_run_ahead=0.0)
    site.worker()

    handle = site.start("sequence", str(site.directory), 3)

    assert handle.get(timeout=40) == [0, 10, 20]
    wait_until(lambda: handle.describe().delivered, 20, site.story)
    assert received(site, "effect") == 3
    assert received(site, "sequence") == 1


def test_a_step_that_runs_ahead_of_its_own_task_is_found_by_all_of_its_code(make_site: Callable[..., Site]) -> None:
    site = make_site(durable_run_ahead=30.0)
    site.worker()

    handle = site.start("watched", str(site.directory), 4)

    assert handle.get(timeout=40) == [1, 1, 1, 1]
    assert received(site, "watch") == 1
    keys = [f"{handle.id}/1.{number}" for number in range(1, 5)]
    assert [key for key, _, _ in site.notes("within")] == keys
    # The handler of the one that has a message comes first: those after it run once it is over.
    assert [key for key, _, _ in site.wait_for_notes("after", 4)] == keys


def test_a_slice_ends_with_a_message(make_site: Callable[..., Site]) -> None:
    site = make_site(durable_run_ahead=0.25)
    site.worker()

    handle = site.start("sequence", str(site.directory), 8, 0.1)

    assert handle.get(timeout=40) == [number * 10 for number in range(8)]
    # Two or three steps fit into a slice, and the one after them has a message.
    assert 1 <= received(site, "effect") <= 5


def test_monitors_see_steps_that_run_ahead(make_site: Callable[..., Site]) -> None:
    site = make_site(durable_run_ahead=30.0)
    site.worker(args=["-E"])
    with listening(site) as seen:
        handle = site.start("retrying", str(site.directory))
        handle.get(timeout=40)
        steps = {f"{handle.id}/1.{number}" for number in (1, 2)}
        wait_until(
            lambda: steps <= {event["uuid"] for event in seen if event["type"] == "task-succeeded"}, 20, site.story
        )

    of_steps = [event for event in seen if event.get("uuid") in steps]
    kinds = Counter(event["type"] for event in of_steps)
    assert kinds["task-succeeded"] == len(steps)
    assert min(kinds["task-received"], kinds["task-started"]) >= len(steps)
    assert kinds["task-retried"] >= 1
    assert {event["hostname"] for event in of_steps} == {f"{site.workers[0].name}@{_host(of_steps)}"}
    assert {event["root_id"] for event in of_steps if event["type"] == "task-received"} == {handle.id}


def test_monitors_of_what_is_sent_see_steps_that_run_ahead(make_site: Callable[..., Site]) -> None:
    site = make_site(durable_run_ahead=30.0, task_send_sent_event=True)
    site.worker()
    with listening(site) as seen:
        handle = site.start("sequence", str(site.directory), 2)
        handle.get(timeout=40)
        steps = {f"{handle.id}/1.{number}" for number in (1, 2)}
        wait_until(lambda: steps <= {event["uuid"] for event in seen if event["type"] == "task-sent"}, 20, site.story)

    assert received(site, "effect") == 0


@contextmanager
def listening(site: Site) -> Generator[list[dict[str, Any]]]:
    """Give the events that monitors of a site get."""
    seen: list[dict[str, Any]] = []
    with site.app.connection_for_read() as connection:
        receiver = site.app.events.Receiver(connection, handlers={"*": seen.append})
        stop = threading.Event()
        listener = threading.Thread(target=lambda: _listen(receiver, stop))
        listener.start()
        try:
            yield seen
        finally:
            stop.set()
            listener.join(20)


def _listen(receiver: Any, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            receiver.capture(limit=None, timeout=0.5, wakeup=False)
        except TimeoutError:
            continue


def _host(events: list[dict[str, Any]]) -> str:
    return str(events[0]["hostname"]).partition("@")[2]


@pytest.mark.parametrize("pool", ["threads", "solo", "gevent"])
def test_each_pool_runs_ahead(make_site: Callable[..., Site], pool: Any) -> None:
    site = make_site(durable_run_ahead=30.0)
    site.worker(pool=pool)

    handles = [site.start("sequence", str(site.directory), 4, 0.02) for _ in range(3)]

    for handle in handles:
        assert handle.get(timeout=40) == [0, 10, 20, 30]
        check_history(handle)
    assert received(site, "effect") == 0


def test_a_worker_with_time_limits_runs_nothing_ahead_and_says_so(make_site: Callable[..., Site]) -> None:
    site = make_site(durable_run_ahead=30.0)
    worker = site.worker(args=["--time-limit=60"])

    assert site.start("sequence", str(site.directory), 2).get(timeout=40) == [0, 10]

    assert "durable_run_ahead has no effect in this worker" in worker.log
    assert received(site, "effect") == 2


def test_a_worker_that_replaces_its_processes_after_some_tasks_counts_each_step(make_site: Callable[..., Site]) -> None:
    site = make_site(durable_run_ahead=30.0, worker_max_tasks_per_child=2)
    site.worker()

    assert site.start("sequence", str(site.directory), 5).get(timeout=40) == [0, 10, 20, 30, 40]

    assert received(site, "effect") == 5
    assert len({pid for _, _, pid in site.notes("effects")}) >= 3


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("rate_limit", {"task_name": "effect", "rate_limit": "100/s"}),
        ("time_limit", {"task_name": "effect", "hard": 60}),
        ("cancel_consumer", {"queue": "another"}),
    ],
)
def test_limits_that_are_set_by_remote_control_hold(
    make_site: Callable[..., Site], command: str, arguments: dict[str, Any]
) -> None:
    site = make_site(durable_run_ahead=30.0)
    worker = site.worker()
    assert site.start("sequence", str(site.directory), 2).get(timeout=40) == [0, 10]
    assert received(site, "effect") == 0

    site.app.control.broadcast(command, arguments=arguments, reply=True, timeout=10, limit=1)
    assert site.start("sequence", str(site.directory), 3).get(timeout=40) == [0, 10, 20]

    assert received(site, "effect") == 3
    assert f"after the remote control's {command}" in worker.log


def test_only_steps_that_have_been_quick_run_ahead(make_site: Callable[..., Site]) -> None:
    """With default settings: the first step of each process has a message, as have all that are slow."""
    site = make_site()
    site.worker(concurrency=1)
    site.start("sequence", str(site.directory), 6).get(timeout=40)
    assert 1 <= received(site, "effect") < 6

    before = received(site, "effect")
    site.start("sequence", str(site.directory), 3, 0.1).get(timeout=40)
    # The first of them was not expected to be slow.
    assert received(site, "effect") - before == 2


def test_a_run_of_short_steps_lets_others_have_their_turn(make_site: Callable[..., Site]) -> None:
    site = make_site()
    site.worker(concurrency=1)
    site.start("sequence", str(site.directory), 1).get(timeout=40)

    long = site.start("sequence", str(site.directory), 3000)
    site.wait_for_notes("effects", 30)
    short = site.start("sequence", str(site.directory), 2)
    assert short.get(timeout=40) == [0, 10]
    long.get(timeout=60)

    assert short.history()[-1].at < long.history()[-1].at
    # A slice holds dozens of them, and nobody has waited for all.
    assert received(site, "effect") < 1500


@pytest.mark.slow
def test_kills_lose_no_run_and_record_no_step_twice(make_site: Callable[..., Site]) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - for a failure's report

    survive(make_site(durable_run_ahead=0.3, **SETTINGS), seed, kills=12)
