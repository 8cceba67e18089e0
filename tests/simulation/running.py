"""Many histories on all cores: pieces of work for processes, and what they found."""

from __future__ import annotations

import gc
import logging
import math
import signal
import sys
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field

from tests.simulation.chaos import Chaos, ViolationError
from tests.simulation.stores import PLACES

__all__ = ["Result", "prepare", "say", "simulate"]

#: Histories of one piece of work, and seconds between two lines of progress.
BLOCK = 500
#: After so many of them a process gives way to a new one: what a killed worker of a history had in hand is never freed,
#: because nobody looks into its suspended greenlets, and it takes longer and longer to look around it.
BLOCKS = 20
PROGRESS = 15.0


@dataclass(kw_only=True)
class Result:
    """What a piece of work found."""

    tally: Counter[str] = field(default_factory=Counter)
    #: The seeds that failed, and why.
    failures: dict[int, str] = field(default_factory=dict)
    #: CPU time, seconds.
    seconds: float = 0.0

    def add(self, other: Result) -> None:
        self.tally += other.tally
        self.failures |= other.failures
        self.seconds += other.seconds


def prepare() -> None:
    """Set this process up for many histories: what is logged is for operators, and cycles are collected in bulk.

    Ctrl-C is for the process that counts: it ends with what it has by then.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def work(seeds: range, store: str) -> Result:
    """Live through some histories, in a process of their own."""
    result, begun = Result(), time.process_time()
    with PLACES[store]() as place:
        for seed in seeds:
            chaos = Chaos(seed, place=place)
            try:
                chaos.live()
            except ViolationError as failure:
                result.failures[seed] = str(failure)
            result.tally.update(chaos.tally)
            result.tally["histories"] += 1
    result.seconds = time.process_time() - begun
    return result


def simulate(first: int, histories: int, jobs: int, store: str, *, limit: float = math.inf) -> Result:
    """Live through all histories, on some cores, until one fails or Ctrl-C; begin no more after ``limit`` seconds."""
    result, begun, shown = Result(), time.monotonic(), time.monotonic()
    seeds = range(first, first + histories)
    blocks = (seeds[place : place + BLOCK] for place in range(0, histories, BLOCK))
    with ProcessPoolExecutor(jobs, initializer=prepare, max_tasks_per_child=BLOCKS) as pool:
        running: set[Future[Result]] = set()
        try:
            while True:
                is_over = bool(result.failures) or time.monotonic() - begun >= limit
                while len(running) < 2 * jobs and not is_over and (block := next(blocks, None)):
                    running.add(pool.submit(work, block, store))
                if not running:
                    return result
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    result.add(future.result())
                if time.monotonic() - shown > PROGRESS:
                    shown = time.monotonic()
                    count = result.tally["histories"]
                    say(f"{count:,} histories in {shown - begun:.0f} s, {len(result.failures)} failed")
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            return result


def say(text: str) -> None:
    """Tell whoever has called the command."""
    print(text, file=sys.stdout, flush=True)  # noqa: T201 - a command that talks to people
