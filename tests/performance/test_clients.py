"""A channel of the Redis transport makes one client, where kombu makes one for each command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kombu.connection import Connection
from kombu.transport.redis import Channel

from durable_celery.guards import keep_redis_clients
from tests.servers import RedisServer


def made_by(channel: Any) -> Any:
    with channel.conn_or_acquire() as client:
        return client


@pytest.fixture(autouse=True)
def keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    plain: Any = Channel._create_client
    monkeypatch.setattr(Channel, "_create_client", getattr(plain, "durable_plain", plain))
    keep_redis_clients()


def test_a_channel_keeps_its_client_as_long_as_its_connections(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, Connection(server.url) as connection, connection.SimpleQueue("q") as queue:
        channel: Any = queue.channel
        first = made_by(channel)
        queue.put({"n": 1})
        assert made_by(channel) is first
        assert channel.client is not first, "the one that waits for messages has connections of its own"

        channel._disconnect_pools()
        assert made_by(channel) is not first
        queue.put({"n": 2})
        messages = [queue.get(timeout=5) for _ in range(2)]
        for message in messages:
            message.ack()

        assert [message.payload["n"] for message in messages] == [1, 2]
        assert server.client().hlen("unacked") == 0


def test_two_channels_share_nothing(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, Connection(server.url) as connection:
        assert made_by(connection.channel()) is not made_by(connection.channel())


def test_it_is_done_once() -> None:
    kept = Channel._create_client
    keep_redis_clients()

    assert Channel._create_client is kept
