"""Named events on a real worker and a real store: many who wait, publishers that race, waiters that race with them."""

from __future__ import annotations

from typing import Any

from durable_celery import EventConflictError, publish_event
from durable_celery.events import SignalReceived
from tests.celery.test_talking import at_once
from tests.waiting import wait_until

WAIT = 30


def test_one_publication_lets_all_go_on_and_the_value_can_be_looked_back_at(shop: Any, key: str) -> None:
    handles = [workflow.delay(key) for workflow in (shop.awaits, shop.awaits_async) for _ in range(10)]
    # As another process would: by a workflow.
    wait_until(lambda: all(step.attempt for handle in handles for step in handle.describe().steps), WAIT)

    shop.publishes.delay(key, {"by": "card"}).get(WAIT)

    assert [handle.get(WAIT) for handle in handles] == [{"by": "card"}] * 20
    assert shop.awaits.delay(key).get(WAIT) == {"by": "card"}
    assert publish_event(key, {"by": "card"}, app=shop.app) is False


def test_of_publishers_that_race_one_value_stands(shop: Any, key: str) -> None:
    waiting = shop.awaits.delay(key)

    answers = at_once(8, lambda number: publish_event(key, number % 4, app=shop.app))

    stands = waiting.get(WAIT)
    assert answers.count(True) == 1
    assert answers.count(False) == 1
    assert [answer for answer in answers if isinstance(answer, bool)] == [
        answers[number] for number in range(8) if number % 4 == stands
    ]
    assert {type(answer) for answer in answers} == {bool, EventConflictError}
    history = shop.app.tasks["durable_celery.event"].AsyncResult(f"durable:event:{key}").history()
    published = [item for item in history if isinstance(item.event, SignalReceived) and item.event.name == "published"]
    assert len(published) == 1


def test_waiters_that_race_with_the_publication_all_hear_of_it(shop: Any, key: str) -> None:
    def act(number: int) -> Any:
        if number == 5:
            return publish_event(key, "now", app=shop.app)
        return shop.awaits.delay(key)

    answers = at_once(12, act)

    assert answers.pop(5) is True
    assert [handle.get(WAIT) for handle in answers] == ["now"] * 11
