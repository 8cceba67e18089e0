"""Run the benchmarks: ``python -m benchmarks [--quick] [--pairs 3] [--store postgresql] [w1 w2 ...]``."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from benchmarks.kill import w6_kill
from benchmarks.report import Figure, save, show
from benchmarks.system import CONCURRENCY, running_system
from benchmarks.workloads import WORKLOADS, Scale, w7_memory
from durable_celery.settings import Settings


def main() -> None:
    """Measure, print a table, keep the figures."""
    # In this order, whatever was asked for: the last one leaves sleepers behind.
    workloads = {**WORKLOADS, "w6": w6_kill, "w7": w7_memory}
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("workloads", nargs="*", help=f"any of {', '.join(workloads)}; all when left out")
    parser.add_argument("--pairs", type=int, default=3, help="rounds of each workload (default 3)")
    parser.add_argument("--quick", action="store_true", help="one fifth of the size, shorter histories")
    stores = ("redis", "sqlite", "postgresql", "mariadb")
    parser.add_argument("--store", choices=stores, default="redis", help="where the histories are (default redis)")
    parser.add_argument("--aof", choices=("no", "everysec", "always"), default="no", help="when Redis syncs its disk")
    parser.add_argument("--run-ahead", type=float, default=Settings().run_ahead, help="durable_run_ahead")
    parser.add_argument("--atomic-publish", action="store_true", help="durable_atomic_publish (default: off)")
    options = parser.parse_args()
    os.environ["BENCH_ATOMIC_PUBLISH"] = "1" if options.atomic_publish else ""
    os.environ["BENCH_RUN_AHEAD"] = str(options.run_ahead)
    unknown = set(options.workloads) - set(workloads)
    if unknown:
        parser.error(f"unknown workloads: {', '.join(sorted(unknown))}")
    scale = Scale(pairs=options.pairs, size=0.2 if options.quick else 1.0)
    figures: list[Figure] = []
    began = time.monotonic()
    with running_system(options.store, options.aof) as system:
        version = system.redis[0].info("server")["redis_version"]
        for name in [name for name in workloads if name in (options.workloads or workloads)]:
            print(f"{name} ... (load {os.getloadavg()[0]:.1f})", flush=True)
            found = list(workloads[name](system, scale))
            print("\n".join(figure.row() for figure in found), flush=True)
            figures += found
    took = time.monotonic() - began
    facts = {
        "store": options.store,
        "aof": options.aof,
        "run-ahead": options.run_ahead,
        "atomic-publish": options.atomic_publish,
        "redis-server": version,
        "pool": f"prefork -c {CONCURRENCY}",
        "pairs": scale.pairs,
        "size": scale.size,
    }
    path = save(figures, {**facts, "seconds": round(took)})
    print(f"\n{show(figures)}\n\n{took:.0f} s; figures in {path.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
