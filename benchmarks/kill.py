"""W6: the worker is killed with SIGKILL in the middle of W1 and started again at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from benchmarks import load
from benchmarks.report import Figure
from benchmarks.system import DURABLE, System, wait_for
from benchmarks.workloads import Scale

__all__ = ["w6_kill"]


def w6_kill(system: System, scale: Scale) -> Iterator[Figure]:
    """Kill with 200 runs in flight, at about 40 % of the work; default settings, a new worker at once."""
    count, steps = scale.of(200), 10
    seconds, over, again, lost = [], [], [], []
    for _ in range(scale.pairs):
        whole = load.runs(system, system.durable.sequence, count, steps)[0].done
        took, handles = _one_kill(system, count, steps, whole)
        seconds.append(took)
        over.append(took - 0.6 * whole)
        lost.append(float(sum(not handle.successful() for handle in handles)))
        again.append(float(sum(_repeats(handle.history()) for handle in handles)))
    yield Figure("W6 runs that did not complete", lost, "<=", 0, 0)
    yield Figure("W6 s from restart to the end of all runs", seconds)
    yield Figure("W6 the same without the remaining work, s", over, "<=", 30, 10)
    # Slots and prefetched messages: 2 + 2 x 4.
    yield Figure("W6 attempts of steps after the first", again, "<=", 10, 2)


def _one_kill(system: System, count: int, steps: int, whole: float) -> tuple[float, list[Any]]:
    handles = [system.durable.sequence.delay(steps) for _ in range(count)]
    # Starting takes a part of the time; the log tells how far the work is.
    wanted = 0.4 * count * 2 * steps
    wait_for(lambda: _events(system, handles) >= wanted, 60 + 2 * whole, "40 % of the work")
    system.workers[DURABLE].kill()
    began = time.perf_counter()
    system.workers[DURABLE].start(wait=False)
    wait_for(lambda: all(handle.ready() for handle in handles), 240, "all runs to end")
    took = time.perf_counter() - began
    # What the dead worker had taken from the queue stays there for the broker's visibility timeout, an hour.
    system.redis[DURABLE].delete("unacked", "unacked_index")
    system.settle(DURABLE)
    return took, handles


def _events(system: System, handles: list[Any]) -> int:
    runs = [system.log.get(handle.id) for handle in handles]
    return sum(run.length for run in runs if run is not None)


def _repeats(history: list[Any]) -> int:
    return sum(getattr(item.event, "attempt", 1) - 1 for item in history)
