"""RabbitMQ is killed while messages are published, and ends channels that hold a message for too long.

The server is the test's own, so these tests need RabbitMQ's programs and take long: they run with `make chaos`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.rabbitmq import RabbitMQServer, rabbitmq_binary
from tests.servers import require_service
from tests.sites import Site, check_history
from tests.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]


@pytest.fixture
def rabbit(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RabbitMQServer]:
    require_service("RabbitMQ", lambda: rabbitmq_binary() is not None, "install rabbitmq-server: these tests kill one")
    with RabbitMQServer(tmp_path / "rabbit", config=getattr(request, "param", "")) as server:
        yield server


@pytest.mark.parametrize("confirm", [True, False])
def test_a_broker_that_is_killed_while_it_takes_messages_costs_no_run(
    make_site: Callable[..., Site], rabbit: RabbitMQServer, confirm: bool
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
    make_site: Callable[..., Site], rabbit: RabbitMQServer
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
