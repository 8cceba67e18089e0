"""Steps in real workers that are killed, hang, are not wanted any more, or leave their outcome to others."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from durable_celery.app import binding_of
from durable_celery.errors import StepNotOpenError
from durable_celery.store.protocol import StepState
from tests.sites import Site
from tests.waiting import wait_until

WAIT = 30


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site(durable_owner_ttl=3.0)


@pytest.mark.parametrize("retry", [None, 5])
def test_a_step_that_is_not_to_be_repeated_is_not_after_a_kill(site: Site, retry: int | None) -> None:
    site.worker()
    handle = site.start("once", str(site.directory), "h", retry)
    site.wait_for_notes("h.began", 1)
    site.workers[0].kill()
    site.worker()

    name, story = handle.get(timeout=WAIT)

    assert name == "StepLostError"
    assert "not repeated (at_most_once): nobody knows whether it took effect" in story
    assert len(site.notes("h.began")) == 1


def test_progress_outlives_a_kill(site: Site) -> None:
    site.worker()
    handle = site.start("with_options", "beating", str(site.directory), "b", {})
    site.wait_for_notes("b.began", 1)
    wait_until(lambda: (handle.describe().steps[0].progress or "0") > "0", WAIT, site.story)
    site.workers[0].kill()
    saved = int(handle.describe().steps[0].progress or 0)
    site.worker()
    site.wait_for_notes("b.began", 2)
    site.release("b")

    assert handle.get(timeout=WAIT) == [saved, 2]


@pytest.mark.parametrize("how", ["cancel", "race"])
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_cancel_reaches_a_step_at_its_heartbeat(site: Site, how: str, pool: Any) -> None:
    site.worker(pool=pool)
    handle = site.start("raced", str(site.directory), "b")
    site.wait_for_notes("b.began", 1)
    before = time.monotonic()

    if how == "cancel":
        handle.cancel()
    else:
        handle.signal("enough")
    site.wait_for_notes("b.stopped", 1)

    assert time.monotonic() - before < 5, "a second, and what the machine is late by"
    assert handle.describe().steps == ()
    assert len(site.notes("b.began")) == 1


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_an_attempt_that_hangs_is_followed_by_another(site: Site, pool: Any) -> None:
    site.worker(pool=pool, concurrency=2)

    options = {"attempt_timeout": 1.0, "retry": 3}
    assert site.start("with_options", "silent", str(site.directory), "s", options).get(timeout=WAIT) == 2


def test_the_code_of_an_attempt_that_hangs_is_ended_where_the_pool_can(site: Site) -> None:
    # One process alone: it executes the second attempt only if the first one has left it.
    site.worker(pool="prefork", concurrency=1)

    options = {"attempt_timeout": 1.0, "retry": 3}
    assert site.start("with_options", "silent", str(site.directory), "s", options).get(timeout=WAIT) == 2


def test_an_attempt_that_hangs_fails_a_step_without_a_policy(site: Site) -> None:
    site.worker()

    name, story = site.start("with_options", "silent", str(site.directory), "s", {"attempt_timeout": 1.0}).get(
        timeout=WAIT
    )

    assert name == "StepTimeoutError"
    assert "within its attempt_timeout of 1 s" in story
    assert len(site.notes("s.began")) == 1


def test_an_attempt_without_heartbeats_is_taken_for_lost_while_its_process_lives(site: Site) -> None:
    site.worker(pool="threads", concurrency=3)

    options = {"heartbeat_timeout": 1.0}
    assert site.start("with_options", "silent", str(site.directory), "s", options).get(timeout=WAIT) == 2


def test_a_step_that_no_worker_begins_fails(site: Site) -> None:
    site.worker()

    options = {"start_timeout": 1.0, "queue": "of-nobody"}
    name, story = site.start("with_options", "silent", str(site.directory), "s", options).get(timeout=WAIT)

    assert name == "StepTimeoutError"
    assert story == "no worker began the step within its start_timeout of 1 s: does one consume queue of-nobody?"


def test_an_outcome_from_outside_ends_a_step_once_and_while_no_worker_runs(site: Site) -> None:
    site.worker()
    handle = site.start("with_options", "handed_out", str(site.directory), "token", {})
    token = site.wait_for_notes("token", 1)[0][0]
    wait_until(lambda: handle.describe().steps[0].state is StepState.WAITING, WAIT, site.story)
    site.workers[0].kill()
    client = binding_of(site.app).client

    client.complete_step(token, {"paid": True})
    client.complete_step(token, {"paid": True})
    with pytest.raises(StepNotOpenError, match="already"):
        client.complete_step(token, {"paid": False})
    site.worker()

    assert handle.get(timeout=WAIT) == {"paid": True}
    assert len(site.notes("token")) == 1
