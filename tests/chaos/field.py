"""A field: one app with its own store and broker, proxies before both, and workers of several pools with a supervisor.

The client of the app goes through the proxies as the workers do. What looks on goes to the store directly.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from celery import Celery
from kombu.connection import Connection

from durable_celery.app import open_store
from durable_celery.settings import Settings
from durable_celery.store.sql import SqlStore
from tests.chaos.operations import Phase, Recorder
from tests.chaos.postgresql import PostgreSQLServer
from tests.chaos.programs import OPERATIONS, make_app
from tests.chaos.proxy import TcpProxy
from tests.chaos.rabbitmq import RabbitMQServer
from tests.conftest import delete_isolated, isolation_settings
from tests.servers import RedisServer, rabbitmq_server_url
from tests.sites import CONFIG_VARIABLE, LOG_TAIL
from tests.workers import CeleryWorker, Pool

Broker = Literal["redis", "rabbitmq"]
StoreKind = Literal["redis", "postgresql"]


class StoreServer(Protocol):
    """What a soak does to the server of a store."""

    @property
    def url(self) -> str:
        """The URL of the store."""
        ...

    def start(self) -> Any:
        """Start it and wait until it answers."""
        ...

    def stop(self) -> None:
        """End it in good order. May be repeated."""
        ...

    def kill(self) -> None:
        """End it as a crash does."""
        ...

    def pause(self, seconds: float) -> None:
        """Let it answer nobody for some time, which has passed at the return."""
        ...

    def kill_clients(self) -> None:
        """End all connections from its side."""
        ...

    def describe(self) -> Iterable[str]:
        """Give what a person wants to see of it when a run stands still."""
        ...


class FieldRedis(RedisServer):
    """A Redis as production should have it, with what a soak does to it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, aof="everysec", extra_args=("--maxmemory-policy", "noeviction"))

    def pause(self, seconds: float) -> None:
        """Let it answer nobody for some time, which has passed at the return."""
        with self.client() as client:
            client.client_pause(round(seconds * 1000))
        time.sleep(seconds)

    def kill_clients(self) -> None:
        """End all connections from its side."""
        with self.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal")

    def describe(self) -> Iterable[str]:
        """Give what a person wants to see of it when a run stands still."""
        with self.client() as client:
            agenda: Any = client.zrange("durable:{0}:agenda", 0, 200, withscores=True)
            owners: Any = client.zrange("durable:{0}:owners", 0, -1, withscores=True)
            return [f"--- now {client.time()}", f"agenda: {agenda}", f"owners: {owners}"]


@dataclass(frozen=True, kw_only=True)
class Crew:
    """How one worker is started."""

    pool: Pool = "prefork"
    concurrency: int = 2


class Field:
    """Servers, proxies, workers and the client's app; ends all that it started.

    Args:
        directory: For data, logs and operations.
        broker: Which broker the messages go through.
        crews: One worker for each.
        store: Which server the histories are on.
        own_rabbitmq: Start a RabbitMQ of the field's own, which can be killed; else an existing one is used, see
            `tests.servers`.
        settings: More Celery settings.
    """

    def __init__(
        self,
        directory: Path,
        *,
        broker: Broker,
        crews: Sequence[Crew],
        store: StoreKind = "redis",
        own_rabbitmq: bool = False,
        **settings: Any,
    ) -> None:
        self.directory, self.broker, self.crews = directory, broker, list(crews)
        self.operations = directory / "operations"
        self.store_server: StoreServer = (
            PostgreSQLServer() if store == "postgresql" else FieldRedis(directory / "store")
        )
        #: None for an existing RabbitMQ.
        self.broker_server: FieldRedis | RabbitMQServer | None = None
        if own_rabbitmq:
            self.broker_server = RabbitMQServer(directory / "broker")
        elif broker == "redis":
            self.broker_server = FieldRedis(directory / "broker")
        self._settings = {**isolation_settings(), **settings}
        self._proxies: list[TcpProxy] = []
        self.workers: list[CeleryWorker] = []
        #: Workers that ended by themselves and were started again.
        self.revived = 0
        #: Held while workers are killed, replaced or started.
        self.lock = threading.RLock()

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start servers, proxies and workers, and wait until all workers are ready."""
        self.store_server.start()
        #: The store without proxy and record, for those who look on.
        self.store: Any = open_store(_looker(self.store_server.url), Settings(store=self.store_server.url))
        if isinstance(self.store, SqlStore):
            self.store.migrate()
        if self.broker_server is not None:
            self.broker_server.start()
        self.store_proxy, self.broker_proxy = TcpProxy(self.store_server.url), TcpProxy(self.broker_url)
        self._proxies = [self.store_proxy.start(), self.broker_proxy.start()]
        self.config: dict[str, Any] = {
            "broker_url": self.broker_proxy.url(self.broker_url),
            "durable_store": self.store_proxy.url(self.store_server.url),
            "broker_connection_retry_on_startup": True,
            OPERATIONS: str(self.operations),
            **self._settings,
        }
        self.app = make_app(self.config)
        self.recorder = Recorder(self.operations)
        for crew in self.crews:
            self.workers.append(self._worker(crew))
        for worker in self.workers:
            worker.wait_ready(timeout=120)
        return self

    def stop(self) -> None:
        """End all, without grace."""
        for worker in self.workers:
            worker.kill()
        for proxy in self._proxies:
            proxy.stop()
        self.store_server.stop()
        if self.broker_server is not None:
            self.broker_server.stop()
        else:
            delete_isolated(self.broker_url, self._settings)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def broker_url(self) -> str:
        """The broker itself, without the proxy."""
        return rabbitmq_server_url() if self.broker_server is None else self.broker_server.url

    @property
    def queue(self) -> str:
        """The queue that all messages go through."""
        return str(self._settings["task_default_queue"])

    # -- workers -----------------------------------------------------------------------------------------------------

    def _worker(self, crew: Crew) -> CeleryWorker:
        env = {CONFIG_VARIABLE: json.dumps(self.config)}
        worker = CeleryWorker(
            "tests.chaos.soak_worker", self.directory / "logs", pool=crew.pool, concurrency=crew.concurrency, env=env
        )
        return worker.start(wait=False)

    def kill(self, worker: CeleryWorker) -> None:
        """Kill a whole worker and start it again."""
        with self.lock:
            if worker.is_running:
                self.note_kill("worker", [worker.pid, *worker.child_pids])
            worker.kill()
            worker.start(wait=False)

    def kill_child(self, pid: int) -> None:
        """Kill one pool child; Celery replaces it."""
        with self.lock:
            self.note_kill("child", [pid])
            os.kill(pid, signal.SIGKILL)

    def replace(self, worker: CeleryWorker, crew: Crew) -> None:
        """Kill a whole worker, and start another one in its place."""
        with self.lock:
            if worker.is_running:
                self.note_kill("worker", [worker.pid, *worker.child_pids])
            worker.kill()
            self.workers[self.workers.index(worker)] = self._worker(crew)

    def supervise(self) -> None:
        """Start again the workers that ended by themselves."""
        with self.lock:
            for worker in self.workers:
                if not worker.is_running:
                    worker.kill()
                    worker.start(wait=False)
                    self.revived += 1

    def note_kill(self, kind: str, pids: list[int]) -> None:
        """Write down who dies now."""
        self.recorder.write(self.recorder.call(), "kill", Phase.INFO, data={"kind": kind, "pids": pids})

    @contextmanager
    def noted(self, fault: str) -> Generator[None, None, None]:
        """Write down that something is broken meanwhile."""
        call = self.recorder.call()
        self.recorder.write(call, "fault", Phase.INVOKE, data={"fault": fault})
        yield
        self.recorder.write(call, "fault", Phase.OK)

    # -- the broker's messages ---------------------------------------------------------------------------------------

    def empty_broker(self) -> None:
        """Take all waiting messages away."""
        if isinstance(self.broker_server, FieldRedis):
            with self.broker_server.client() as client:
                client.delete(self.queue)
        else:
            with Connection(self.broker_url) as connection, connection.channel() as channel:
                channel.queue_purge(self.queue)

    def repeat_messages(self, count: int) -> None:
        """Publish copies of waiting messages."""
        if isinstance(self.broker_server, FieldRedis):
            with self.broker_server.client() as client:
                waiting: Any = client.lrange(self.queue, 0, count - 1)
                if waiting:
                    client.lpush(self.queue, *waiting)
            return
        with Connection(self.broker_url) as connection, connection.channel() as channel:
            for _ in range(count):
                if (message := channel.basic_get(self.queue)) is None:
                    break
                for _ in range(2):
                    channel.basic_publish(message, routing_key=self.queue)
                message.channel.basic_ack(message.delivery_tag)

    def logs(self) -> str:
        """Return the tails of all workers' logs."""
        lines: list[str] = []
        for worker in self.workers:
            state = f"pid {worker.pid}" if worker.is_running else f"ended with {worker.exit_code}"
            lines += [f"--- log of {worker.name} ({worker.pool}, {state})", *worker.log.splitlines()[-LOG_TAIL:]]
        return "\n".join(lines)


def _looker(url: str) -> Celery:
    app = Celery("looker", broker=url, set_as_current=False)
    app.conf.durable_store = url
    return app
