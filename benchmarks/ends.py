"""What it costs on PostgreSQL that the ends of runs are notified: ``python -m benchmarks.ends [--pairs 5]``.

Threads close runs side by side, in turn with and without the notification, and the ratio of their rates is told: a
notification makes commits wait for each other, so this is where it would be seen.
"""

from __future__ import annotations

import argparse
import statistics
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import null

from durable_celery.store.protocol import Timing
from durable_celery.store.sql import SqlStore
from tests.databases import server_url
from tests.store.moves import close, new

_RUNS = 100


def main() -> None:
    """Measure, and print the ratio."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ends", description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    for threads in (1, 4, 16):
        namespace = f"bench_{uuid.uuid4().hex[:8]}"
        told, silent = (SqlStore(server_url("postgresql"), namespace=namespace, timing=Timing()) for _ in range(2))
        # What the statement returns beside its work.
        silent._server.writer._told = null().label("told")  # type: ignore[attr-defined] # noqa: SLF001
        told.migrate()
        told.renew(["p1"])
        try:
            rates = [(_rate(told, threads), _rate(silent, threads)) for _ in range(options.pairs)]
        finally:
            told._server.drop()  # noqa: SLF001
        ratios = [with_it / without for with_it, without in rates]
        print(
            f"{threads:3} threads: {statistics.median(rate for rate, _ in rates):6.0f} ends/s with notifications, "
            f"{statistics.median(ratios):.2f} of the rate without ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def _rate(store: SqlStore, threads: int) -> float:
    names = [[f"{uuid.uuid4()}" for _ in range(_RUNS)] for _ in range(threads)]
    for mine in names:
        for name in mine:
            store.start(new(name))
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda mine: [close(store, name) for name in mine], names))
    return threads * _RUNS / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
