"""A RabbitMQ of one's own, to be killed and started again; only where the server is installed on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Self

from tests.servers import broker_answers, free_port
from tests.waiting import wait_until

#: Where Debian keeps the program itself; what stands on PATH there is a wrapper that changes the user.
_DEBIAN = "/usr/lib/rabbitmq/bin/rabbitmq-server"
#: Seconds in which the server has to answer; Erlang takes its time on a busy machine.
START_TIMEOUT = 120.0


def rabbitmq_binary() -> str | None:
    """Return the server program, or None where there is none."""
    chosen = os.environ.get("DURABLE_TEST_RABBITMQ_SERVER")
    return chosen or (_DEBIAN if Path(_DEBIAN).exists() else shutil.which("rabbitmq-server"))


class RabbitMQServer:
    """One RabbitMQ node on a free port; its data outlives the process.

    Args:
        directory: Where data, configuration and log go; made when missing.
        config: Lines of `rabbitmq.conf`.
    """

    def __init__(self, directory: Path, *, config: str = "") -> None:
        self.directory, self.config = directory, config
        self.port, self._distribution_port, self._epmd_port = free_port(), free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of the default virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What the server has written, over all its starts."""
        path = self.directory / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> Self:
        """Start the process and wait until it lets us in. Does nothing while it runs.

        Raises:
            RuntimeError: No such program, or it ended at once.
        """
        if self.is_running:
            return self
        if (binary := rabbitmq_binary()) is None:
            raise RuntimeError("no rabbitmq-server on this machine")
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "rabbitmq.conf").write_text(self.config)
        (self.directory / "enabled_plugins").write_text("[].")
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [binary], cwd=self.directory, env=self._env(), stdout=log, stderr=log, start_new_session=True
            )
        if wait_until(self._news, START_TIMEOUT, lambda: self.log) == "ended":
            raise RuntimeError(f"{binary} ended while it was started:\n{self.log}")
        return self

    def kill(self) -> None:
        """End the process with SIGKILL, as a crash does. May be repeated."""
        if self._process is None:
            return
        if self.is_running:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """End the process, and Erlang's port mapper that came with it. May be repeated."""
        self.kill()
        if self._process is not None and (epmd := shutil.which("epmd")) is not None:
            # It refuses until it has noticed that its node is gone.
            wait_until(lambda: self._mapper_ends(epmd), message="the end of epmd")
        self._process = None

    def _news(self) -> str:
        if not self.is_running:
            return "ended"
        return "answers" if broker_answers(self.url) else ""

    def _mapper_ends(self, epmd: str) -> bool:
        answer = subprocess.run([epmd, "-kill"], env=self._env(), check=False, capture_output=True)
        return answer.returncode == 0 or b"annot connect" in answer.stdout + answer.stderr

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _env(self) -> dict[str, str]:
        names = {
            "NODENAME": f"test{self.port}@localhost",
            "NODE_PORT": self.port,
            "NODE_IP_ADDRESS": "127.0.0.1",
            "DIST_PORT": self._distribution_port,
            "MNESIA_BASE": self.directory / "data",
            "LOG_BASE": self.directory / "log",
            "ENABLED_PLUGINS_FILE": self.directory / "enabled_plugins",
            "CONFIG_FILE": self.directory / "rabbitmq",
            # One core is enough, and not spinning leaves the machine to the workers.
            "SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none",
        }
        own = {f"RABBITMQ_{name}": str(value) for name, value in names.items()}
        return {**os.environ, **own, "HOME": str(self.directory), "ERL_EPMD_PORT": str(self._epmd_port)}
