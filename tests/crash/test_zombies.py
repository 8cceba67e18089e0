"""A worker that was stopped past its lease and goes on: what it writes late is refused."""

from __future__ import annotations

import signal
from collections.abc import Callable

from tests.sites import Site, check_history
from tests.waiting import wait_until


def test_the_outcome_of_a_step_that_was_taken_over_is_refused(make_site: Callable[..., Site], broker: str) -> None:
    site = make_site(broker=broker, durable_owner_ttl=2.0, durable_resend_after=1.0)
    zombie = site.worker()
    handle = site.start("held", str(site.directory), "step")
    site.wait_for_notes("step.began", 1)
    other = site.worker()

    zombie.kill(signal.SIGSTOP)
    site.wait_for_notes("step.began", 2)
    site.release("step")
    assert handle.get(timeout=40) == [1, 2, 2]
    history = handle.history()
    zombie.kill(signal.SIGCONT)
    zombie.wait_for_log(f"an outcome of step {handle.id}/1.2, attempt 1, was not recorded")

    assert len(site.notes("step.ended")) == 2
    assert handle.history() == history
    check_history(handle)
    assert "was not recorded" not in other.log


def test_the_commit_of_a_turn_that_was_taken_over_is_refused(make_site: Callable[..., Site], broker: str) -> None:
    site = make_site(broker=broker, durable_owner_ttl=2.0, durable_resend_after=1.0)
    zombie = site.worker()
    handle = site.start("held_local", str(site.directory), "local")
    site.wait_for_notes("local.began", 1)
    site.worker()

    zombie.kill(signal.SIGSTOP)
    site.wait_for_notes("local.began", 2)
    site.release("local")
    assert handle.get(timeout=40) == [0, 2]
    history = handle.history()
    zombie.kill(signal.SIGCONT)
    zombie.wait_for_log(f"turn of {handle.id} given up")

    assert handle.history() == history
    check_history(handle)


def test_a_worker_that_lost_its_lease_works_on_with_new_ones(make_site: Callable[..., Site]) -> None:
    site = make_site(durable_owner_ttl=2.0, durable_resend_after=1.0)
    worker = site.worker()
    handle = site.start("held", str(site.directory), "step")
    site.wait_for_notes("step.began", 1)
    names = handle.describe().steps

    worker.kill(signal.SIGSTOP)
    wait_until(lambda: site.owner_ends_in(str(names[0].owner)) < -1.0, 20, "the lease to run out")
    worker.kill(signal.SIGCONT)
    site.release("step")

    assert handle.get(timeout=40)[2] == 2
    assert site.start("fan_out", 10).get(timeout=40) == 55
