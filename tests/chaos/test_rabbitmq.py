"""RabbitMQ is killed while messages are published, and ends channels that hold a message for too long.

The server is the test's own, so these tests need RabbitMQ's programs and take long: they run with `make chaos`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers import broker_answers, free_port
from tests.sites import Site, check_history
from tests.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]


class RabbitServer:
    """A RabbitMQ process with a data directory of its own."""

    def __init__(self, directory: Path, config: str = "") -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "rabbitmq.conf").write_text(config)
        self.port = free_port()
        own = {
            "NODENAME": f"t{self.port}@localhost", "NODE_PORT": self.port, "NODE_IP_ADDRESS": "127.0.0.1",
            "DIST_PORT": free_port(), "MNESIA_BASE": directory / "db", "LOG_BASE": directory / "log",
            "ENABLED_PLUGINS_FILE": directory / "plugins", "CONFIG_FILE": directory / "rabbitmq",
            "USER": os.environ.get("USER", "root"),
        }  # fmt: skip
        self.env = {**os.environ, **{f"RABBITMQ_{name}": str(value) for name, value in own.items()}}
        self.env |= {"HOME": str(directory), "ERL_EPMD_PORT": "24369"}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self) -> None:
        program = shutil.which("rabbitmq-server", path=f"/usr/lib/rabbitmq/bin:{os.environ['PATH']}")
        if program is None:
            pytest.skip("no rabbitmq-server here to be killed")
        with (self.directory / "server.log").open("ab") as log:
            self.process = subprocess.Popen([program], env=self.env, stdout=log, stderr=log, start_new_session=True)
        wait_until(lambda: broker_answers(self.url), 120, (self.directory / "server.log").read_text)

    def kill(self) -> None:
        """End the whole group: the start script, the runtime and its helpers."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def rabbit(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RabbitServer]:
    server = RabbitServer(tmp_path / "rabbit", getattr(request, "param", ""))
    server.start()
    yield server
    server.kill()


@pytest.mark.parametrize("confirm", [True, False])
def test_a_broker_that_is_killed_while_it_takes_messages_costs_no_run(
    make_site: Callable[..., Site], rabbit: RabbitServer, confirm: bool
) -> None:
    site = make_site(broker=rabbit.url, broker_transport_options={"confirm_publish": confirm})
    site.worker()
    handles = [site.start("sequence", str(site.directory), 5, 0.02) for _ in range(20)]

    for progress in (10, 40):
        site.wait_for_notes("effects", progress)
        rabbit.kill()
        rabbit.start()
    site.wait_all(handles, timeout=200, tend=site.supervise)

    for handle in handles:
        check_history(handle)


@pytest.mark.parametrize("rabbit", ["consumer_timeout = 5000\n"], indirect=True)
def test_a_channel_that_the_broker_ends_for_a_long_task_costs_no_run(
    make_site: Callable[..., Site], rabbit: RabbitServer
) -> None:
    """A worker of Celery ends when its channel is closed on it; it is started again, as its supervisor would."""
    site = make_site(broker=rabbit.url)
    site.worker()
    handle = site.start("held_local", str(site.directory), "local")
    site.wait_for_notes("local.began", 1)

    # RabbitMQ looks each minute at what is unacknowledged.
    wait_until(lambda: "delivery acknowledgement on channel" in site.workers[0].log, 120, site.story)
    site.release("local")
    site.wait_all([handle], timeout=120, tend=site.supervise)

    assert handle.get(timeout=10)[1] == 2
    check_history(handle)
