"""The heart: how often it sweeps, and whose death sends messages again."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from durable_celery import identity, worker
from durable_celery.identity import process_name
from durable_celery.settings import Settings
from durable_celery.store.memory import MemoryStore
from durable_celery.store.protocol import Sweep
from durable_celery.worker import Heart

INTERVAL = Settings().sweep_interval


class Hastened(MemoryStore):
    """A store that counts how often messages were hastened."""

    def __init__(self) -> None:
        super().__init__()
        self.limits: list[tuple[int, int]] = []

    def hasten(self, oldest: int, newest: int = 0) -> None:
        self.limits.append((oldest, newest))
        super().hasten(oldest, newest)


def heart_of(store: Any, sweeps: Sequence[Sweep] = ()) -> Heart:
    answers = iter(sweeps)
    engine = SimpleNamespace(store=store, sweep=lambda: next(answers), unsent=[])
    return Heart(cast("Any", SimpleNamespace(engine=engine, store=store, settings=Settings())), concurrency=2)


def test_few_workers_look_when_the_next_thing_falls_due() -> None:
    sweeps = [Sweep(next_in=0.01, processes=64), Sweep(next_in=60, processes=64), Sweep(more=True, processes=64)]
    heart = heart_of(None, sweeps)

    assert [heart.sweep() for _ in sweeps] == [0.01, INTERVAL, 0.0]


@pytest.mark.parametrize("processes", [65, 640, 10_000])
def test_many_workers_together_look_no_oftener_than_few(processes: int) -> None:
    heart = heart_of(None, [Sweep(next_in=0.0001, processes=processes)] * 2000)
    waits = [heart.sweep() for _ in range(2000)]

    middle = min(INTERVAL * processes / 64, 5.0)
    assert sum(waits) / len(waits) == pytest.approx(middle, rel=0.05)
    assert middle * 0.5 <= min(waits) < max(waits) <= middle * 1.5


def test_what_is_due_already_is_settled_at_once_however_many_workers_there_are() -> None:
    assert heart_of(None, [Sweep(more=True, next_in=0.0, processes=9000)]).sweep() == 0.0


def test_the_death_of_a_worker_hastens_its_messages_and_that_of_a_pool_child_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host, _, place = process_name().split(":")
    main, child, other, its_child = (
        process_name(), f"{host}:{place.partition('.')[0]}:8.1", f"{host}:1:7.1", f"{host}:7:9.1",
    )  # fmt: skip
    gone: set[str] = set()
    for module in (identity, worker):
        monkeypatch.setattr(module, "is_gone", gone.__contains__)
    store = Hastened()
    store.renew([main, child, other, its_child])
    heart = heart_of(store)
    heart.renew()

    gone.update([child, its_child])
    heart.renew()
    heart.renew()
    assert store.limits == []

    gone.add(other)
    heart.renew()
    heart.renew()
    assert store.limits == [(8, 2)]
