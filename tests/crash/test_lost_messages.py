"""The broker is only a hint: what it loses comes again from the agenda."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import redis
from kombu.connection import Connection

from durable_celery.events import StepCompleted, StepScheduled
from tests.servers import delete_from_rabbitmq
from tests.sites import Site, check_history
from tests.waiting import wait_until

#: What a test waits for a message that is sent again, in place of the default of 10 s.
RESEND = {"durable_resend_after": 2.0, "durable_resend_limit": 4.0}


def test_all_runs_complete_when_the_broker_is_emptied_in_mid_flight(
    make_site: Callable[..., Site], broker: str
) -> None:
    site = make_site(broker=broker, **RESEND)
    site.worker()
    handles = [site.start("sequence", str(site.directory), 4, 0.02) for _ in range(20)]

    lost = 0
    for progress in (5, 20, 40):
        site.wait_for_notes("effects", progress)
        lost += lose_everything(broker, site.queue)
    site.wait_all(handles, timeout=80)

    assert lost > 0
    for handle in handles:
        check_history(handle)
        assert handle.get(timeout=1) == [0, 10, 20, 30]


def test_a_lost_step_message_is_sent_again_in_time(make_site: Callable[..., Site], broker: str) -> None:
    site = make_site(broker=broker, **RESEND)
    steps = f"{site.config['task_default_queue']}-steps"
    site.config["task_routes"] = {"effect": {"queue": steps}}
    try:
        site.worker(queues=[site.queue])
        handle = site.start("sequence", str(site.directory), 1)
        wait_until(lambda: waiting_in(broker, steps) == 1, 40, site.story)

        assert lose_queue(broker, steps) == 1
        site.worker(queues=[steps])

        assert handle.get(timeout=40) == [0]
    finally:
        if broker.startswith("amqp"):
            delete_from_rabbitmq(broker, queues=[steps], exchanges=[steps])
    times = {type(item.event): item.at for item in handle.history()}
    # The wait, a look at the agenda, and room for the start of the second worker.
    assert 2_000 <= times[StepCompleted] - times[StepScheduled] <= 12_000
    assert [attempt for _, attempt, _ in site.notes("effects")] == [1]


def test_a_lost_start_message_is_sent_again(make_site: Callable[..., Site], broker: str) -> None:
    site = make_site(broker=broker, **RESEND)
    handle = site.start("sequence", str(site.directory), 2)

    assert lose_queue(broker, site.queue) == 1
    site.worker()

    assert handle.get(timeout=40) == [0, 10]


def test_a_long_queue_is_not_sent_again(make_site: Callable[..., Site], broker: str) -> None:
    """Each message waits longer than `resend_after`; those that arrive have waited as long."""
    site = make_site(broker=broker, durable_resend_after=0.5, durable_resend_limit=60.0)
    worker = site.worker(concurrency=1)
    handles = [site.start("sequence", str(site.directory), 1, 0.1) for _ in range(60)]
    site.wait_all(handles, timeout=80)

    received = Counter(re.findall(r"Task (?:sequence|effect)\[(.*?)\] received", worker.log))
    assert len(received) == 2 * len(handles)
    # Sent again whenever the agenda could, they would come twice on average, and the queue would grow by that.
    assert received.total() < 1.5 * len(received)


def lose_everything(broker: str, queue: str) -> int:
    """Empty the broker: the whole database of Redis, the queue on RabbitMQ; return how many messages were waiting."""
    waiting = waiting_in(broker, queue)
    if broker.startswith("amqp"):
        return lose_queue(broker, queue)
    client: Any = redis.Redis.from_url(broker)
    with client:
        client.flushdb()
    return waiting


def lose_queue(broker: str, queue: str) -> int:
    """Delete the messages that wait in a queue and return how many there were."""
    with Connection(broker) as connection, connection.channel() as channel:
        return int(channel.queue_purge(queue) or 0)


def waiting_in(broker: str, queue: str) -> int:
    """Return how many messages wait in a queue; a missing queue has none."""
    with Connection(broker) as connection:
        try:
            with connection.channel() as channel:
                return int(channel.queue_declare(queue, passive=True).message_count)
        except connection.channel_errors:
            return 0
