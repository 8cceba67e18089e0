"""One Redis server and one worker for all tests here, and ways to drive them from other processes."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.servers import RedisServer
from tests.workers import ROOT, CeleryWorker

#: What a producer that does not know the library needs, and nothing more.
STRANGER = """
import sys
from celery import Celery
app = Celery(broker="{broker}", backend="{backend}")
{script}
assert not any(name.startswith("durable") for name in sys.modules)
"""


@pytest.fixture(scope="session")
def shop_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    directory = tmp_path_factory.mktemp("shop-redis")
    with RedisServer(directory, aof="everysec", extra_args=("--maxmemory-policy", "noeviction")) as server:
        yield server


def shop_env(server: RedisServer, *, backend: bool = True, first: int = 0) -> dict[str, str]:
    """Return what `tests.celery.shop` reads; each set-up has three databases, from ``first``."""
    return {
        "SHOP_WORKER": "1",
        "SHOP_BROKER": server.database_url(first + 1),
        "SHOP_BACKEND": server.database_url(first + 2) if backend else "",
        "SHOP_STORE": server.database_url(first),
    }


@pytest.fixture(scope="session")
def shop_worker(shop_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CeleryWorker]:
    """Run the worker that most tests share."""
    env = shop_env(shop_server)
    directory = tmp_path_factory.mktemp("shop-worker")
    with CeleryWorker("tests.celery.shop", directory, queues=("celery", "side"), env=env) as worker:
        yield worker


@pytest.fixture(scope="session")
def configured_shop(shop_server: RedisServer) -> ModuleType:
    from tests.celery import shop

    env = shop_env(shop_server)
    shop.app.conf.update(
        broker_url=env["SHOP_BROKER"], result_backend=env["SHOP_BACKEND"], durable_store=env["SHOP_STORE"]
    )
    return shop


@pytest.fixture
def shop(configured_shop: ModuleType, shop_worker: CeleryWorker) -> Iterator[ModuleType]:
    """Give the app's module, with its worker running; a failing test shows the end of the worker's log."""
    yield configured_shop
    # Else the message of a result that this test did not wait for is met by the next test that waits for one.
    configured_shop.app.backend.result_consumer.stop()
    del configured_shop.app._local.backend
    print("\n".join(shop_worker.log.splitlines()[-60:]))  # noqa: T201


@pytest.fixture
def key() -> str:
    """Give a name that no other test has."""
    return uuid.uuid4().hex


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Give a function that runs a script in a process of its own and returns what it printed."""

    def run(script: str, cwd: Path = ROOT, **env: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.fixture
def stranger(run_python: Callable[..., str], shop_server: RedisServer) -> Callable[[str], str]:
    """Give a function that runs a script against a plain ``Celery()`` that knows nothing of this library."""
    env = shop_env(shop_server)

    def run(script: str) -> str:
        return run_python(STRANGER.format(broker=env["SHOP_BROKER"], backend=env["SHOP_BACKEND"], script=script))

    return run
