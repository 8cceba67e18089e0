"""What goes wrong with messages: lost between broker and worker, redelivered while they are executed, given up."""

from __future__ import annotations

from collections.abc import Callable

from durable_celery.events import TimerFired, TimerStarted
from tests.chaos.conftest import worker_with
from tests.chaos.limited_worker import limit_deliveries
from tests.chaos.proxy import TcpProxy
from tests.servers import RedisServer
from tests.sites import Site, check_history
from tests.waiting import wait_until

#: kombu takes a message that is unacknowledged for a second for lost, and looks each second.
SHORT_VISIBILITY = {"visibility_timeout": 1, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}


def test_a_message_that_is_popped_and_never_reaches_the_worker_comes_again(
    make_site: Callable[..., Site], own_server: RedisServer
) -> None:
    site = make_site(broker=own_server.url)
    with TcpProxy(own_server.url) as proxy, site:
        worker_with(site, {"broker_url": proxy.url(own_server.url)})
        # The server has taken the message off its list, and nothing of kombu's knows of it.
        lost = proxy.cut_reply(reply=b"sequence")
        handle = site.start("sequence", str(site.directory), 3)

        assert handle.get(timeout=60) == [0, 10, 20]
        assert lost.is_set()
    check_history(handle)


def test_a_step_that_is_redelivered_while_it_runs_is_executed_once(make_site: Callable[..., Site]) -> None:
    site = make_site(broker_transport_options=SHORT_VISIBILITY, task_acks_late=True)
    workers = [site.worker(concurrency=2), site.worker(concurrency=2)]
    handle = site.start("held", str(site.directory), "step")
    site.wait_for_notes("step.began", 1)

    # kombu gives the message out again, as it does with any task that takes longer than its timeout.
    received = f"Task hold[{handle.id}/1.2] received"
    wait_until(lambda: sum(worker.log.count(received) for worker in workers) >= 2, 60, site.story)
    site.release("step")

    assert handle.get(timeout=60) == [1, 1, 2]
    assert len(site.notes("step.began")) == 1
    check_history(handle)


def test_a_durable_timer_longer_than_the_visibility_timeout_fires_once(make_site: Callable[..., Site]) -> None:
    site = make_site(broker_transport_options=SHORT_VISIBILITY)
    for _ in range(2):
        site.worker()

    assert site.start("nap", 4.0, task_id="nap").get(timeout=60) >= 4.0

    events = [item.event for item in site.app.tasks["nap"].binding.client.history("nap")]
    assert [type(event) for event in events].count(TimerStarted) == 1
    assert [type(event) for event in events].count(TimerFired) == 1


def test_a_queue_that_gives_up_a_message_after_few_deliveries_loses_no_run(
    make_site: Callable[..., Site], rabbitmq_url: str
) -> None:
    """A quorum queue drops a message that was redelivered too often; the agenda does not count like that."""
    site = make_site(broker=rabbitmq_url, durable_lost_attempts=20)
    limit_deliveries(site.app)
    worker = site.worker(concurrency=1, app="tests.chaos.limited_worker")
    handle = site.start("held_local", str(site.directory), "local")

    for times in (1, 2, 3):
        site.wait_for_notes("local.began", times)
        # Each delivery ends with the death of its worker; the third would be one more than the queue gives.
        worker.kill()
        worker.start()
    site.wait_for_notes("local.began", 4)
    site.release("local")

    assert handle.get(timeout=60)[1] == 2
    check_history(handle)
