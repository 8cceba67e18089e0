"""Runs of production, saved with `celery -A shop.worker durable export`, replay against today's code."""

from durable_celery.testing.history_fixture import HistoryCase


def test_saved_histories_replay(durable_histories: HistoryCase) -> None:
    durable_histories.replay()
