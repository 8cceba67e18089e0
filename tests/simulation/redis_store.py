"""The Redis store on a real server, under a clock that is moved by hand, and open to looks.

Every script of the store asks the server for the time in one place, ``redis.call('TIME')``. The client replaces that
call by one that reads the time from a key; all else of the Lua runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import sha1
from typing import Any

import redis
from redis.exceptions import NoScriptError

from durable_celery.events import Recorded
from durable_celery.store.protocol import Timing
from durable_celery.store.redis import RedisStore
from durable_celery.testing.world import Clock
from tests.simulation.monitor import Row
from tests.store.invariants import Entry, entry_of

_CLOCK = "simulated-clock"
_ASKS, _READS = "redis.call('TIME')", f"redis.call('LRANGE', '{_CLOCK}', 0, 1)"
_NAMESPACE = "sim"
_PREFIX = f"{_NAMESPACE}:{{0}}:"


class TimedClient(redis.Redis):
    """A client whose scripts see the time of a manual clock."""

    def begin(self, clock: Clock, edit: Callable[[str], str]) -> None:
        """Empty the database, go by another clock from now on, and send scripts as ``edit`` changes them."""
        self.clock, self.edit, self.shown = clock, edit, 0
        self.scripts: dict[str, str] = {}
        #: Counts the scripts that ran: while it stays, nothing has changed.
        self.version = 0
        self.flushdb()

    def evalsha(self, sha: str, numkeys: int, *words: Any) -> Any:
        if sha not in self.scripts:
            raise NoScriptError
        self.version += 1
        if self.shown == self.clock.now:
            return super().evalsha(self.scripts[sha], numkeys, *words)
        self.shown = self.clock.now
        with self.pipeline(transaction=False) as pipe:
            pipe.delete(_CLOCK)
            pipe.rpush(_CLOCK, self.shown // 1000, self.shown % 1000 * 1000)
            pipe.evalsha(self.scripts[sha], numkeys, *words)
            return pipe.execute()[-1]

    def eval(self, script: str, numkeys: int, *words: Any) -> Any:
        if script.count(_ASKS) != 1:
            raise ValueError("the scripts ask for the time in another way than this client knows")
        digest = sha1(script.encode()).hexdigest()  # noqa: S324 - Redis names scripts by SHA-1
        self.scripts[digest] = self.script_load(self.edit(script.replace(_ASKS, _READS)))
        return self.evalsha(digest, numkeys, *words)


class SimulatedRedisStore(RedisStore):
    """The store, with what the simulation looks at. A look is kept until the next script runs."""

    def __init__(self, client: TimedClient, *, timing: Timing) -> None:
        super().__init__(client, namespace=_NAMESPACE, timing=timing)
        self._timed, self._seen = client, -1
        self._agenda: dict[Entry, int] = {}
        self._held: dict[str, list[str]] = {}
        self._ids: dict[str, None] = {}
        self._logs: dict[tuple[str, int], list[Recorded]] = {}

    @property
    def run_table(self) -> dict[str, None]:
        """All ids."""
        self._look()
        return self._ids

    @property
    def agenda(self) -> dict[Entry, int]:
        """All that falls due."""
        self._look()
        return self._agenda

    @property
    def held(self) -> dict[str, list[str]]:
        """What processes have in hand."""
        self._look()
        return self._held

    def rows(self) -> Iterable[Row]:
        """Give all runs; of their histories only what is new is read, and the last event that was known."""
        rows: list[Row] = []
        for name in self.run_table:
            record = self.get(name)
            if record is None:
                continue
            for run in range(1, record.run + 1):
                log = self._logs.setdefault((name, run), [])
                begin = max(0, len(log) - 1)
                log[begin:] = self.history(name, run=run, after=begin)
                rows.append((name, run, log, record if run == record.run else None))
        return rows

    def _look(self) -> None:
        if self._seen == self._timed.version:
            return
        self._seen = self._timed.version
        with self._timed.pipeline(transaction=False) as pipe:
            pipe.zrange(f"{_PREFIX}agenda", 0, -1, withscores=True)
            pipe.zrange(f"{_PREFIX}owners", 0, -1, withscores=True)
            pipe.zrange(f"{_PREFIX}index:open", 0, -1)
            pipe.zrange(f"{_PREFIX}index:closed", 0, -1)
            pipe.keys(f"{_PREFIX}held:*")
            agenda, owners, opened, closed, held = pipe.execute()
        self._agenda = {entry_of(member): int(due) for member, due in agenda}
        self._agenda |= {("owner", process, 0): int(due) for process, due in owners}
        self._ids = dict.fromkeys(sorted([*opened, *closed], key=lambda name: (name.count("/"), name)))
        self._held = {name.partition(":held:")[2]: [name] for name in sorted(held)}
