"""Run the simulation: ``python -m tests.simulation --histories 200000``.

Ends with 1, and the shrunk story of the first failing seed, if any history is not as it must be.
"""

from __future__ import annotations

import argparse
import gc
import logging
import math
import os
import signal
import sys
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field

from tests.simulation.chaos import Chaos, ViolationError
from tests.simulation.stores import PLACES
from tests.simulation.story import explain, tell
from tests.simulation.summary import summarise

#: Histories of one piece of work, and seconds between two lines of progress.
BLOCK = 500
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
    with ProcessPoolExecutor(jobs, initializer=prepare) as pool:
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
                    _say(f"{count:,} histories in {shown - begun:.0f} s, {len(result.failures)} failed")
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            return result


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--histories", type=int, default=20_000, help="how many seeds (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds after which none begins (default: none)")
    parser.add_argument("--store", choices=PLACES, default="memory", help="the store (default %(default)s)")
    parser.add_argument("--story", action="store_true", help="tell the story of the one history of --seed, as it is")
    options = parser.parse_args()
    if options.story:
        prepare()
        with PLACES[options.store]() as place:
            _say(tell(options.seed, place=place))
        return 0
    # A shell starts what it runs in the background deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    begun = time.monotonic()
    result = simulate(options.seed, options.histories, options.jobs, options.store, limit=options.limit)
    _say(summarise(result.tally, seconds=result.seconds, wall=time.monotonic() - begun))
    if not result.failures:
        return 0
    return _fail(result, options.store)


def _fail(result: Result, store: str) -> int:
    seed, why = min(result.failures.items())
    _say(f"\n{len(result.failures)} histories failed: seeds {', '.join(map(str, sorted(result.failures)[:20]))}\n{why}")
    prepare()
    with PLACES[store]() as place:
        try:
            Chaos(seed, place=place).live()
        except ViolationError as failure:
            _say(f"\nseed {seed}, shrunk:\n\n{explain(failure)}")
    return 1


def _say(text: str) -> None:
    print(text, file=sys.stdout, flush=True)  # noqa: T201 - a command that talks to people


if __name__ == "__main__":
    sys.exit(main())
