"""Workers are killed amid a canvas, amid a block with a time limit, and with a child of a chosen id: all go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import chain, group

from durable_celery import durable
from durable_celery.events import StepCompleted
from tests.sites import Site, check_history


def test_a_canvas_goes_on_where_its_killed_worker_left_it(make_site: Callable[..., Site], broker: str) -> None:
    site = make_site(broker=broker)
    victim = site.worker()
    add, hold = site.app.tasks["add"], site.app.tasks["hold"]
    directory = str(site.directory)
    canvas: Any = chain(add.s(1, 2), group(hold.si(directory, "step"), add.s(10)), app=site.app)
    handle = durable(canvas).delay()
    site.wait_for_notes("step.began", 1)

    victim.kill()
    site.worker()
    (site.directory / "step.release").touch()

    # The second attempt of what was held, and what the first task gave.
    assert handle.get(timeout=40) == [2, 13]
    check_history(handle)
    assert sum(isinstance(item.event, StepCompleted) for item in handle.history()) == 3


def test_a_block_ends_in_time_though_its_worker_was_killed(make_site: Callable[..., Site], broker: str) -> None:
    site = make_site(broker=broker)
    victim = site.worker()
    handle = site.start("composed", str(site.directory), "invoice-7")
    site.wait_for_notes("step.began", 1)

    victim.kill()
    site.worker()

    assert handle.get(timeout=40) == ["timed out", [0, 10]]
    # The held step was given up; only the child has an outcome.
    assert [item.event.number for item in handle.history() if isinstance(item.event, StepCompleted)] == [4]
    child = site.describe("invoice-7")
    assert (child.parent, str(child.status)) == (f"{handle.id}/1.4", "completed")
