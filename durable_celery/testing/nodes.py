"""The pytest plugin for tests with real workers: pytest-celery on local processes in the place of containers.

In the ``conftest.py`` at the root::

    pytest_plugins = ["durable_celery.testing.nodes"]

``durable_worker`` is a real ``celery worker`` of the app under test, on a Redis of the test session's own or on the
broker that the setting ``durable_broker`` names; the app in the test's process is led to the same servers meanwhile.
pytest-celery's ``celery_setup`` works as well without a container engine: its nodes are processes too.

It needs the extra ``nodes``. Nothing here is loaded unless a test suite asks for it.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from durable_celery.app import Binding, bound
from durable_celery.testing.containers import DurableWorker, RedisNode, ServerNode, WorkerNode
from durable_celery.testing.processes import Process, RedisProcess
from durable_celery.testing.replayer import places_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from celery import Celery

__all__ = [
    "DurableSite",
    "DurableWorker",
    "RedisNode",
    "ServerNode",
    "WorkerNode",
    "default_redis_backend",
    "default_redis_broker",
    "default_worker_command",
    "default_worker_container",
    "durable_redis",
    "durable_site",
    "durable_worker",
    "start_durable_worker",
]

#: Lines of a worker's log that a failing test shows.
_LOG_TAIL = 60
#: They only cost seconds at the start: no test asks other workers for their clocks.
_QUICK = ("--without-mingle", "--without-gossip")


@dataclass(frozen=True, slots=True, kw_only=True)
class DurableSite:
    """The app under test and the servers that it and its workers use."""

    app: Celery
    #: Where the app is, as ``celery -A`` takes it.
    place: str
    #: URL of the broker.
    broker: str
    #: URL of the store, or empty: then it is what the app's settings say.
    store: str = ""
    #: URL of the result backend, or empty: then it is what the app's settings say.
    backend: str = ""

    @property
    def env(self) -> dict[str, str]:
        """The variables by which Celery gets other servers than the app's settings name."""
        given = {"CELERY_BROKER_URL": self.broker, "CELERY_RESULT_BACKEND": self.backend}
        return {name: url for name, url in given.items() if url}

    def command(self, *words: str) -> list[str]:
        """Return the command line of a worker."""
        settings = [f"durable_store=(string){self.store}"] if self.store else []
        worker = ["worker", "-l", "INFO", *_QUICK, *words, *settings]
        return [sys.executable, "-m", "celery", "-A", self.place, *worker]

    @contextmanager
    def joined(self) -> Generator[None]:
        """Lead the app in this process to the site's servers, for a while."""
        app: Any = self.app
        with ExitStack() as back, pytest.MonkeyPatch.context() as patch:
            for name, url in self.env.items():
                patch.setenv(name, url)
            if self.store:
                patch.setitem(app.conf, "durable_store", self.store)
            # Connections to other servers; Celery makes new ones when these are missing.
            patch.setattr(app, "_pool", None)
            patch.setattr(app.amqp, "_producer_pool", None)
            patch.setattr(app, "_backend_cache", None)
            patch.delattr(app._local, "backend", raising=False)  # noqa: SLF001 - where Celery keeps it per thread
            back.enter_context(bound(Binding(app)))
            yield


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the setting."""
    parser.addini(
        "durable_broker",
        "URL of a broker that runs, for durable_worker; it is never emptied. Without it each session starts a Redis",
    )


# -- real workers of the app under test --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def durable_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    """Give the Redis of this test session. It is started at first use, and a test may kill and start it."""
    server = RedisProcess(tmp_path_factory.mktemp("durable-redis"))
    yield server
    server.stop()


@pytest.fixture
def durable_site(request: pytest.FixtureRequest, durable_app: Celery | None) -> Iterator[DurableSite]:
    """Give the app under test on the servers of this test; the app is led there until the test ends."""
    if durable_app is None:
        pytest.fail("name the app under test: the setting durable_app of pytest, or the fixture durable_app")
    setting = str(request.config.getini("durable_app"))
    place = setting or next(iter(places_of(durable_app)), "")
    if not place:
        pytest.fail(f"{durable_app} stands in no module, so no worker can load it: use the setting durable_app")
    broker = str(request.config.getini("durable_broker"))
    if broker:
        site = DurableSite(app=durable_app, place=place, broker=broker)
    else:
        server: RedisProcess = request.getfixturevalue("durable_redis")
        server.start().flush()
        backend = server.url(1) if durable_app.conf.result_backend else ""
        site = DurableSite(app=durable_app, place=place, broker=server.url(), store=server.url(), backend=backend)
    with site.joined():
        yield site


@pytest.fixture
def start_durable_worker(
    request: pytest.FixtureRequest, durable_site: DurableSite, tmp_path: Path
) -> Iterator[Callable[..., DurableWorker]]:
    """Give a function that starts a worker: ``start(*words, env=None)``, with more words for its command line.

    Its working directory is the root of the test run, so that it imports what ``celery worker`` would import there.
    """
    workers: list[DurableWorker] = []

    def start(*words: str, env: dict[str, str] | None = None) -> DurableWorker:
        name = f"durable-{len(workers) + 1}"
        command = durable_site.command("-n", f"{name}@%h", *(words or ("-c", "2")))
        paths = [str(request.config.rootpath), *(path or str(Path.cwd()) for path in sys.path)]
        environment = {"PYTHONPATH": os.pathsep.join(paths), **durable_site.env, **(env or {})}
        node = WorkerNode(Process(command, tmp_path / name, env=environment).start())
        worker = DurableWorker(node, durable_site.app)
        workers.append(worker)
        node.ready()
        return worker

    yield start
    for worker in workers:
        worker.teardown()
        tail = "\n".join(worker.logs().splitlines()[-_LOG_TAIL:])
        # Captured by pytest: seen only when the test fails.
        print(f"--- log of {worker.name()}\n{tail}")  # noqa: T201


@pytest.fixture
def durable_worker(start_durable_worker: Callable[..., DurableWorker]) -> DurableWorker:
    """Give a real worker of the app under test, ready."""
    return start_durable_worker()


# -- pytest-celery's own fixtures, on processes ------------------------------------------------------------------------


@pytest.fixture
def default_redis_broker(durable_redis: RedisProcess) -> RedisNode:
    """Give a database of the session's Redis, emptied, in the place of a container."""
    durable_redis.start().flush(0)
    return RedisNode(durable_redis, 0)


@pytest.fixture
def default_redis_backend(durable_redis: RedisProcess) -> RedisNode:
    """Give another database of the session's Redis, emptied, in the place of a container."""
    durable_redis.start().flush(1)
    return RedisNode(durable_redis, 1)


@pytest.fixture
def default_worker_command(default_worker_container_cls: Any) -> list[str]:
    """Give the command line of pytest-celery's worker."""
    command: list[str] = default_worker_container_cls.command(*_QUICK, "-c", "2")
    return command


@pytest.fixture
def default_worker_container_cls() -> type[WorkerNode]:
    """Give the class of worker nodes."""
    return WorkerNode


@pytest.fixture
def default_worker_container(
    default_worker_container_cls: type[WorkerNode],
    default_worker_command: list[str],
    default_worker_env: dict[str, str],
    default_worker_initial_content: dict[str, bytes],
    tmp_path: Path,
) -> Iterator[WorkerNode]:
    """Give a worker process in the place of a container, with the files that the container would have."""
    directory = tmp_path / "worker"
    for name, body in default_worker_initial_content.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    paths = [str(directory), *(path or str(Path.cwd()) for path in sys.path)]
    env = {**default_worker_env, "PYTHONPATH": os.pathsep.join(paths)}
    node = default_worker_container_cls(
        Process([sys.executable, "-m", *default_worker_command], directory, env=env).start()
    )
    try:
        node.ready()
        yield node
    finally:
        node.teardown()
