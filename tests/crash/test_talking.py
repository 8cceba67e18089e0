"""Workers are killed while a run is talked to: one outcome for each update, each item of a stream once and in order."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from durable_celery.events import SignalReceived
from durable_celery.workflow import Note, read_note
from tests.sites import Site, check_history
from tests.waiting import wait_until

UPDATES, KILLS = 24, 4


@pytest.mark.slow
def test_killed_workers_neither_lose_nor_repeat_what_a_run_was_asked_and_told(
    make_site: Callable[..., Site], broker: str
) -> None:
    site = make_site(broker=broker, durable_lost_attempts=10_000, durable_resend_after=2.0, durable_resend_limit=8.0)
    for _ in range(2):
        site.worker(wait=False)
    chance = random.Random()
    handle = site.start("talkative", UPDATES)
    told = handle.stream("told", timeout=90)

    updates = []
    for number in range(UPDATES):
        # A client that got no answer asks again.
        updates += [
            handle.start_update("tell", str(site.directory), number, key=f"u{number}") for _ in range(1 + number % 2)
        ]
        if number % (UPDATES // KILLS) == 3:
            wanted = len(site.notes("effects")) + 1
            wait_until(lambda wanted=wanted: len(site.notes("effects")) >= wanted, 60, site.story)  # type: ignore[misc] # a lambda
            victim = chance.choice(site.workers)
            victim.kill()
            victim.start(wait=False)

    assert [update.result(90) for update in updates] == [
        number * 10 for number in range(UPDATES) for _ in range(1 + number % 2)
    ]
    assert handle.get(timeout=90) == list(range(UPDATES))
    check_history(handle)
    items = [value for _, value in told]
    assert sorted(number for number, _ in items) == list(range(UPDATES))
    assert [position for _, position in items] == list(range(1, UPDATES + 1))
    assert handle.published("last") == items[-1][0]
    events = [item.event for item in handle.history()]
    notes: list[Any] = [note for note in map(read_note, events) if note is not None and note[0] is Note.UPDATED]
    assert sorted(key for _, key in notes) == sorted(f"u{number}" for number in range(UPDATES))
    assert len([event for event in events if isinstance(event, SignalReceived)]) == UPDATES
    assert handle.update("tell", str(site.directory), 3, key="u3") == 30
