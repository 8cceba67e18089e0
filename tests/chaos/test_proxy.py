"""The proxy does to a connection what it says, and nothing when it is told nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import pytest
import redis
from kombu.connection import Connection
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from tests.chaos.proxy import TcpProxy
from tests.servers import RedisServer, broker_answers, free_port
from tests.waiting import wait_until


@pytest.fixture
def proxy(redis_url: str) -> Iterator[TcpProxy]:
    with TcpProxy(redis_url) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: TcpProxy) -> Iterator[Any]:
    """Give a client of Redis behind the proxy that asks once, and waits long enough for a machine that stalls."""
    with client_of(proxy, timeout=30) as client:
        yield client


def client_of(proxy: TcpProxy, timeout: float) -> Any:
    return redis.Redis(
        port=proxy.port, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0)
    )


def test_it_forwards_both_ways_whatever_the_size(client: Any, redis_server: RedisServer) -> None:
    payload = b"x" * 1_000_000
    client.set("key", payload)

    assert client.get("key") == payload
    with redis_server.client() as direct:
        assert direct.get("key") == payload


def test_a_delay_holds_requests_and_replies_back(proxy: TcpProxy, client: Any) -> None:
    client.ping()
    proxy.delay(0.6)
    with client_of(proxy, timeout=0.3) as impatient, pytest.raises(RedisTimeoutError):
        impatient.ping()
    assert client.ping()


def test_a_hanging_proxy_keeps_connections_open_and_heals(proxy: TcpProxy, client: Any) -> None:
    client.ping()
    proxy.hang()
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(client.incr, "count")
        with pytest.raises(FutureTimeoutError):
            answer.result(0.3)
        assert proxy.open_links == 1
        proxy.heal()
        assert answer.result(30) == 1


def test_a_reset_ends_open_connections_and_no_new_ones(proxy: TcpProxy, client: Any) -> None:
    # A plain socket: redis-py replaces a connection of its pool that it finds dead.
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as plain:
        plain.sendall(b"PING\r\n")
        assert plain.recv(100) == b"+PONG\r\n"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            plain.recv(100)
    assert client.ping()


def test_a_refusing_proxy_lets_nobody_in_until_it_heals(proxy: TcpProxy, client: Any) -> None:
    client.ping()
    proxy.refuse()
    with pytest.raises(RedisConnectionError):
        client.ping()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), timeout=5)
    proxy.heal()
    assert client.ping()


@pytest.mark.parametrize("part", [0.0, 0.5])
def test_the_reply_that_fits_is_lost_although_the_server_did_it(proxy: TcpProxy, client: Any, part: float) -> None:
    client.set("payload", "abcdefgh")
    done = proxy.cut_reply(request=b"GETDEL", reply=b"abcdefgh", part=part)

    assert client.get("payload") == b"abcdefgh"
    assert not done.is_set()
    with pytest.raises(RedisConnectionError):
        client.getdel("payload")
    assert done.is_set()
    assert client.get("payload") is None


def test_a_server_that_is_away_looks_away_through_the_proxy() -> None:
    nobody = TcpProxy(f"redis://127.0.0.1:{free_port()}/0")
    with nobody, client_of(nobody, timeout=30) as lost, pytest.raises(RedisConnectionError):
        lost.ping()


def test_it_stands_before_rabbitmq_as_well(rabbitmq_url: str) -> None:
    with TcpProxy(rabbitmq_url) as proxy:
        url = proxy.url(rabbitmq_url)
        assert broker_answers(url)
        with Connection(url) as connection:
            channel = connection.channel()
            proxy.reset()
            with pytest.raises(connection.connection_errors):
                channel.queue_declare("", passive=True)
        wait_until(lambda: proxy.open_links == 0, message="the links to go")
    assert not broker_answers(url)
