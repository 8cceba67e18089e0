"""Many messages go to Redis together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import exceptions
from kombu.transport import redis as transport

from durable_celery.codec import Codec
from durable_celery.dispatch import CeleryDispatcher
from durable_celery.events import StepScheduled
from durable_celery.store.protocol import StepKey, StepMessage
from tests.servers import RedisServer

pytestmark = pytest.mark.skipif(not hasattr(transport, "PublishBatch"), reason="kombu 5.6 publishes one by one")


@pytest.fixture
def app(redis_server: RedisServer) -> Iterator[Celery]:
    app = Celery("publishing", broker=redis_server.start().database_url(7), set_as_current=False)
    app.conf.update(task_publish_retry=False, broker_transport_options={"socket_connect_timeout": 1})

    @app.task(name="add", shared=False)
    def add(left: int, right: int) -> int:
        return left + right

    with redis_server.client(7) as client:
        client.flushdb()
        yield app
        client.flushdb()
    app.close()


def messages(count: int, task: str = "add") -> list[StepMessage]:
    return [
        StepMessage(
            key=StepKey(workflow_id="w", run=1, number=number),
            scheduled=StepScheduled(number=number, cause=1, task=task, digest="", kind="task", payload="[[1,2],{}]"),
            workflow="flow",
            envelope="{}",
            attempt=1,
        )
        for number in range(1, count + 1)
    ]


def dispatcher_of(app: Celery, rejected: list[Any] | None = None) -> CeleryDispatcher:
    return CeleryDispatcher(app, Codec(), lambda message, error: (rejected or []).append((message, error)))


def waiting(app: Celery, server: RedisServer) -> int:
    with server.client(7) as client:
        return int(client.llen("celery"))


@pytest.fixture
def flushes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many messages went in each round trip."""
    found: list[int] = []
    plain = transport.PublishBatch.flush

    def flush(self: Any) -> None:
        if self._buffered:
            found.append(self._buffered)
        plain(self)  # type: ignore[no-untyped-call]  # kombu

    monkeypatch.setattr(transport.PublishBatch, "flush", flush)
    return found


def test_a_hundred_go_in_one_round_trip(app: Celery, redis_server: RedisServer, flushes: list[int]) -> None:
    assert dispatcher_of(app).publish(messages(230)) == 230

    assert waiting(app, redis_server) == 230
    assert flushes == [100, 100, 30]


def test_one_goes_by_itself(app: Celery, redis_server: RedisServer, flushes: list[int]) -> None:
    assert dispatcher_of(app).publish(messages(1)) == 1

    assert waiting(app, redis_server) == 1
    assert flushes == []


def test_what_may_not_have_come_is_left_to_the_agenda(
    app: Celery, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = transport.PublishBatch.flush
    answers = iter([True, False])

    def flush(self: Any) -> None:
        if self._buffered and not next(answers):
            raise exceptions.BatchPublishError("no answer")
        plain(self)  # type: ignore[no-untyped-call]  # kombu

    monkeypatch.setattr(transport.PublishBatch, "flush", flush)

    assert dispatcher_of(app).publish(messages(150)) == 100
    assert waiting(app, redis_server) == 100


def test_one_that_cannot_be_published_does_not_keep_the_others(
    app: Celery, redis_server: RedisServer, flushes: list[int]
) -> None:
    rejected: list[Any] = []

    class Unfit(app.Task):
        name = "unfit"

        def apply_async(self, *_: Any, **__: Any) -> Any:
            raise ValueError("not this one")

    app.register_task(Unfit())
    dispatcher = CeleryDispatcher(
        app, Codec(), lambda message, error: rejected.append((message.key.number, str(error)))
    )
    together = [*messages(2), *messages(3, "unfit")[2:]]

    assert dispatcher.publish(together) == 3
    assert waiting(app, redis_server) == 2
    assert rejected == [(3, "not this one")]


def test_a_broker_that_is_away_takes_none(app: Celery, redis_server: RedisServer) -> None:
    app.conf.broker_url = "redis://127.0.0.1:1/0"

    assert dispatcher_of(app).publish(messages(3)) == 0
    with pytest.raises(redis.ConnectionError):
        redis.Redis(port=1).ping()
