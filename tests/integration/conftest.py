"""pytest-celery on local processes: `celery_setup` without a container engine.

The fixtures of pytest-celery that would build containers are overridden with nodes that are processes: the session's
Redis server, an existing RabbitMQ, and a real worker for each test. Everything above them (`celery_setup`, clusters,
the node API) is pytest-celery's own. With `DURABLE_TEST_CONTAINERS=1` containers are used.

pytest-celery asks a container only for what these nodes have; its base classes are kept for their `isinstance` checks
and class methods, without their constructors, which want a container engine.
"""

# The base classes are untyped: what pyright infers for their methods is narrower than what callers pass.
# pyright: reportIncompatibleMethodOverride=false, reportMissingSuperCall=false

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from pytest_celery import CeleryTestContainer, CeleryTestSetup, CeleryWorkerContainer

from tests.conftest import delete_isolated, isolation_settings
from tests.servers import RedisServer
from tests.waiting import wait_until
from tests.workers import ROOT, children_of

USES_CONTAINERS = os.environ.get("DURABLE_TEST_CONTAINERS") == "1"

#: Seconds for a worker to become ready on a busy machine.
WORKER_READY_TIMEOUT = 60.0


class RedisNode(CeleryTestContainer):
    """The session's Redis server in the place of a container; it outlives the test's node."""

    def __init__(self, server: RedisServer, database: int) -> None:
        self.server = server
        self.database = database

    @property
    def name(self) -> str:
        return f"redis-{self.server.port}"

    @property
    def id(self) -> str:
        return f"redis{self.server.port}"

    @property
    def status(self) -> str:
        return "running" if self.server.is_running else "exited"

    @property
    def celeryconfig(self) -> dict[str, str]:
        url = self.server.database_url(self.database)
        return {"url": url, "host_url": url}

    def ready(self) -> bool:
        self.server.start()
        return True

    def logs(self) -> str:
        return self.server.log

    def kill(self, signal: str | int = "SIGKILL") -> None:
        if signal in {"SIGKILL", 9}:
            self.server.kill()
        else:
            self.server.stop()

    def restart(self, timeout: float = 10) -> None:
        self.server.stop(timeout)
        self.server.start()

    def reload(self) -> None:
        """A process has no stale description to read again."""

    def teardown(self) -> None:
        """The next test starts and flushes the server."""


class RabbitMQNode(CeleryTestContainer):
    """A RabbitMQ that was there before us in the place of a container: it is never stopped."""

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def name(self) -> str:
        return "rabbitmq"

    @property
    def id(self) -> str:
        return "rabbitmq"

    @property
    def status(self) -> str:
        return "running"

    @property
    def celeryconfig(self) -> dict[str, str]:
        return {"url": self.url, "host_url": self.url}

    def ready(self) -> bool:
        return True

    def logs(self) -> str:
        return ""

    def kill(self, signal: str | int = "SIGKILL") -> None:
        raise NotImplementedError("this RabbitMQ belongs to others: a test must not end it")

    def restart(self, timeout: float = 10) -> None:
        raise NotImplementedError("this RabbitMQ belongs to others: a test must not restart it")

    def reload(self) -> None:
        """A process has no stale description to read again."""

    def teardown(self) -> None:
        """The fixture `celery_setup_config` deletes what stands under the test's names."""


class WorkerNode(CeleryWorkerContainer):
    """A worker process in the place of a container, in a process group of its own.

    A subclass for each test names the queue and the node, so that runs on one broker never meet.
    """

    isolation: dict[str, str]

    def __init__(self, command: list[str], directory: Path, env: dict[str, str]) -> None:
        self.directory = directory
        self.log_path = directory / "worker.log"
        self.argv = [sys.executable, "-m", *command]
        self.environment = {**os.environ, **env}
        self.log_offset = 0
        self.process = self._launch()

    @classmethod
    def worker_queue(cls) -> str:
        return cls.isolation["task_default_queue"]

    @classmethod
    def worker_name(cls) -> str:
        return cls.isolation["task_default_queue"]

    @property
    def pid(self) -> int:
        """The process id of the worker's parent process."""
        return self.process.pid

    @property
    def child_pids(self) -> list[int]:
        """The process ids of the living pool children."""
        return children_of(self.process.pid)

    @property
    def name(self) -> str:
        return f"worker-{self.process.pid}"

    @property
    def id(self) -> str:
        return f"worker{self.process.pid}"

    @property
    def status(self) -> str:
        return "running" if self.process.poll() is None else "exited"

    @property
    def celeryconfig(self) -> dict[str, str]:
        return {}

    def ready(self) -> bool:
        wait_until(lambda: " ready." in self.logs() or self.status == "exited", WORKER_READY_TIMEOUT, self.logs)
        if self.status == "exited":
            raise RuntimeError(f"the worker ended with {self.process.returncode}:\n{self.logs()}")
        return True

    def logs(self) -> str:
        """Return what the worker has written since its latest start."""
        return self.log_path.read_bytes()[self.log_offset :].decode(errors="replace")

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send a signal to the parent and all its pool children."""
        number = _signal_number(signal)
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return
        if number == _signal_number("SIGKILL"):
            self.process.wait()

    def restart(self, timeout: float = 10) -> None:
        self.teardown(timeout)
        self.process = self._launch()
        self.ready()

    def reload(self) -> None:
        """A process has no stale description to read again."""

    def teardown(self, timeout: float = 10) -> None:
        if self.status == "running":
            self.process.terminate()
            # One that takes too long is killed in the next line, with its children.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout)
        self.kill()

    def exec_run(self, cmd: str, **_options: Any) -> tuple[int, bytes]:
        """Run a command beside the worker, as `docker exec` would inside the container."""
        argv = shlex.split(cmd)
        if argv[0] == "python":
            argv[0] = sys.executable
        done = subprocess.run(argv, cwd=self.directory, env=self.environment, capture_output=True, check=False)
        return done.returncode, done.stdout

    def _launch(self) -> subprocess.Popen[bytes]:
        self.log_offset = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                self.argv,
                cwd=self.directory,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def _signal_number(name: str | int) -> signal.Signals:
    return signal.Signals[name] if isinstance(name, str) else signal.Signals(name)


@pytest.fixture(params=["celery_redis_broker", "celery_rabbitmq_broker"])
def celery_broker(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each test runs on both brokers, in a fixed order: pytest-celery's own set has none, which breaks pytest-xdist."""
    broker = request.getfixturevalue(request.param)
    yield broker
    broker.teardown()


if not USES_CONTAINERS:

    @pytest.fixture
    def default_redis_broker(redis_server: RedisServer) -> RedisNode:
        return _clean_redis_node(redis_server, database=0)

    @pytest.fixture
    def default_redis_backend(redis_server: RedisServer) -> RedisNode:
        return _clean_redis_node(redis_server, database=1)

    @pytest.fixture
    def default_rabbitmq_broker(rabbitmq_url: str) -> RabbitMQNode:
        return RabbitMQNode(rabbitmq_url)

    @pytest.fixture
    def default_worker_container_cls() -> type[WorkerNode]:
        return type("IsolatedWorkerNode", (WorkerNode,), {"isolation": isolation_settings()})

    @pytest.fixture
    def celery_setup_config(
        celery_setup_cls: type[CeleryTestSetup],
        celery_worker_cluster_config: dict[str, Any],
        default_worker_container_cls: type[WorkerNode],
    ) -> Iterator[dict[str, Any]]:
        config = celery_setup_cls.config(celery_worker_cluster_config=celery_worker_cluster_config)
        isolation = default_worker_container_cls.isolation
        yield {**config, **isolation}
        if config["broker_url"].startswith("amqp"):
            delete_isolated(config["broker_url"], isolation)

    @pytest.fixture
    def default_worker_app(celery_setup_app: Celery, default_worker_container_cls: type[WorkerNode]) -> Celery:
        # pytest-celery carries over to the worker what was set by hand, and not what came as a configuration object.
        celery_setup_app.conf.update(default_worker_container_cls.isolation)
        return celery_setup_app

    @pytest.fixture
    def default_worker_command(default_worker_container_cls: type[WorkerNode]) -> list[str]:
        command: list[str] = default_worker_container_cls.command("--without-mingle", "--without-gossip", "-c", "2")
        return command

    @pytest.fixture
    def default_worker_container(
        default_worker_container_cls: type[WorkerNode],
        default_worker_command: list[str],
        default_worker_env: dict[str, str],
        default_worker_initial_content: dict[str, bytes],
        tmp_path: Path,
    ) -> Iterator[WorkerNode]:
        directory = tmp_path / "worker"
        for name, body in default_worker_initial_content.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
        env = {**default_worker_env, "PYTHONPATH": os.pathsep.join([str(directory), str(ROOT)])}
        node = default_worker_container_cls(default_worker_command, directory, env)
        try:
            node.ready()
            yield node
        finally:
            node.teardown()


def _clean_redis_node(server: RedisServer, database: int) -> RedisNode:
    server.start()
    with server.client(database) as client:
        client.flushdb()
    return RedisNode(server, database)
