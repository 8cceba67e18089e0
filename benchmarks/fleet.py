"""What a fleet of workers would do: ``python -m benchmarks.fleet``.

What one step costs is measured on one small system. A simulation then lets it pass through a broker, the nodes of the
store and the processes of many workers, each of which serves one thing after the other; user code and workers have as
many cores as they want. What the hearts of a fleet cost is measured on a server that knows as many processes; how
late their sweeps are is simulated with the heart's own code.

The simulation is of a closed network of queues with fixed service times. It tells where a server is full, and nothing
of networks, of machines that are shared, or of user code.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from statistics import median, quantiles
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from benchmarks import load
from benchmarks.report import RESULTS, number, settings
from benchmarks.system import DURABLE, System, running_system
from durable_celery.settings import Settings
from durable_celery.store.protocol import Sweep
from durable_celery.worker import Heart

#: Processes of each worker, and workers of each host.
_PROCESSES, _WORKERS_OF_A_HOST = 8, 10
#: What a step's own code takes, in seconds.
_WORK = 0.1
#: Steps in flight for each process: enough that none waits for work.
_RUNS = 1.5
#: Simulated steps of each process, of which the first half is left out.
_STEPS = 12


class Costs(NamedTuple):
    """Seconds that one step in sequence takes."""

    #: Of the store's server, all scripts together.
    store: float
    #: Of the broker's server, all commands together.
    broker: float
    #: Of the worker, its children included.
    worker: float


def measure_step(system: System) -> Costs:
    """Measure runs of 10 steps: the time of the server, divided as its commands took it, and of the worker."""
    load.runs(system, system.durable.sequence, 50, 10)
    before = _spent(system)
    load.runs(system, system.durable.sequence, 200, 10)
    scripts, others, server, worker = (after - earlier for earlier, after in zip(before, _spent(system), strict=True))
    share = scripts / (scripts + others)
    return Costs(server * share / 2000, server * (1 - share) / 2000, worker / 2000)


def _spent(system: System) -> tuple[float, float, float, float]:
    client = system.redis[DURABLE]
    stats: Any = client.info("commandstats")
    cpu: Any = client.info("cpu")
    times = {name: value["usec"] for name, value in stats.items() if name not in {"cmdstat_info", "cmdstat_brpop"}}
    scripts = times.get("cmdstat_evalsha", 0)
    return (
        scripts,
        sum(times.values()) - scripts,
        float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"]),
        system.workers[DURABLE].cpu_seconds(),
    )


class Server:
    """Serves one thing after the other."""

    def __init__(self) -> None:
        self.free_at = self.busy = 0.0

    def serve(self, now: float, seconds: float) -> float:
        """Return when what is asked now is done."""
        self.free_at = max(now, self.free_at) + seconds
        self.busy += seconds
        return self.free_at


def simulate(costs: Costs, *, workers: int, nodes: int, ahead: bool = False) -> dict[str, float]:
    """Let runs of steps in sequence go through a fleet; return what came of it, in steps per second and seconds."""
    processes = workers * _PROCESSES
    broker, stores = Server(), [Server() for _ in range(nodes)]
    order = itertools.count()
    # (when, tie, run, part): part 0 is a message that waits, then what follows it in a process.
    events = [(random.random() * _WORK, next(order), run, 0) for run in range(int(processes * _RUNS))]
    heapq.heapify(events)
    waiting: deque[int] = deque()
    free, ended, began_at, took = processes, 0, {}, []
    start, now = 0.0, 0.0
    total = processes * _STEPS
    while ended < total:
        now, _, run, part = heapq.heappop(events)
        store = stores[run % nodes]
        if part == 0:
            waiting.append(run)
        elif part == 1:
            heapq.heappush(events, (store.serve(now, costs.store / 3) + _WORK + costs.worker, next(order), run, 2))
        elif part == 2:
            # Finish, and the commit that schedules the next step.
            heapq.heappush(events, (store.serve(now, costs.store * 2 / 3), next(order), run, 3))
        else:
            free, ended = free + 1, ended + 1
            took.append(now - began_at[run] - _WORK)
            if ended == total // 2:
                start = now
            heapq.heappush(events, (now if ahead else broker.serve(now, costs.broker / 2), next(order), run, 0))
        while free and waiting:
            free -= 1
            run = waiting.popleft()
            began_at[run] = now
            heapq.heappush(events, (now if ahead else broker.serve(now, costs.broker / 2), next(order), run, 1))
    late = took[total // 2 :]
    return {
        "steps/s": (total - total // 2) / (now - start),
        "overhead p50 ms": median(late) * 1000,
        "overhead p99 ms": quantiles(late, n=100)[98] * 1000,
        "broker busy": broker.busy / now,
        "store busy": max(store.busy for store in stores) / now,
    }


def hearts(system: System, workers: int) -> dict[str, float]:
    """Measure what the hearts of a fleet ask of a server, and simulate how late what falls due is seen."""
    store, client = system.log, system.redis[DURABLE]
    fleet = list(_fleet(workers))
    for names in fleet:
        store.renew(names)
    before = _script_time(client)
    sample = fleet[: min(workers, 200)]
    for names in sample:
        store.renew(names)
    renewed = _script_time(client)
    for _ in range(200):
        known = store.sweep().processes
    swept = _script_time(client)
    renew_us, sweep_us = (renewed - before) / len(sample), (swept - renewed) / 200
    store.renew([], [name for names in fleet for name in names])
    while store.sweep().more:
        pass
    looks, late = _look(workers, known)
    return {
        "renewals/s": workers,
        "sweeps/s": looks,
        "us of a renewal": renew_us,
        "us of a sweep": sweep_us,
        "share of the server": (workers * renew_us + looks * sweep_us) / 1e6,
        "late p50 ms": median(late) * 1000,
        "late p99 ms": quantiles(late, n=100)[98] * 1000,
    }


def _fleet(workers: int) -> Iterator[list[str]]:
    """Yield the names of each worker's processes, pool children included."""
    for place in range(workers):
        host, main = f"host{place // _WORKERS_OF_A_HOST}", 1000 + place
        yield [f"{host}:1:{main}.1", *(f"{host}:{main}:{main * 100 + child}.1" for child in range(_PROCESSES))]


def _script_time(client: Any) -> int:
    return int(client.info("commandstats")["cmdstat_evalsha"]["usec"])


def _look(workers: int, known: int, seconds: float = 60.0) -> tuple[float, list[float]]:
    """Return how often all hearts together look at the agenda, and how late they see what falls due at any time."""
    # Hearts that began together drift apart in the first minute.
    due = sorted(60 + random.random() * seconds for _ in range(2000))
    heart = Heart(cast("Any", SimpleNamespace(engine=None, store=None, settings=Settings())))
    agenda = list(due)
    now = 0.0

    def sweep() -> Sweep:
        while agenda and agenda[0] <= now:
            late.append(now - agenda.pop(0))
        return Sweep(next_in=agenda[0] - now if agenda else None, processes=known)

    heart.engine = cast("Any", SimpleNamespace(sweep=sweep, unsent=[]))
    late: list[float] = []
    looks = 0
    wakes = [(random.random() * heart.interval, one) for one in range(workers)]
    heapq.heapify(wakes)
    while agenda:
        now, one = heapq.heappop(wakes)
        looks += 1
        heapq.heappush(wakes, (now + heart.sweep(), one))
    return looks / now, late


def main() -> None:
    """Measure, simulate, print tables, keep the figures."""
    with running_system() as system:
        costs = measure_step(system)
        beats = {workers: hearts(system, workers) for workers in (1, 10, 100, 1000)}
    print(f"a step: {costs.store * 1e6:.0f} us of the store, {costs.broker * 1e6:.0f} us of the broker,", end=" ")
    print(f"{costs.worker * 1e3:.1f} ms of its worker")
    _table("hearts", beats)
    sizes = {(workers, nodes): simulate(costs, workers=workers, nodes=nodes) for workers, nodes in _SIZES}
    _table("fleet: workers, nodes", sizes)
    alone = costs._replace(store=costs.store * 2 / 3, broker=0.0)
    ahead = {(workers, nodes): simulate(alone, workers=workers, nodes=nodes, ahead=True) for workers, nodes in _SIZES}
    _table("fleet with run-ahead: workers, nodes", ahead)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"fleet-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    form = {
        **settings(),
        "costs": costs._asdict(),
        "hearts": beats,
        "fleet": {str(size): found for size, found in sizes.items()},
        "ahead": {str(size): found for size, found in ahead.items()},
    }
    path.write_text(json.dumps(form, indent=1) + "\n")
    print(f"figures in {path.name}")


_SIZES = ((1, 1), (10, 1), (100, 1), (100, 3), (1000, 3), (1000, 12))


def _table(title: str, rows: dict[Any, dict[str, float]]) -> None:
    names = list(next(iter(rows.values())))
    print(f"\n| {title} | {' | '.join(names)} |\n| --- |{' ---: |' * len(names)}")
    for size, found in rows.items():
        print(f"| {size} | {' | '.join(number(found[name]) for name in names)} |")


if __name__ == "__main__":
    main()
