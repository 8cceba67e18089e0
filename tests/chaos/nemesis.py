"""What goes wrong in a soak: two threads, one that kills workers and one that breaks servers and networks.

All that they choose comes from a seed; when it happens is the machine's affair. Each fault that lasts is ended by the
one that made it, so after `stop` nothing is broken any more.
"""

from __future__ import annotations

import logging
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable

from tests.chaos.field import Crew, Field, FieldRedis
from tests.chaos.postgresql import PostgreSQLServer
from tests.chaos.proxy import TcpProxy
from tests.workers import CeleryWorker

_log = logging.getLogger(__name__)

#: Seconds that a paused worker stays paused: longer than the lease of its processes, `durable_owner_ttl`.
PAUSE = (11.0, 14.0)
#: Seconds that a worker has for a warm shutdown.
GRACE = 15.0


class Doer(threading.Thread):
    """Does one thing after another until it is stopped; what it raises is kept, and ends it."""

    def __init__(self, name: str, seed: int) -> None:
        super().__init__(name=name, daemon=True)
        self.chance, self.counts = random.Random(f"{name} {seed}"), Counter[str]()
        self.error: BaseException | None = None
        self._ended = threading.Event()

    def run(self) -> None:
        try:
            while not self._ended.is_set():
                self.act()
        except BaseException as error:  # noqa: BLE001 - the soak raises it where a person sees it
            _log.exception("%s failed", self.name)
            self.error = error

    def act(self) -> None:
        raise NotImplementedError

    def hold(self, seconds: float) -> None:
        """Let time pass, unless the end comes."""
        self._ended.wait(seconds)

    def stop(self, timeout: float = 120.0) -> None:
        """Make an end: what is broken is mended first."""
        self._ended.set()
        self.join(timeout)
        assert not self.is_alive(), f"{self.name} does not end"


class Reaper(Doer):
    """Kills, pauses, stops and replaces workers; also their supervisor."""

    def __init__(self, field: Field, seed: int, *, every: float) -> None:
        """Kill about once in ``every`` seconds."""
        super().__init__("reaper", seed)
        self.field, self.every = field, every
        self._moves: list[tuple[Callable[[CeleryWorker], None], int]] = [
            (self.kill_worker, 30),
            (self.kill_child, 58),
            (self.replace, 5),
            (self.pause, 3),
            (self.stop_warmly, 4),
        ]

    @property
    def kills(self) -> int:
        """How many workers and pool children were killed so far."""
        return self.counts["kill_worker"] + self.counts["kill_child"] + self.counts["replace"]

    def act(self) -> None:
        self.hold(self.chance.uniform(0.2, 1.8) * self.every)
        self.field.supervise()
        moves, weights = zip(*self._moves, strict=True)
        move = self.chance.choices(moves, weights)[0]
        # One that still comes up has nothing in hand that could be lost.
        up = [worker for worker in self.field.workers if worker.is_running and " ready." in worker.log]
        if up and not self._ended.is_set():
            move(self.chance.choice(up))

    def kill_worker(self, worker: CeleryWorker) -> None:
        self.field.kill(worker)
        self.counts["kill_worker"] += 1

    def kill_child(self, worker: CeleryWorker) -> None:
        if worker.pool != "prefork":
            # A thread cannot be killed: the worker dies as one.
            self.kill_worker(worker)
        elif children := worker.child_pids:
            self.field.kill_child(self.chance.choice(children))
            self.counts["kill_child"] += 1

    def replace(self, worker: CeleryWorker) -> None:
        pool = worker.pool
        self.field.replace(worker, Crew(pool=pool, concurrency=self.chance.choice([1, 2, 3])))
        self.counts["replace"] += 1

    def pause(self, worker: CeleryWorker) -> None:
        """Let a worker stand still past its lease, and go on as if nothing had been."""
        with self.field.noted("pause"):
            worker.kill(signal.SIGSTOP)
            try:
                self.hold(self.chance.uniform(*PAUSE))
            finally:
                worker.kill(signal.SIGCONT)
        self.counts["pause"] += 1

    def stop_warmly(self, worker: CeleryWorker) -> None:
        """Let a worker finish what it executes; one that cannot end is killed, as a service manager does."""
        with self.field.lock:
            worker.stop(GRACE)
            worker.start(wait=False)
        self.counts["stop_warmly"] += 1


class Weather(Doer):
    """Breaks the store, the broker and the network before them."""

    def __init__(self, field: Field, seed: int, *, every: float) -> None:
        """Let one fault follow another after about ``every`` seconds."""
        super().__init__("weather", seed)
        self.field, self.every = field, every
        self._faults: list[Callable[[], None]] = [
            self.slow_store,
            self.slow_broker,
            self.silent_store,
            self.silent_broker,
            self.reset_store,
            self.reset_broker,
            self.refuse_store,
            self.refuse_broker,
            self.lose_store_replies,
            self.lose_broker_replies,
            self.restart_store,
            self.pause_store,
            self.kill_store_clients,
            self.empty_broker,
            self.repeat_messages,
        ]
        if field.broker_server is not None:
            self._faults.append(self.restart_broker)
        if isinstance(field.store_server, PostgreSQLServer):
            self._faults.append(self.kill_store_backend)
        if isinstance(field.broker_server, FieldRedis):
            self._faults += [self.pause_broker, self.kill_broker_clients]

    def act(self) -> None:
        self.hold(self.chance.uniform(0.2, 1.8) * self.every)
        if not self._ended.is_set():
            fault = self.chance.choice(self._faults)
            with self.field.noted(fault.__name__):
                fault()
            self.counts[fault.__name__] += 1

    # -- the network

    def slow_store(self) -> None:
        self._slow(self.field.store_proxy)

    def slow_broker(self) -> None:
        self._slow(self.field.broker_proxy)

    def silent_store(self) -> None:
        self._silent(self.field.store_proxy)

    def silent_broker(self) -> None:
        self._silent(self.field.broker_proxy)

    def reset_store(self) -> None:
        self.field.store_proxy.reset()

    def reset_broker(self) -> None:
        self.field.broker_proxy.reset()

    def refuse_store(self) -> None:
        self._refuse(self.field.store_proxy)

    def refuse_broker(self) -> None:
        self._refuse(self.field.broker_proxy)

    def lose_store_replies(self) -> None:
        """Lose the replies to some verbs that the server has done."""
        is_sql = isinstance(self.field.store_server, PostgreSQLServer)
        self._lose_replies(self.field.store_proxy, b"COMMIT" if is_sql else b"EVALSHA")

    def lose_broker_replies(self) -> None:
        """Lose messages on their way to a worker, and confirmations on their way to a publisher."""
        self._lose_replies(self.field.broker_proxy, b"")

    def _slow(self, proxy: TcpProxy) -> None:
        proxy.delay(self.chance.choice([0.05, 0.2, 1.0, 2.0]))
        self._wait_and_heal(proxy, 1, 5)

    def _silent(self, proxy: TcpProxy) -> None:
        proxy.hang()
        if self.chance.random() < 0.5:
            self.hold(self.chance.uniform(1, 8))
            # The other side will never hear that the connection is gone: what was held is lost.
            proxy.reset()
        self._wait_and_heal(proxy, 0, 8)

    def _refuse(self, proxy: TcpProxy) -> None:
        proxy.refuse()
        self._wait_and_heal(proxy, 0.5, 5)

    def _lose_replies(self, proxy: TcpProxy, request: bytes) -> None:
        for _ in range(self.chance.randrange(1, 6)):
            proxy.cut_reply(request=request, part=self.chance.choice([0.0, 0.0, 0.5]))
        self._wait_and_heal(proxy, 0.5, 2)

    def _wait_and_heal(self, proxy: TcpProxy, shortest: float, longest: float) -> None:
        try:
            self.hold(self.chance.uniform(shortest, longest))
        finally:
            proxy.heal()

    # -- the servers

    def restart_store(self) -> None:
        """Kill the store's server; what it had acknowledged is on its disk."""
        self.field.store_server.kill()
        self.hold(self.chance.uniform(0, 3))
        self.field.store_server.start()

    def restart_broker(self) -> None:
        assert self.field.broker_server is not None
        self.field.broker_server.kill()
        self.hold(self.chance.uniform(0, 3))
        self.field.broker_server.start()

    def pause_store(self) -> None:
        self.field.store_server.pause(self._moment())

    def pause_broker(self) -> None:
        assert isinstance(self.field.broker_server, FieldRedis)
        self.field.broker_server.pause(self._moment())

    def kill_store_clients(self) -> None:
        self.field.store_server.kill_clients()

    def kill_store_backend(self) -> None:
        assert isinstance(self.field.store_server, PostgreSQLServer)
        self.field.store_server.kill_backend()

    def kill_broker_clients(self) -> None:
        assert isinstance(self.field.broker_server, FieldRedis)
        self.field.broker_server.kill_clients()

    def _moment(self) -> float:
        return self.chance.uniform(0.5, 6)

    # -- the messages

    def empty_broker(self) -> None:
        self.field.empty_broker()

    def repeat_messages(self) -> None:
        self.field.repeat_messages(self.chance.randrange(1, 8))
