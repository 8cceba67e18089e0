"""The rival: a Celery app that does not know durable_celery."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

__all__ = ["SETTINGS", "app", "count", "echo", "noop"]

#: Where the servers are; set by :mod:`benchmarks.system` before workers and this process import the apps.
URL = os.environ.get("BENCH_REDIS", "redis://127.0.0.1:6379")

#: Both apps have them. Messages are acknowledged late on both sides, because a durable task needs that.
SETTINGS = {
    "task_acks_late": True,
    "worker_hijack_root_logger": False,
    "broker_connection_retry_on_startup": True,
    "result_expires": 3600,
}

app = Celery("benchmarks.plain", broker=f"{URL}/0", backend=f"{URL}/2", set_as_current=False)
app.conf.update(SETTINGS)


@app.task(ignore_result=True)
def noop(*_: Any) -> None:
    """Do nothing, keep no result."""


@app.task
def echo(value: Any = None) -> Any:
    """Give back what was given; the result is stored, as chain and chord need it."""
    return value


@app.task
def count(values: list[Any]) -> int:
    """Be the body of a chord."""
    return len(values)
