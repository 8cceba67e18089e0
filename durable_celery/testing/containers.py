"""Processes in the place of pytest-celery's containers: servers, and real workers.

pytest-celery asks a container only for what these nodes have; its base classes are kept for their ``isinstance`` checks
and class methods, without their constructors, which want a container engine.
"""

# The base classes are untyped: what pyright infers for their methods is narrower than what callers pass.
# pyright: reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false, reportMissingSuperCall=false

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from pytest_celery import CeleryTestContainer, CeleryTestWorker, CeleryWorkerContainer

from durable_celery.app import binding_of
from durable_celery.testing.processes import wait_until

if TYPE_CHECKING:
    from durable_celery.handle import WorkflowHandle
    from durable_celery.store.protocol import RunRecord
    from durable_celery.testing.processes import Process, RedisProcess

__all__ = ["DurableWorker", "RedisNode", "ServerNode", "WorkerNode"]

#: Seconds for a worker to become ready on a busy machine, and for a run to get somewhere.
PATIENCE = 60.0


class ServerNode(CeleryTestContainer):
    """A server that was there before us in the place of a container: it is never stopped."""

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def name(self) -> str:
        """What pytest-celery calls it."""
        return self.url.partition(":")[0]

    @property
    def id(self) -> str:
        """The same: there is no container."""
        return self.name

    @property
    def status(self) -> str:
        """In a container's words."""
        return "running"

    @property
    def celeryconfig(self) -> dict[str, str]:
        """Where it is, for the worker and for the test."""
        return {"url": self.url, "host_url": self.url}

    def ready(self) -> bool:
        """Whether it can be used."""
        return True

    def logs(self) -> str:
        """Nothing: the log is somebody else's."""
        return ""

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Refuse."""
        raise NotImplementedError("this server belongs to others: a test must not end it")

    def restart(self, timeout: float = 10) -> None:
        """Refuse."""
        raise NotImplementedError("this server belongs to others: a test must not restart it")

    def reload(self) -> None:
        """Do nothing: a process has no stale description to read again."""

    def teardown(self) -> None:
        """Leave it to its owner."""


class RedisNode(ServerNode):
    """A database of the session's own Redis in the place of a container; the server outlives the node."""

    def __init__(self, server: RedisProcess, database: int = 0) -> None:
        super().__init__(server.url(database))
        self.server = server

    @property
    def status(self) -> str:
        """In a container's words."""
        return "running" if self.server.is_running else "exited"

    def ready(self) -> bool:
        """Start the server, should it not run."""
        self.server.start()
        return True

    def logs(self) -> str:
        """Return what the server has written since its latest start."""
        return self.server.log

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send a signal to the server."""
        self.server.kill(_signal_number(signal))

    def restart(self, timeout: float = 10) -> None:
        """Stop the server in good order and start it again, with its data."""
        self.server.stop(timeout)
        self.server.start()


class WorkerNode(CeleryWorkerContainer):
    """A worker process in the place of a container, in a process group of its own."""

    def __init__(self, process: Process) -> None:
        self.process = process

    @property
    def pid(self) -> int:
        """The process id of the worker's main process."""
        return self.process.pid

    @property
    def name(self) -> str:
        """What pytest-celery calls it."""
        return f"worker-{self.process.pid}"

    @property
    def id(self) -> str:
        """The same: there is no container."""
        return f"worker{self.process.pid}"

    @property
    def status(self) -> str:
        """In a container's words."""
        return "running" if self.process.is_running else "exited"

    @property
    def celeryconfig(self) -> dict[str, str]:
        """Nothing: nobody connects to a worker."""
        return {}

    def ready(self) -> bool:
        """Wait until the worker consumes."""
        self.process.wait_ready(lambda: " ready." in self.logs(), PATIENCE)
        return True

    def logs(self) -> str:
        """Return what the worker has written since its latest start."""
        return self.process.log

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send a signal to the worker and all its pool children."""
        self.process.kill(_signal_number(signal))

    def restart(self, timeout: float = 10) -> None:
        """End the worker, if it runs, and start it again."""
        self.process.stop(timeout)
        self.process.start()
        self.ready()

    def reload(self) -> None:
        """Do nothing: a process has no stale description to read again."""

    def teardown(self) -> None:
        """End the worker."""
        self.process.stop()

    def exec_run(self, cmd: str, **_options: Any) -> tuple[int, bytes]:
        """Run a command beside the worker, as ``docker exec`` would inside the container."""
        words = shlex.split(cmd)
        if words[0] == "python":
            words[0] = sys.executable
        environment, directory = self.process.environment, self.process.directory
        done = subprocess.run(words, cwd=directory, env=environment, capture_output=True, check=False)
        return done.returncode, done.stdout


class DurableWorker(CeleryTestWorker):
    """A real worker of the app under test.

    From pytest-celery it has ``kill()``, ``restart()``, ``logs()``, ``wait_for_log(text)`` and
    ``assert_log_exists(text)``.
    """

    container: WorkerNode

    @property
    def pid(self) -> int:
        """The process id of the worker's main process."""
        return self.container.pid

    @property
    def is_running(self) -> bool:
        """Whether the worker's main process lives."""
        return self.container.process.is_running

    def wait_for_run(
        self, run: WorkflowHandle[Any] | str, until: str = "completed", timeout: float = PATIENCE
    ) -> RunRecord:
        """Wait until a run has a status, or waits for something, and return its record.

        Args:
            run: its handle or its id.
            until: a status (``completed``, ``failed``, ``cancelled``, ``blocked``), or a part of what the run waits
                for, as ``durable list`` shows it: ``"signal approve"``, ``"step shop.charge"``, ``"timer"``.
            timeout: seconds.

        Raises:
            AssertionError: it did not happen; the message has the run's record and the worker's log.
        """
        workflow_id = run if isinstance(run, str) else str(run.id)
        store = binding_of(self.app).client.store

        def is_there() -> bool:
            record = store.get(workflow_id)
            return record is not None and (until == record.status or until in record.waiting)

        wait_until(is_there, timeout, lambda: f"{until!r} of run {store.get(workflow_id)}; the worker:\n{self.logs()}")
        record = store.get(workflow_id)
        assert record is not None  # noqa: S101 - it was there just now
        return record


def _signal_number(name: str | int) -> signal.Signals:
    return signal.Signals[name] if isinstance(name, str) else signal.Signals(name)
