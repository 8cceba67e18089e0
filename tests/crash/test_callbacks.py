"""A worker is killed while a token is in the outside world: the answer counts, whoever hears it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from durable_celery import CallbackFailedError, WorkflowHandle, complete_callback, fail_callback
from tests.sites import Site
from tests.waiting import wait_until


def tokens(site: Site) -> set[str]:
    """Return the different tokens that were handed out."""
    return set((site.directory / "tokens").read_text().split())


def kinds(handle: WorkflowHandle[Any]) -> list[str]:
    return [type(item.event).__name__ for item in handle.history()]


def test_an_answer_is_heard_though_the_worker_that_handed_the_token_out_was_killed(
    make_site: Callable[..., Site], broker: str
) -> None:
    site = make_site(broker=broker)
    worker = site.worker()
    handle = site.start("called", str(site.directory))
    site.wait_for_notes("hand_out.began", 1)
    worker.kill()

    # Nobody is there, and the step that hands it out has not even ended.
    (token,) = tokens(site)
    assert complete_callback(token, {"paid": 12}, app=site.app) is True
    assert fail_callback(token, "second", app=site.app) is False
    site.release("hand_out")
    site.worker()

    assert handle.get(timeout=60) == [{"paid": 12}, 3]
    assert tokens(site) == {token}
    assert kinds(handle).count("SignalReceived") == 1
    # Both timers were given up, and the step that handed the token out, unless its outcome came before the run's turn.
    assert kinds(handle).count("CommandCancelled") in {2, 3}
    assert kinds(handle).count("StepCompleted") in {1, 2}


def test_another_worker_hands_out_the_same_token_and_hears_the_answer(
    make_site: Callable[..., Site], broker: str
) -> None:
    site = make_site(broker=broker)
    worker = site.worker()
    handle = site.start("called", str(site.directory))
    site.wait_for_notes("hand_out.began", 1)
    worker.kill()
    site.worker()
    site.wait_for_notes("hand_out.began", 2)
    site.release("hand_out")
    wait_until(lambda: "step" not in handle.describe().waiting, 60, site.story)

    (token,) = tokens(site)
    assert fail_callback(token, "the card has expired", app=site.app) is True
    wait_until(lambda: handle.state == "FAILURE", 60, site.story)
    error = handle.get(propagate=False)
    assert isinstance(error, CallbackFailedError)
    assert str(error) == "the card has expired"
    assert kinds(handle).count("StepCompleted") == 1
