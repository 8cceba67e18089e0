"""The stores under simulation: how each is made, and how a look inside is had. Another kind joins by a line below."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import redis

from durable_celery.store.memory import MemoryStore
from durable_celery.store.protocol import Timing
from durable_celery.testing.world import Clock, OpenStore
from tests.databases import Database, server_url, tables_at
from tests.servers import RedisServer
from tests.simulation.monitor import Row
from tests.simulation.redis_store import SimulatedRedisStore, TimedClient
from tests.simulation.rules import RuledStore
from tests.simulation.sql_store import SimulatedSqlStore, SqlPlace


@dataclass(frozen=True, kw_only=True)
class Place:
    """A kind of store."""

    name: str
    #: Makes an empty store under a manual clock.
    make: Callable[[Timing, Clock], OpenStore]
    #: Gives each run of a store.
    rows: Callable[[Any], Iterable[Row]]
    #: Whether a look costs so little that each call is looked at, and not only each move.
    is_cheap: bool = False


def _rows_of_memory(store: MemoryStore) -> Iterable[Row]:
    rows: list[Row] = []
    for name, run in store.run_table.items():
        rows += [(name, number, log, None) for number, log in run.past.items()]
        rows.append((name, run.record.run, run.log, run.record))
    return rows


MEMORY = Place(name="memory", make=RuledStore, rows=_rows_of_memory, is_cheap=True)


def redis_at(url: str, *, edit: Callable[[str], str] = str) -> Place:
    """Return the Redis store on a server, whose database is emptied for each history; ``edit`` may spoil its Lua."""
    client = TimedClient(connection_pool=redis.ConnectionPool.from_url(url, decode_responses=True))

    def make(timing: Timing, clock: Clock) -> OpenStore:
        client.begin(clock, edit)
        return SimulatedRedisStore(client, timing=timing)

    return Place(name="redis", make=make, rows=SimulatedRedisStore.rows)


@contextmanager
def _memory() -> Generator[Place]:
    yield MEMORY


@contextmanager
def _redis() -> Generator[Place]:
    with TemporaryDirectory() as directory, RedisServer(Path(directory)) as server:
        yield redis_at(server.start().url)


def sql_at(database: Database) -> Place:
    """Return the SQL store over some tables, which are emptied for each history."""
    name = database.url.partition(":")[0].partition("+")[0]
    return Place(name=name, make=SqlPlace(database).make, rows=SimulatedSqlStore.rows)


@contextmanager
def _sqlite() -> Generator[Place]:
    with TemporaryDirectory() as directory, tables_at(f"sqlite:///{directory}/durable.db") as database:
        yield sql_at(database)


@contextmanager
def _postgresql() -> Generator[Place]:
    with tables_at(server_url("postgresql")) as database:
        yield sql_at(database)


#: What `--store` takes; each opens a place of its own.
PLACES: dict[str, Callable[[], AbstractContextManager[Place]]] = {
    "memory": _memory,
    "redis": _redis,
    "sqlite": _sqlite,
    "postgresql": _postgresql,
}
