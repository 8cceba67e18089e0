"""How costs grow: ``python -m benchmarks.growth [--quick] [--rounds 2] [length width sleepers closed workers ...]``.

Each kind of growth is measured on systems of its own. An exponent is the slope of the medians on logarithmic scales: 0
does not grow, 1 grows as the size does.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from statistics import linear_regression, median
from typing import Any, NamedTuple

from benchmarks import load
from benchmarks.report import RESULTS, number, settings
from benchmarks.system import CONCURRENCY, System, running_system
from durable_celery.events import RunCompleted, TimerStarted
from durable_celery.store.protocol import Lease, NewRun
from durable_celery.store.redis_replies import commit_words

#: Runs that are written in one round trip.
_BATCH = 500
#: Steps of a run whose latency is taken, and how many such runs.
_STEPS, _REPEATS = 10, 20
#: Seconds that a step takes where the number of workers is what is measured, and such steps of a run.
_PAUSE, _PACED = 0.1, 10


class Point(NamedTuple):
    """One measurement: what, at which size, and how much."""

    curve: str
    size: int
    value: float


class Plan(NamedTuple):
    """What is measured: sizes, and rounds at each."""

    sizes: tuple[int, ...]
    rounds: int


def length(plan: Plan) -> Iterator[Point]:
    """Take one run of many steps in sequence. They run ahead, so that messages do not hide what grows."""
    os.environ["BENCH_RUN_AHEAD"] = "0.1"
    yield from _one_run("length: s for a run of n steps", plan, "sequence")


def width(plan: Plan) -> Iterator[Point]:
    """Start many steps at once and gather them."""
    yield from _one_run("width: s for a fan-out of n", plan, "fan")


def _one_run(curve: str, plan: Plan, workflow: str) -> Iterator[Point]:
    with running_system() as system:
        for _ in range(plan.rounds):
            for size in plan.sizes:
                clock, _ = load.runs(system, getattr(system.durable, workflow), 1, size)
                yield Point(curve, size, clock.done)


def sleepers(plan: Plan) -> Iterator[Point]:
    """Fill the store with runs that sleep for a day."""
    yield from _crowd("sleepers", plan, _fall_asleep)


def closed(plan: Plan) -> Iterator[Point]:
    """Fill the store with runs that have ended and are kept for a week."""
    yield from _crowd("closed", plan, _close)


def workers(plan: Plan) -> Iterator[Point]:
    """Share steps that take 0.1 s among workers with two processes each; broker and log on one Redis."""
    yield from _shared("workers: steps/s of n workers", plan, "redis")


def cluster_workers(plan: Plan) -> Iterator[Point]:
    """Do the same with the log on three nodes of a cluster, and the broker on a server of its own."""
    yield from _shared("cluster_workers: steps/s of n workers, log on 3 nodes", plan, "cluster")


def cluster(plan: Plan) -> Iterator[Point]:
    """Divide the log among the nodes of a cluster; the broker is a server of its own."""
    (size,) = plan.sizes
    with running_system("cluster", nodes=size) as system:
        for _ in range(plan.rounds):
            before = _seconds_of_nodes(system)
            steps = 100 * _STEPS
            clock, _ = load.runs(system, system.durable.sequence, 100, _STEPS)
            spent = [after - earlier for earlier, after in zip(before, _seconds_of_nodes(system), strict=True)]
            yield Point("cluster: us of CPU of the busiest of n nodes per step", size, max(spent) / steps * 1e6)
            yield Point("cluster: steps/s with n nodes", size, steps / clock.done)


class Kind(NamedTuple):
    """One kind of growth."""

    measure: Callable[[Plan], Iterator[Point]]
    full: tuple[int, ...]
    quick: tuple[int, ...]
    #: Whether each size has a system of its own; else they are measured on one, from the smallest on.
    is_apart: bool = False

    @property
    def name(self) -> str:
        """As it is called on the command line."""
        return self.measure.__name__


KINDS = (
    Kind(length, (100, 1_000, 10_000, 50_000), (100, 1_000)),
    Kind(width, (10, 100, 1_000, 10_000), (10, 100)),
    Kind(sleepers, (1, 1_000, 10_000, 100_000), (1, 1_000)),
    Kind(closed, (1, 10_000, 100_000, 1_000_000), (1, 10_000)),
    Kind(workers, (1, 2, 4, 8), (1, 2), is_apart=True),
    Kind(cluster_workers, (1, 2, 4, 8), (1, 2), is_apart=True),
    Kind(cluster, (1, 2, 3), (1, 3), is_apart=True),
)


def _crowd(kind: str, plan: Plan, fill: Callable[[Any, list[str]], None]) -> Iterator[Point]:
    """Measure what others notice of many runs in the store."""
    with running_system() as system:
        load.waits_for_runs(system, _REPEATS, _STEPS)
        empty, there = system.weight(), 0
        for size in plan.sizes:
            while there < size:
                batch = [f"{kind}-{n}" for n in range(there, min(size, there + _BATCH))]
                fill(system.log, batch)
                there += len(batch)
            for _ in range(plan.rounds):
                waits = load.waits_for_runs(system, _REPEATS, _STEPS)
                yield Point(f"{kind}: ms for a run of 10 steps beside n of them", size, median(waits))
                yield Point(f"{kind}: us of a sweep that finds nothing", size, _time(system.log.sweep) * 1e6)
                yield Point(f"{kind}: us for a page of 50 runs", size, _time(lambda: system.log.runs(limit=50)) * 1e6)
            if size > 1:
                yield Point(f"{kind}: bytes of each", size, (system.weight() - empty) / size)


def _fall_asleep(store: Any, names: list[str]) -> None:
    _write(store, names, [TimerStarted(number=1, cause=1, due_at=int(time.time() + 86_400) * 1000)])


def _close(store: Any, names: list[str]) -> None:
    _write(store, names, [RunCompleted(number=1, cause=1, payload="10")], hold=True)
    store._server.scripts("deliver", [(0, (name, f"bench#{name}")) for name in names])  # noqa: SLF001


def _write(store: Any, names: list[str], outputs: Sequence[Any], *, hold: bool = False) -> None:
    """Start runs and commit the same outputs to each, many in one round trip."""
    server = store._server  # noqa: SLF001 - no user writes a million runs
    store.renew(["bench"])
    store.start_all(
        [
            NewRun(
                workflow_id=name, name="benchmarks.durable.sleeper", payload="[[10],{}]", digest="0" * 16, envelope="{}"
            )
            for name in names
        ]
    )
    server.scripts("take", [(0, (name, f"bench#{name}", 0)) for name in names])
    leases = [Lease(workflow_id=name, token=1, owner=f"bench#{name}") for name in names]
    told = [(lease.workflow_id, *commit_words(lease, outputs, read=1, waiting="", hold=hold)) for lease in leases]
    server.scripts("commit", [(0, words) for words in told])


def _shared(curve: str, plan: Plan, store: str) -> Iterator[Point]:
    (size,) = plan.sizes
    with running_system(store) as system:
        system.more_workers(size - 1)
        count = 5 * size * CONCURRENCY
        for _ in range(plan.rounds):
            clock, _ = load.runs(system, system.durable.paced, count, _PACED, _PAUSE)
            yield Point(curve, size, count * _PACED / clock.done)


def _seconds_of_nodes(system: System) -> list[float]:
    """Return the seconds of CPU that each node of the cluster has used."""
    found = []
    for node in system.cluster.nodes:
        with node.client() as client:
            used: Any = client.info("cpu")
            found.append(float(used["used_cpu_user"]) + float(used["used_cpu_sys"]))
    return found


def _time(call: Callable[[], object], times: int = 50) -> float:
    """Return the median of the seconds that a call takes."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return median(found)


def exponent(points: Sequence[tuple[int, float]]) -> float:
    """Return the slope of a curve on logarithmic scales, by least squares."""
    slope, _ = linear_regression([math.log(size) for size, _ in points], [math.log(value) for _, value in points])
    return slope


def _measure(name: str, plan: Plan) -> list[Point]:
    kind = next(kind for kind in KINDS if kind.name == name)
    return list(kind.measure(plan))


def _measure_apart(kind: Kind, plan: Plan) -> Iterator[Point]:
    """Measure in processes of its own: the apps read where the servers are when they are imported."""
    plans = [plan._replace(sizes=(size,)) for size in plan.sizes] if kind.is_apart else [plan]
    for one in plans:
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as fresh:
            yield from fresh.submit(_measure, kind.name, one).result()


def main() -> None:
    """Measure, print a table, keep the points."""
    names = [kind.name for kind in KINDS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("kinds", nargs="*", help=f"any of {', '.join(names)}; all when left out")
    parser.add_argument("--rounds", type=int, default=2, help="measurements at each size (default 2)")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    options = parser.parse_args()
    if unknown := set(options.kinds) - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    every: dict[str, dict[int, list[float]]] = {}
    for kind in [kind for kind in KINDS if kind.name in (options.kinds or names)]:
        curves: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for point in _measure_apart(kind, Plan(kind.quick if options.quick else kind.full, options.rounds)):
            curves[point.curve][point.size].append(point.value)
        for curve, points in curves.items():
            print(_row(curve, points), flush=True)
        every |= curves
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"growth-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps({**settings(), "curves": every}, indent=1) + "\n")
    print(f"points in {path.name}")


def _row(name: str, points: dict[int, list[float]]) -> str:
    middles = [(size, median(values)) for size, values in sorted(points.items())]
    shown = ", ".join(f"{size:,}: {number(value)}" for size, value in middles)
    slope = f"{exponent(middles):.2f}" if len(middles) > 1 else ""
    return f"| {name} | {shown} | {slope} |"


if __name__ == "__main__":
    main()
