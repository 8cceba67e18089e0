"""The workloads W1 to W5 and W7: pairs of a load on this library and the same on its rival, and their ratios."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from benchmarks import load
from benchmarks.report import Figure
from benchmarks.system import DURABLE, PLAIN, System, wait_for

__all__ = ["WORKLOADS", "Scale", "w7_memory"]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured."""

    pairs: int
    #: Factor on the sizes that may be cut without changing what is measured.
    size: float

    def of(self, full: int) -> int:
        """Return a size for this scale."""
        return max(10, round(full * self.size))


def w0_bystanders(system: System, scale: Scale) -> Iterator[Figure]:
    """Take tasks that no workflow calls, in a worker with workflows and in one without."""
    count = scale.of(2000)
    rates: dict[int, list[float]] = {PLAIN: [], DURABLE: []}
    costs: dict[int, list[float]] = {PLAIN: [], DURABLE: []}
    for round_ in range(scale.pairs):
        for side in (PLAIN, DURABLE) if round_ % 2 else (DURABLE, PLAIN):
            before = system.workers[side].cpu_seconds()
            rates[side].append(count / load.raw_tasks(system, count, side).done)
            costs[side].append((system.workers[side].cpu_seconds() - before) / count * 1e6)
    raw, beside, apart, together = rates[PLAIN], rates[DURABLE], costs[PLAIN], costs[DURABLE]
    yield Figure("W0 plain tasks/s, worker without workflows (F)", raw)
    yield Figure("W0 plain tasks/s, worker with workflows", beside)
    yield Figure("W0 with / without", _ratios(beside, raw), ">=", 0.9, 0.95)
    yield Figure("W0 us of CPU per plain task, worker without workflows", apart)
    yield Figure("W0 us of CPU per plain task, worker with workflows", together)
    yield Figure("W0 CPU with / without", _ratios(together, apart), "<=", 1.1, 1.05)


def w1_throughput(system: System, scale: Scale) -> Iterator[Figure]:
    """Take 200 runs of 10 steps, against tasks that do nothing and against chains."""
    count, steps = scale.of(200), 10
    raw, canvas, ours = [], [], []
    for _ in range(scale.pairs):
        raw.append(count * steps / load.raw_tasks(system, count * steps).done)
        ours.append(count * steps / load.runs(system, system.durable.sequence, count, steps)[0].done)
        canvas.append(count * steps / load.chains(system, count, steps).done)
    yield Figure("F: raw no-op tasks/s", raw)
    yield Figure("C: chain steps/s", canvas)
    yield Figure("W1 steps/s", ours)
    yield Figure("W1 steps/s / F", _ratios(ours, raw), ">=", 0.30, 0.55)
    yield Figure("W1 steps/s / C", _ratios(ours, canvas), ">=", 0.5, 0.9)


def w1_local(system: System, scale: Scale) -> Iterator[Figure]:
    """Take 200 runs of 10 local steps against tasks that do nothing."""
    count, steps = scale.of(200), 10
    raw, ours, alone = [], [], []
    for _ in range(scale.pairs):
        raw.append(count * steps / load.raw_tasks(system, count * steps).done)
        ours.append(count * steps / load.runs(system, system.durable.local, count, steps)[0].done)
        handles = [load.runs(system, system.durable.local, 1, steps)[1][0] for _ in range(20)]
        alone.append(median(_span(handle.history()[1:]) for handle in handles))
    yield Figure("W1 local steps/s", ours)
    yield Figure("W1 idle 10 local steps, first to last, p50 ms", alone)
    yield Figure("W1 local steps/s / F", _ratios(ours, raw), ">=", 1.0, 2.0)


def w1_long(system: System, scale: Scale) -> Iterator[Figure]:
    """Take 20 runs of 100 steps, remote and local ones, against tasks that do nothing: steps without many frames."""
    count, steps = scale.of(20), 100
    raw, remote, local = [], [], []
    for _ in range(scale.pairs):
        raw.append(count * steps / load.raw_tasks(system, count * steps).done)
        remote.append(count * steps / load.runs(system, system.durable.sequence, count, steps)[0].done)
        local.append(count * steps / load.runs(system, system.durable.local, count, steps)[0].done)
    yield Figure("W1 long runs, steps/s", remote)
    yield Figure("W1 long runs, steps/s / F", _ratios(remote, raw))
    yield Figure("W1 long runs, local steps/s", local)
    yield Figure("W1 long runs, local steps/s / F", _ratios(local, raw))


def w1_latency(system: System, scale: Scale) -> Iterator[Figure]:
    """Take one run of 10 steps at a time, on an idle system, as its caller sees it."""
    repeats = scale.of(40)
    canvas, ours, tails, inside = [], [], [], []
    for _ in range(scale.pairs):
        canvas.append(median(load.waits_for_chains(system, repeats, 10)))
        waits = load.waits_for_runs(system, repeats, 10)
        ours.append(median(waits))
        tails.append(_percentile(waits, 95))
        handles = [load.runs(system, system.durable.sequence, 1, 10)[1][0] for _ in range(10)]
        inside.append(median(_span(handle.history()) for handle in handles))
    yield Figure("C: chain of 10, idle, p50 ms", canvas)
    yield Figure("W1 idle 10 steps, p50 ms", ours)
    yield Figure("W1 idle 10 steps, first to last event, p50 ms", inside)
    yield Figure("W1 idle p50 / C", _ratios(ours, canvas), "<=", 1.5, 1.0)
    yield Figure("W1 idle p95 / p50", _ratios(tails, ours), "<=", 2.0, 1.4)


def w2_fan_out(system: System, scale: Scale) -> Iterator[Figure]:
    """Start 1,000 steps at once and gather them, against 1,000 tasks and against a chord."""
    count = scale.of(1000)
    raw, canvas, ours = [], [], []
    for _ in range(scale.pairs):
        raw.append(load.raw_tasks(system, count).done)
        canvas.append(load.chord_of(system, count))
        ours.append(load.runs(system, system.durable.fan, 1, count)[0].done)
    yield Figure(f"W2 {count} raw tasks, s", raw)
    yield Figure(f"W2 chord of {count}, s", canvas)
    yield Figure(f"W2 fan-out of {count}, s", ours)
    yield Figure("W2 fan-out / chord", _ratios(ours, canvas), "<=", 1.0, 0.6)
    yield Figure("W2 fan-out / raw tasks", _ratios(ours, raw), "<=", 2.0, 1.3)


def w3_length(system: System, scale: Scale) -> Iterator[Figure]:
    """Take one run of 100, 1,000 and 5,000 steps in sequence; then replay the longest from its history."""
    sizes = (100, 1000, 5000) if scale.size >= 1 else (100, 500, 1000)
    times: dict[int, list[float]] = {size: [] for size in sizes}
    handle: Any = None
    for _ in range(min(scale.pairs, 3)):
        for size in sizes:
            clock, (handle,) = load.runs(system, system.durable.sequence, 1, size)
            times[size].append(clock.done)
    for size in sizes:
        yield Figure(f"W3 {size} steps in sequence, ms/step", [1000 * took / size for took in times[size]])
    first, second, third = sizes
    yield Figure(f"W3 exponent {first}-{second}", _exponents(times, first, second), "<=", 1.3, 1.10)
    yield Figure(f"W3 exponent {second}-{third}", _exponents(times, second, third), "<=", 1.5, 1.15)
    yield from _replay(handle, 5000)


def _replay(handle: Any, events: int) -> Iterator[Figure]:
    from durable_celery.app import binding_of
    from durable_celery.workflow.execution import replay

    binding = binding_of(handle.app)
    name = binding.client.describe(handle.id).name
    reads, replays = [], []
    for _ in range(3):
        began = time.perf_counter()
        history = binding.store.history(handle.id, limit=events)
        reads.append((time.perf_counter() - began) * 1000)
        began = time.perf_counter()
        replay(binding.definition(name, 1), handle.id, history, binding.codec).evict()
        replays.append((time.perf_counter() - began) * 1000)
    yield Figure(f"W3 read {len(history)} events, ms", reads)
    yield Figure(f"W3 cold replay of {len(history)} events, ms", replays)


def w4_starts(system: System, scale: Scale) -> Iterator[Figure]:
    """Start 1,000 runs of one step from one client, against publishing 1,000 tasks and chains of one."""
    count = scale.of(1000)
    rates: dict[str, list[float]] = {key: [] for key in ("raw", "accepted", "many", "completed", "canvas")}
    for _ in range(scale.pairs):
        rates["raw"].append(count / load.raw_tasks(system, count).accepted)
        clock, _ = load.runs(system, system.durable.sequence, count, 1)
        rates["accepted"].append(count / clock.accepted)
        rates["many"].append(count / load.many_runs(system, system.durable.sequence, count, 1).accepted)
        rates["completed"].append(count / clock.done)
        rates["canvas"].append(count / load.chains(system, count, 1).done)
    yield Figure("W4 raw publishes/s", rates["raw"])
    yield Figure("W4 starts/s", rates["accepted"])
    yield Figure("W4 starts / raw publishes", _ratios(rates["accepted"], rates["raw"]), ">=", 0.3, 0.5)
    yield Figure("W4 starts by start_many / raw publishes", _ratios(rates["many"], rates["raw"]), ">=", 1.0, 3.0)
    yield Figure("W4 completed / canvas completed", _ratios(rates["completed"], rates["canvas"]), ">=", 0.4, 0.7)


def w5_sleepers(system: System, scale: Scale) -> Iterator[Figure]:
    """Let 1,000 runs sleep for 2 s, against countdowns; then 20 on an idle system."""
    count = scale.of(1000)
    walls, canvas, crowd = [], [], []
    for _ in range(scale.pairs):
        canvas.append(load.countdowns(system, count, 2))
        clock, handles = load.runs(system, system.durable.sleeper, count, 2)
        walls.append(clock.done)
        crowd.append([_lateness(handle.history()) for handle in handles])
    yield Figure(f"W5 {count} countdowns of 2 s, s", canvas)
    yield Figure(f"W5 {count} sleepers of 2 s, s", walls)
    yield Figure("W5 sleepers / countdowns, wall", _ratios(walls, canvas), "<=", 3.0, 2.0)
    yield Figure(f"W5 {count} sleepers late, p50 ms", [median(times) for times in crowd])
    yield Figure(f"W5 {count} sleepers late, p99 ms", [_percentile(times, 99) for times in crowd])
    few = [_few_sleepers(system) for _ in range(scale.pairs)]
    yield Figure("W5 20 sleepers late, p50 ms", [median(times) for times in few], "<=", 250, 30)
    yield Figure("W5 20 sleepers late, p99 ms", [_percentile(times, 99) for times in few], "<=", 500, 100)


def _few_sleepers(system: System) -> list[int]:
    handles = []
    for _ in range(20):
        handles.append(system.durable.sleeper.delay(2))
        time.sleep(0.037)  # so that they do not all fall due in one sweep
    system.settle(DURABLE)
    return [_lateness(handle.history()) for handle in handles]


def w7_memory(system: System, scale: Scale) -> Iterator[Figure]:
    """Weigh finished runs of 10 steps, and sleeping ones, by what the log's server says."""
    count = scale.of(500)
    if system.transactions() is not None:
        rates = [_idle_rate(system) for _ in range(scale.pairs)]
        yield Figure("W7 store scripts or transactions/s of an idle worker", rates)
    if system.store == "redis":
        canvas = [_weigh(system, count, lambda: load.chains(system, count, 10, keep=True)) for _ in range(scale.pairs)]
        yield Figure("W7 bytes per chain of 10 (results)", canvas)
        system.forget_results()
    closed = [
        _weigh(system, count, lambda: load.runs(system, system.durable.sequence, count, 10)) for _ in range(scale.pairs)
    ]
    yield Figure("W7 bytes per finished run of 10 steps", closed)
    if system.store == "redis":
        yield Figure("W7 finished run / chain", _ratios(closed, canvas), "<=", 1.0, 0.6)
    sleeping = [_weigh(system, count, lambda: _sleep_long(system, count)) for _ in range(scale.pairs)]
    yield Figure("W7 bytes per sleeping run", sleeping, "<=", 1300, 800)


def _idle_rate(system: System) -> float:
    """Count what the one worker with workflows asks of the log while nothing happens."""
    system.settle(DURABLE)
    began, before = time.perf_counter(), system.transactions() or 0
    time.sleep(4)
    return ((system.transactions() or 0) - before) / (time.perf_counter() - began)


def _sleep_long(system: System, count: int) -> None:
    """Start runs that sleep, and wait until all of them do."""
    handles = [system.durable.sleeper.delay(3600) for _ in range(count)]
    wait_for(lambda: all(handle.describe().waiting for handle in handles), 120, "all runs to sleep")
    redis = system.redis[DURABLE]
    wait_for(lambda: not redis.llen("celery") and not redis.hlen("unacked"), 60, "an empty queue")


def _weigh(system: System, count: int, work: Callable[[], object]) -> float:
    before = system.weight()
    work()
    return (system.weight() - before) / count


def _ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Return the ratio within each round: rounds differ more than sides."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def _exponents(times: dict[int, list[float]], small: int, large: int) -> list[float]:
    """Return how time grows with length: 1 is linear."""
    return [math.log(b / a) / math.log(large / small) for a, b in zip(times[small], times[large], strict=True)]


def _percentile(values: list[Any], percent: int) -> float:
    return float(quantiles(values, n=100, method="inclusive")[percent - 1])


def _span(history: list[Any]) -> float:
    return float(history[-1].at - history[0].at)


def _lateness(history: list[Any]) -> int:
    """Return the milliseconds of the store's clock between the time asked for and the code that went on."""
    due = next(item.event.due_at for item in history if hasattr(item.event, "due_at"))
    return int(history[-1].at - due)


#: All but W6, which has a file of its own, and W7, which leaves sleepers behind and so comes last.
WORKLOADS: dict[str, Callable[[System, Scale], Iterator[Figure]]] = {
    "w0": w0_bystanders,
    "w1": w1_throughput,
    "w1-local": w1_local,
    "w1-long": w1_long,
    "w1-latency": w1_latency,
    "w2": w2_fan_out,
    "w3": w3_length,
    "w4": w4_starts,
    "w5": w5_sleepers,
}
