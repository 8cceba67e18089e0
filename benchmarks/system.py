"""What is measured: one Redis server, perhaps an SQL database for the log, and the two workers; when they are idle."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from redis import Redis
from sqlalchemy import Engine, create_engine

from durable_celery.app import binding_of
from durable_celery.store.protocol import RunStatus, Store
from tests.databases import server_url, tables_at
from tests.servers import RedisCluster, RedisServer
from tests.workers import CeleryWorker

__all__ = ["PLAIN", "System", "wait_for"]

#: Pool of each worker, as on a small machine.
CONCURRENCY = 2
#: In how many parts the keys of a cluster are divided.
SHARDS = 12
#: Seconds between two looks at whether a load is done.
LOOK = 0.01
#: Databases of the two brokers; the log shares the second. Results of both are in database 2.
PLAIN, DURABLE = 0, 1


class System:
    """One server, one plain worker and one durable worker; both idle unless they are asked.

    Args:
        directory: where servers and workers leave their files.
        store: where the histories are: ``redis``, ``cluster``, ``sqlite``, ``postgresql`` or ``mariadb``.
        aof: when Redis writes to its disk: ``no``, ``everysec`` or ``always``.
        nodes: of how many masters the cluster is.
    """

    def __init__(self, directory: Path, store: str = "redis", aof: Any = "no", nodes: int = 3) -> None:
        self.store, self.nodes = store, nodes
        self.server = RedisServer(directory / "redis", aof=aof, extra_args=("--maxmemory-policy", "noeviction"))
        self.workers: dict[int, CeleryWorker] = {}
        self.directory = directory
        self._ending = ExitStack()

    def start(self) -> None:
        """Start the server, then import the apps, which read its address, then start the workers."""
        self.server.start()
        os.environ["BENCH_REDIS"] = f"redis://127.0.0.1:{self.server.port}"
        if self.store == "cluster":
            self.cluster = RedisCluster(self.directory / "cluster", size=self.nodes).start()
            self._ending.callback(self.cluster.stop)
            url = self.cluster.url.replace("redis://", "redis+cluster://")
            os.environ |= {"BENCH_STORE": url, "BENCH_NAMESPACE": "durable", "BENCH_SHARDS": str(SHARDS)}
        elif self.store != "redis":
            url = f"sqlite:///{self.directory}/log.db" if self.store == "sqlite" else server_url(self.store)
            self.tables = self._ending.enter_context(tables_at(url))
            os.environ |= {"BENCH_STORE": self.tables.url, "BENCH_NAMESPACE": self.tables.namespace}
        self.redis = {number: self.server.client(number) for number in (PLAIN, DURABLE, 2)}
        for database in (PLAIN, DURABLE):
            self.start_worker(database)

    def more_workers(self, count: int) -> None:
        """Start more workers with workflows."""
        workers = [
            CeleryWorker("benchmarks.durable:app", self.directory, concurrency=CONCURRENCY) for _ in range(count)
        ]
        for worker in workers:
            self._ending.callback(worker.stop)
            worker.start(wait=False)
        for worker in workers:
            worker.wait_ready(120)

    def start_worker(self, database: int) -> CeleryWorker:
        """Start one side's worker and wait until a task comes through it."""
        name = "plain" if database == PLAIN else "durable"
        worker = CeleryWorker(
            f"benchmarks.{name}:app", self.directory, name=name, concurrency=CONCURRENCY, loglevel="WARNING"
        )
        self.workers[database] = worker.start(wait=False)
        tasks = self.plain if database == PLAIN else self.durable
        # Enough for each pool process to have made its connections.
        probes = [tasks.echo.delay(number) for number in range(20)]
        wait_for(lambda: not worker.is_running or all(probe.ready() for probe in probes), 60, worker.log_path.name)
        if not worker.is_running:
            raise RuntimeError(f"the {name} worker ended:\n{worker.log}")
        return worker

    @property
    def plain(self) -> Any:
        """The tasks of the plain app."""
        from benchmarks import plain

        return plain

    @property
    def durable(self) -> Any:
        """The tasks and workflows of the durable app."""
        from benchmarks import durable

        return durable

    def stop(self) -> None:
        """End what was started."""
        for worker in self.workers.values():
            worker.stop()
        self._ending.close()
        self.server.stop()

    def is_idle(self, database: int) -> bool:
        """Tell whether a broker has no message and the log no open run, twice: a message may be between two places."""
        return all(self._is_empty(self.redis[database]) and not self._has_open_runs(database) for _ in range(2))

    def _has_open_runs(self, database: int) -> bool:
        if self.store == "redis" or database == PLAIN:
            return False
        return any(self.log.runs(status=status, limit=1).runs for status in (RunStatus.PENDING, RunStatus.RUNNING))

    def settle(self, database: int, timeout: float = 300.0) -> None:
        """Wait until a side has nothing left to do; messages are acknowledged late, so that is the end of all work."""
        wait_for(lambda: self.is_idle(database), timeout, f"database {database} to be idle")

    @property
    def log(self) -> Store:
        """Where the histories are."""
        return binding_of(self.durable.app).store

    def weight(self) -> float:
        """Return the bytes that the histories take: memory of Redis, with all else there, or pages of tables."""
        match self.store:
            case "redis":
                return float(self.redis[PLAIN].info("memory")["used_memory"])
            case "sqlite":
                question = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
            case "postgresql":
                question = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' AND {mine}"
            case _:
                question = "SELECT sum(data_length + index_length) FROM information_schema.tables WHERE {mine}"
        name = "relname" if self.store == "postgresql" else "table_name"
        with self._database.connect() as connection:
            mine = f"{name} LIKE '{self.tables.namespace}_%'"
            return float(connection.exec_driver_sql(question.format(mine=mine.replace("%", "%%"))).scalar() or 0)

    def transactions(self) -> int | None:
        """Return how many transactions, or scripts, the log's server has seen; None where it does not count."""
        if self.store == "redis":
            return int(self.redis[DURABLE].info("commandstats")["cmdstat_evalsha"]["calls"])
        if self.store != "postgresql":
            return None
        question = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
        with self._database.connect() as connection:
            return int(connection.exec_driver_sql(question).scalar() or 0)

    @cached_property
    def _database(self) -> Engine:
        return create_engine(self.tables.url)

    def forget_results(self) -> None:
        """Drop what the result backend holds; queues and log stay."""
        self.redis[2].flushdb()

    @staticmethod
    def _is_empty(client: Redis) -> bool:
        pipe = client.pipeline(transaction=True)
        pipe.llen("celery")
        pipe.hlen("unacked")
        pipe.zcard("durable:{0}:index:open")
        return not any(pipe.execute())


def wait_for(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Look again and again until a condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:g} s in vain for {what}")
        time.sleep(LOOK)


@contextmanager
def running_system(store: str = "redis", aof: Any = "no", nodes: int = 3) -> Iterator[System]:
    """Give a running system and end it afterwards."""
    with TemporaryDirectory(prefix="durable-bench-") as directory:
        system = System(Path(directory), store, aof, nodes)
        try:
            system.start()
            yield system
        finally:
            system.stop()
