"""The app of `tests.flow_worker`, in a worker with a fault of Celery's that a test asks for by an environment variable.

* ``unguarded``: without this library's guard of the Redis transport of Celery 5.7.0.
* ``deaf``: when the file ``deafen`` appears, the consumer loses sight of its connection: the worker lives, and takes no
  message until it connects again. So workers are found that a lost connection has left behind.
* ``clock``: its wall clock is some hours off, in all modules.
* ``stone-deaf``: the same on Redis, and no new connection helps. One message may still come.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from celery import bootsteps
from kombu.transport.redis import Channel

from tests.flow_worker import app

__all__ = ["app"]

FAULT = os.environ["DURABLE_TEST_FAULT"]


class Deafness(bootsteps.StartStopStep):
    """Makes the consumer deaf when the test says so."""

    def start(self, parent: Any) -> None:
        threading.Thread(target=_deafen_when_told, args=(parent,), daemon=True).start()


def _deafen_when_told(controller: Any) -> None:
    while not Path("deafen").exists():
        time.sleep(0.02)
    consumer = controller.consumer
    if FAULT == "stone-deaf":
        Channel._brpop_start = lambda *_, **__: None  # type: ignore[method-assign]
        Path("deafened").touch()
    elif consumer.hub is None:
        _forget_channels(consumer.connection.transport.cycle)
    else:
        consumer.hub.call_soon(_forget_sockets, consumer)


def _forget_channels(cycle: Any) -> None:
    cycle._channels.clear()
    for descriptor in list(cycle.fds):
        cycle.poller.unregister(descriptor)
    Path("deafened").touch()


def _forget_sockets(consumer: Any) -> None:
    hub, cycle = consumer.hub, getattr(consumer.connection.transport, "cycle", None)
    sockets = list(cycle.fds) if cycle else [consumer.connection.connection.sock.fileno()]
    for callback in [one for one in hub.on_tick if one.__module__.startswith("kombu.transport")]:
        hub.on_tick.discard(callback)
    for descriptor in sockets:
        hub.remove(descriptor)
    Path("deafened").touch()


def _shift_clock(hours: int) -> None:
    right = time.time

    def wrong() -> float:
        return right() + hours * 3600

    for module in list(sys.modules.values()):
        for name in ("time", "_time"):
            if vars(module).get(name) is right:
                setattr(module, name, wrong)


if FAULT == "clock":
    _shift_clock(int(os.environ["DURABLE_TEST_HOURS"]))
elif FAULT == "unguarded":
    from durable_celery import guards

    guards.guard_redis_transport = lambda: None
else:
    steps: Any = app.steps
    steps["worker"].add(Deafness)
