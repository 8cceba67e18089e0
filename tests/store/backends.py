"""The implementations that the contract suite runs over, each with a way to let time pass without waiting."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol
from uuid import uuid4

import redis
from sqlalchemy import delete, update

from durable_celery.store.limits import KINDS
from durable_celery.store.memory import MemoryStore
from durable_celery.store.protocol import Store, Timing
from durable_celery.store.redis import RedisStore
from durable_celery.store.sql import SqlStore
from tests.databases import Database

#: Where the manual clock begins, in ms since 1970.
EPOCH = 1_700_000_000_000


class Backend(Protocol):
    """A place for one test's runs."""

    #: The store under test.
    store: Store

    def advance(self, seconds: float) -> None:
        """Let time pass for everything that is due some day."""
        ...

    def another(self) -> Store:
        """Give another way to the same runs, as another process has it."""
        ...

    def delete(self) -> None:
        """Leave nothing behind."""
        ...


class ManualClock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = EPOCH

    def __call__(self) -> int:
        return self.now


class MemoryBackend:
    """The memory store under a manual clock."""

    def __init__(self, timing: Timing) -> None:
        self.clock = ManualClock()
        self.store: Store = MemoryStore(timing=timing, clock=self.clock)

    def advance(self, seconds: float) -> None:
        self.clock.now += round(seconds * 1000)

    def another(self) -> Store:
        return self.store

    def delete(self) -> None:
        """Nothing outlives the store."""


class RedisBackend:
    """A Redis store in a namespace of its own.

    The server's clock cannot be moved, so everything that has a due time is moved instead: it is the same to all who
    compare the two. What proves that the server's clock rules at all stands in `test_redis_server.py`.
    """

    def __init__(self, client: Any, make_client: Callable[[], Any], timing: Timing, shards: int = 1) -> None:
        self._namespace, self._client, self._make_client = f"t-{uuid4().hex[:8]}", client, make_client
        self._timing, self._shards = timing, shards
        self.store: Store = self._over(client)

    def advance(self, seconds: float) -> None:
        milliseconds = round(seconds * 1000)
        for name in self._keys():
            kind = name.partition("}:")[2].partition(":")[0]
            if kind in {"agenda", "owners"}:
                for member in self._client.zrange(name, 0, -1):
                    self._client.zincrby(name, -milliseconds, member)
            elif kind == "open":
                for number, text in self._client.hgetall(name).items():
                    if text.startswith("{"):
                        self._client.hset(name, number, json.dumps(_earlier(json.loads(text), milliseconds)))

    def another(self) -> Store:
        return self._over(self._make_client())

    def delete(self) -> None:
        """Delete all that the test has left: the servers are those of the whole session."""
        for name in self._keys():
            self._client.delete(name)

    def _over(self, client: Any) -> RedisStore:
        return RedisStore(client, namespace=self._namespace, shards=self._shards, timing=self._timing)

    def _keys(self) -> list[str]:
        return list(self._client.scan_iter(match=f"{self._namespace}:*", count=1000))


def _earlier(step: dict[str, Any], milliseconds: int) -> dict[str, Any]:
    """Return the entry of a step as if that much time had passed."""
    moved = {**step, "due": step["due"] - milliseconds} if "due" in step else step
    if "ends" in moved:
        moved = {**moved, "ends": {kind: at - milliseconds for kind, at in moved["ends"].items()}}
    return moved


class SqlBackend:
    """An SQL store over tables that the whole session uses, emptied for each test.

    The database's clock cannot be moved, so everything that has a due time is moved instead, as for Redis.
    """

    def __init__(self, database: Database, timing: Timing) -> None:
        self._database, self._timing = database, timing
        self._sql = self.another()
        self.store: Store = self._sql
        self.delete()

    def advance(self, seconds: float) -> None:
        tables, milliseconds = self._sql._server.tables, round(seconds * 1000)
        times = (
            (tables.runs, ("due_at", "past_until")),
            (tables.commands, ("due_at", *(f"{kind}_at" for kind in KINDS), "next_at")),
            (tables.owners, ("ends_at",)),
        )
        with self._sql._server.engine.begin() as connection:
            for table, names in times:
                connection.execute(update(table).values({name: table.c[name] - milliseconds for name in names}))
            begins = tables.commands.c.not_before
            connection.execute(update(tables.commands).where(begins > 0).values(not_before=begins - milliseconds))

    def another(self) -> SqlStore:
        return SqlStore(self._database.url, namespace=self._database.namespace, timing=self._timing)

    def delete(self) -> None:
        with self._sql._server.engine.begin() as connection:
            tables = self._sql._server.tables
            for table in (tables.events, tables.inputs, tables.commands, tables.runs, tables.owners):
                connection.execute(delete(table))
        self._sql.close()


def server_client(url: str) -> Any:
    """Return a client of a single server."""
    return redis.Redis.from_url(url, decode_responses=True)
