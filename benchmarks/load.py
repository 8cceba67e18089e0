"""Loads: each puts one kind of work on one side, waits for its end and returns seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from celery import chain, chord

from benchmarks.system import DURABLE, PLAIN, System

__all__ = [
    "Clock",
    "chains",
    "chord_of",
    "countdowns",
    "many_runs",
    "raw_tasks",
    "runs",
    "waits_for_chains",
    "waits_for_runs",
]


class Clock:
    """Seconds until the load was accepted, and until it was done."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.accepted = self.done = 0.0

    def accept(self) -> None:
        """Note that the client has handed in everything."""
        self.accepted = time.perf_counter() - self._began

    def end(self) -> Clock:
        """Note that everything is done."""
        self.done = time.perf_counter() - self._began
        return self


def raw_tasks(system: System, count: int, database: int = PLAIN) -> Clock:
    """Send tasks that do nothing and keep no result, to the plain worker or to the one with workflows."""
    tasks = system.plain if database == PLAIN else system.durable
    clock = Clock()
    for _ in range(count):
        tasks.noop.apply_async()
    clock.accept()
    system.settle(database)
    return clock.end()


def chains(system: System, count: int, steps: int, *, keep: bool = False) -> Clock:
    """Run chains side by side; each task's result is stored, and dropped in the end unless told to ``keep`` it."""
    clock = Clock()
    results = [_chain(system, steps).apply_async() for _ in range(count)]
    clock.accept()
    system.settle(PLAIN)
    clock.end()
    assert all(result.successful() for result in results)
    if not keep:
        system.forget_results()
    return clock


def runs(system: System, workflow: Any, count: int, *args: Any) -> tuple[Clock, Sequence[Any]]:
    """Run workflows side by side; return their handles too."""
    return _runs(system, lambda: [workflow.apply_async(args) for _ in range(count)])


def many_runs(system: System, workflow: Any, count: int, *args: Any) -> Clock:
    """Run workflows side by side that are started at once."""
    return _runs(system, lambda: workflow.start_many([args] * count))[0]


def _runs(system: System, start: Callable[[], Sequence[Any]]) -> tuple[Clock, Sequence[Any]]:
    clock = Clock()
    handles = start()
    clock.accept()
    system.settle(DURABLE)
    clock.end()
    assert all(handle.successful() for handle in handles)
    return clock, handles


def chord_of(system: System, count: int) -> float:
    """Run a chord and wait for its body."""
    tasks = system.plain
    began = time.perf_counter()
    body = chord([tasks.echo.si(number) for number in range(count)])(tasks.count.s())
    assert body.get(timeout=300) == count
    took = time.perf_counter() - began
    system.settle(PLAIN)
    system.forget_results()
    return took


def countdowns(system: System, count: int, seconds: float) -> float:
    """Let a worker hold tasks in its memory until their countdown ends."""
    began = time.perf_counter()
    for _ in range(count):
        system.plain.noop.apply_async(countdown=seconds)
    system.settle(PLAIN)
    return time.perf_counter() - began


def waits_for_chains(system: System, repeats: int, steps: int) -> list[float]:
    """Run one chain after the other on an idle system; return the milliseconds that the caller waited."""
    return _waits(repeats, lambda: _chain(system, steps).apply_async().get(timeout=60))


def waits_for_runs(system: System, repeats: int, steps: int) -> list[float]:
    """Run one workflow after the other on an idle system; return the milliseconds that the caller waited."""
    return _waits(repeats, lambda: system.durable.sequence.delay(steps).get(timeout=60))


def _waits(repeats: int, call: Callable[[], Any]) -> list[float]:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append((time.perf_counter() - began) * 1000)
    return times


def _chain(system: System, steps: int) -> Any:
    return chain(system.plain.echo.si(number) for number in range(steps))
