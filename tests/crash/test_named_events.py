"""Workers are killed while runs wait for an event and while they are told: each hears of it, once."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from durable_celery import publish_event
from durable_celery.events import StepCompleted
from tests.sites import Site, check_history
from tests.waiting import wait_until

RUNS, EVENTS, KILLS = 24, 6, 5


@pytest.mark.slow
def test_killed_workers_neither_lose_nor_repeat_the_news(make_site: Callable[..., Site], broker: str) -> None:
    site = make_site(broker=broker, durable_lost_attempts=10_000, durable_resend_after=2.0, durable_resend_limit=8.0)
    for _ in range(2):
        site.worker(wait=False)
    chance = random.Random()
    handles: list[Any] = [site.start("expectant", f"news-{number % EVENTS}") for number in range(RUNS)]

    for number in range(EVENTS):
        if number == EVENTS // 2:
            # Some are told of what they wait for, the others of what they begin to wait for now.
            wait_until(lambda: all(handle.describe().length > 3 for handle in handles), 90, site.story)
        publish_event(f"news-{number}", number, app=site.app)
        if number < KILLS:
            victim = chance.choice(site.workers)
            victim.kill()
            victim.start(wait=False)

    assert [handle.get(timeout=90) for handle in handles] == [[1, number % EVENTS, 2] for number in range(RUNS)]
    for handle in handles:
        check_history(handle)
        assert sum(isinstance(item.event, StepCompleted) for item in handle.history()) == 3
