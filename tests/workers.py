"""A real Celery worker as a process group of its own, to be watched, stopped and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, Self

from tests.waiting import wait_until

Pool = Literal["prefork", "threads", "solo", "gevent"]

#: The root of the checkout: on the import path of every worker.
ROOT = Path(__file__).resolve().parent.parent


class CeleryWorker:
    """`celery -A app worker` in its own session, so that a signal reaches parent and pool children at once.

    Args:
        app: What follows `-A`: a module, or `module:attribute`.
        directory: Where the log goes; also on the worker's import path. Made when missing.
        pool: The pool of the worker.
        concurrency: Children, threads or greenlets.
        queues: The queues to consume; the app's default queue when empty.
        name: The part of the node name before the `@`; a new one for each worker when left out.
        env: Variables on top of the environment of the test run.
        cwd: Working directory; `directory` when left out.
        args: More words for the command line.
        loglevel: The worker's log level.
    """

    def __init__(
        self,
        app: str,
        directory: Path,
        *,
        pool: Pool = "prefork",
        concurrency: int = 2,
        queues: Iterable[str] = (),
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        args: Iterable[str] = (),
        loglevel: str = "INFO",
    ) -> None:  # fmt: skip
        self.app = app
        self.name = name or f"worker-{uuid.uuid4().hex[:8]}"
        self.directory = directory
        self.cwd = cwd or directory
        self.log_path = directory / f"{self.name}.log"
        self.pool: Pool = pool
        self.command = [
            *(sys.executable, "-m", "celery", "-A", app, "worker"),
            *("-P", pool, "-c", str(concurrency), "-n", f"{self.name}@%h", "-l", loglevel),
            # They only cost seconds at the start: no test asks other workers for their clocks.
            *("--without-mingle", "--without-gossip"),
            *(("-Q", ",".join(queues)) if queues else ()),
            *args,
        ]
        paths = [str(self.cwd), str(directory), str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._log_offset = 0

    @property
    def pid(self) -> int:
        """The process id of the worker's parent process, also after its end."""
        if self._process is None:
            raise RuntimeError(f"worker {self.name} was never started")
        return self._process.pid

    @property
    def child_pids(self) -> list[int]:
        """The process ids of the living pool children (of prefork; other pools have none)."""
        return children_of(self.pid)

    def cpu_seconds(self) -> float:
        """Return the seconds of CPU that the parent and its living children have used."""
        seconds = 0.0
        for pid in (self.pid, *self.child_pids):
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return seconds

    @property
    def is_running(self) -> bool:
        """Whether the parent process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How the parent process ended: negative for a signal, None while it lives."""
        return None if self._process is None else self._process.poll()

    @property
    def log(self) -> str:
        """All that the worker has written since its latest start."""
        if not self.log_path.exists():
            return ""
        return self.log_path.read_bytes()[self._log_offset :].decode(errors="replace")

    def start(self, *, wait: bool = True) -> Self:
        """Start the process; unless told otherwise, wait until it is ready. May be repeated after its end."""
        if self.is_running:
            raise RuntimeError(f"worker {self.name} is running already")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._log_offset = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command, cwd=self.cwd, env=self.env, stdout=log, stderr=log, start_new_session=True
            )
        return self.wait_ready() if wait else self

    def wait_ready(self, timeout: float = 40.0) -> Self:
        """Wait until the log says that the worker consumes.

        Raises:
            RuntimeError: The worker ended instead; the message carries its log.
        """
        wait_until(
            lambda: " ready." in self.log or not self.is_running,
            timeout,
            lambda: f"worker {self.name} to be ready; its log:\n{self.log}",
        )
        if not self.is_running:
            raise RuntimeError(f"worker {self.name} ended with {self.exit_code}; its log:\n{self.log}")
        return self

    def wait_for_log(self, text: str, timeout: float = 20.0) -> Self:
        """Wait until the log since the latest start contains the text."""
        wait_until(lambda: text in self.log, timeout, lambda: f"{text!r} in the log:\n{self.log}")
        return self

    def kill(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the parent and all its children. After SIGKILL, wait for the end.

        SIGSTOP and SIGCONT make a zombie of the whole worker and let it go on. May be repeated.
        """
        if self._process is None:
            return
        try:
            os.killpg(self._process.pid, sig)
        except ProcessLookupError:
            return
        if sig == signal.SIGKILL:
            self._process.wait()

    def kill_child(self, sig: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to one pool child, the oldest, and return its process id."""
        pid = min(wait_until(lambda: self.child_pids, message=f"pool children of {self.name}"))
        os.kill(pid, sig)
        return pid

    def wait(self, timeout: float = 20.0) -> int:
        """Wait for the end of the parent process and return its exit code."""
        if self._process is None:
            raise RuntimeError(f"worker {self.name} was never started")
        return self._process.wait(timeout)

    def stop(self, timeout: float = 15.0) -> None:
        """Shut down warmly (SIGTERM to the parent); after the timeout kill the whole group. May be repeated."""
        if self._process is None:
            return
        if self.is_running:
            self.kill(signal.SIGCONT)
            self._process.terminate()
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
        # Children outlive a parent that was killed alone.
        self.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def children_of(pid: int) -> list[int]:
    """Return the process ids of the direct children that live, in rising order; Linux only."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The command name, in parentheses, may itself contain anything.
            state, parent, *_ = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended between the listing and the reading
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return sorted(found)
