"""The benchmarks write many runs past the library's verbs; what they write are runs all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.growth import _close, _fall_asleep
from durable_celery.store.protocol import RunStatus
from durable_celery.store.redis import RedisStore
from tests.servers import RedisServer


@pytest.mark.parametrize(
    ("fill", "status", "length"), [(_fall_asleep, RunStatus.RUNNING, 2), (_close, RunStatus.COMPLETED, 2)]
)
def test_runs_that_fill_a_store_are_runs(
    redis_server: RedisServer, fill: Callable[[Any, list[str]], None], status: RunStatus, length: int
) -> None:
    store = RedisStore.from_url(redis_server.start().url, namespace=f"growth-{status}")

    fill(store, ["a", "b", "c"])

    runs = store.runs(limit=10).runs
    assert [run.workflow_id for run in runs] == ["c", "b", "a"]
    assert {(run.status, run.length, run.owner) for run in runs} == {(status, length, None)}
    assert not store.sweep().messages
