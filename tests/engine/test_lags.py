"""Which messages most likely wait, and which are lost."""

from __future__ import annotations

import pytest

from durable_celery.lags import Lags
from durable_celery.store.protocol import Timing


def lags_of(lag: float | None) -> Lags:
    lags = Lags(Timing(resend_after=10, resend_limit=300))
    if lag is not None:
        lags.note("q", lag)
    return lags


@pytest.mark.parametrize(
    ("lag", "sends", "explained"),
    [
        (None, 1, False),
        (0.01, 1, False),
        (5, 1, False),
        (7, 1, True),
        (7, 2, False),
        (21, 2, True),
        (60, 3, True),
        (60, 4, False),
        (-40, 1, False),
        # Nobody waits for more than resend_limit without being sent again, whatever is said of the queue.
        (1e9, 4, True),
        (1e9, 5, False),
        (1e9, 10_000, False),
    ],
)
def test_a_message_waits_still_if_it_has_not_waited_much_longer_than_those_that_arrive(
    lag: float | None, sends: int, explained: bool
) -> None:
    assert lags_of(lag).explains("q", sends) is explained


def test_each_queue_has_its_own() -> None:
    assert not lags_of(100).explains("other", 1)


def test_what_arrived_long_ago_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lags = lags_of(100)
    assert lags.explains("q", 1)
    monkeypatch.setattr("durable_celery.lags._FRESH", 0.0)
    assert not lags.explains("q", 1)
