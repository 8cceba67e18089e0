"""Links, chains, groups and chords around a durable task fire once, at its real end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import chain, chord, group

from tests.waiting import wait_until

WAIT = 30


def test_a_link_fires_once_at_the_end(shop: Any, key: str) -> None:
    shop.double.apply_async((2,), link=shop.on_end.s(key)).get(WAIT)

    wait_until(lambda: shop.noted(key) == ["4"], WAIT)


def test_an_error_link_fires_once_with_the_failure(shop: Any, key: str) -> None:
    started = shop.note_flow.apply_async((key, True), link=shop.on_end.s(key), link_error=shop.on_error.s(key))

    with pytest.raises(LookupError):
        started.get(WAIT)
    wait_until(lambda: shop.noted(key) == [f"LookupError('{key}')"], WAIT, lambda: str(shop.noted(key)))


def test_a_link_does_not_fire_again_when_the_final_message_comes_twice(shop: Any, key: str) -> None:
    started = shop.double.apply_async((2,), task_id=key, link=shop.on_end.s(key))
    started.get(WAIT)
    wait_until(lambda: started.describe().delivered, WAIT)

    binding = shop.double.binding
    record = started.describe()
    from durable_celery.engine.turn import run_message

    for _ in range(3):
        binding.dispatcher.publish([run_message(record)])
    # A plain task through the same queue: when it is done, the repeated messages have been looked at.
    shop.double.delay(1).get(WAIT)
    assert shop.noted(key) == ["4"]


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_durable_task_takes_any_place_in_a_chain(shop: Any, place: str) -> None:
    flow = {
        "first": chain(shop.double.s(1), shop.add.s(10), shop.add.s(100)),
        "middle": chain(shop.add.s(1, 1), shop.double.s(), shop.add.s(100)),
        "last": chain(shop.add.s(1, 1), shop.add.s(2), shop.double.s()),
    }
    result: Any = flow[place]()

    assert result.get(WAIT) == {"first": 112, "middle": 104, "last": 8}[place]


def test_a_chain_of_durable_tasks_only(shop: Any) -> None:
    assert (shop.double.s(1) | shop.double.s() | shop.double.s())().get(WAIT) == 8


@pytest.mark.parametrize("last", ["plain", "durable"])
def test_a_durable_task_that_fails_ends_its_chain(shop: Any, key: str, last: str) -> None:
    end = shop.tell.si(key) if last == "plain" else shop.note_flow.si(key)
    result: Any = chain(shop.raises.s("public"), end)()

    with pytest.raises(LookupError):
        result.get(WAIT)
    assert shop.noted(key) == []
    assert shop.noted(f"flow:{key}") == []


def test_a_plain_task_that_fails_ends_the_chain_before_the_durable_one(shop: Any, key: str) -> None:
    result: Any = chain(shop.boom.s(key), shop.note_flow.si(key))()

    with pytest.raises(LookupError, match=key):
        result.get(WAIT)
    assert result.state == "FAILURE"


def test_a_group_of_durable_tasks_gives_all_results(shop: Any) -> None:
    result = group(shop.double.s(number) for number in range(4))()

    assert result.get(timeout=WAIT) == [0, 2, 4, 6]
    assert result.join(timeout=WAIT) == [0, 2, 4, 6]
    assert result.successful()


def test_a_group_is_joined_through_the_result_backend(shop: Any) -> None:
    result = group(shop.double.s(1), shop.add.s(5, 5), shop.double.s(3))()

    assert result.join_native(timeout=WAIT) == [2, 10, 6]


def test_a_failure_in_a_group_is_raised(shop: Any) -> None:
    result = group(shop.double.s(1), shop.raises.s("public"))()

    with pytest.raises(LookupError):
        result.get(timeout=WAIT)


@pytest.mark.parametrize("body", ["plain", "durable"])
@pytest.mark.parametrize("header", ["plain", "durable", "mixed"])
def test_durable_tasks_are_header_and_body_of_chords(shop: Any, key: str, header: str, body: str) -> None:
    tasks = {
        "plain": [shop.add.s(0, 2), shop.add.s(1, 3)],
        "durable": [shop.double.s(1), shop.double.s(2)],
        "mixed": [shop.double.s(1), shop.add.s(1, 3)],
    }[header]
    result = chord(tasks)(shop.collect.s(key) if body == "plain" else shop.total.s())

    value = result.get(WAIT)
    assert (sorted(value) if body == "plain" else value) == ([2, 4] if body == "plain" else 6)
    assert len(shop.noted(key)) == (body == "plain")


def test_a_durable_header_task_that_fails_fails_the_chord(shop: Any, key: str) -> None:
    result = chord([shop.double.s(1), shop.raises.s("public")])(shop.collect.s(key))

    with pytest.raises(Exception, match="gone"):
        result.get(WAIT)
    assert shop.noted(key) == []


def test_a_stranger_builds_a_chain_around_a_durable_task(shop: Any, stranger: Callable[[str], str]) -> None:
    answer = stranger(
        "from celery import chain, signature\n"
        "flow = chain(*(signature(n, args=a, app=app) for n, a in "
        "[('shop.add', (1, 1)), ('shop.double', ()), ('shop.add', (100,))]), app=app)\n"
        "print(flow().get(timeout=30))"
    )

    assert answer == "104"
