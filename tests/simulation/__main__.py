"""Run the simulation: ``python -m tests.simulation --histories 200000``.

Ends with 1, and the shrunk story of the first failing seed, if any history is not as it must be.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time

from tests.simulation.chaos import Chaos, ViolationError
from tests.simulation.running import Result, prepare, say, simulate
from tests.simulation.stores import PLACES
from tests.simulation.story import explain, tell
from tests.simulation.summary import summarise


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
            say(tell(options.seed, place=place))
        return 0
    # A shell starts what it runs in the background deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    begun = time.monotonic()
    result = simulate(options.seed, options.histories, options.jobs, options.store, limit=options.limit)
    say(summarise(result.tally, seconds=result.seconds, wall=time.monotonic() - begun))
    if not result.failures:
        return 0
    return _fail(result, options.store)


def _fail(result: Result, store: str) -> int:
    seed, why = min(result.failures.items())
    say(f"\n{len(result.failures)} histories failed: seeds {', '.join(map(str, sorted(result.failures)[:20]))}\n{why}")
    prepare()
    with PLACES[store]() as place:
        try:
            Chaos(seed, place=place).live()
        except ViolationError as failure:
            say(f"\nseed {seed}, shrunk:\n\n{explain(failure)}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
