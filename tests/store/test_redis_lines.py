"""Connections that are kept at hand: what is on one of them is the answer to what was asked."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ResponseError
from redis.retry import Retry

from durable_celery.store import redis_lines
from durable_celery.store.redis import RedisStore
from durable_celery.store.redis_lines import Lines
from tests.servers import RedisServer
from tests.waiting import wait_until

ECHO = "return {KEYS[1], unpack(ARGV)}"


class Interrupted(BaseException):
    """What a signal's handler raises, at any line."""


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """A client that tries once only, so that nothing is mended behind our back."""
    retry = Retry(NoBackoff(), 0)
    with redis.Redis.from_url(redis_server.start().url, decode_responses=True, retry=retry) as client:
        yield client


@pytest.fixture
def lines(client: redis.Redis) -> Lines:
    return Lines(client.connection_pool)


def clients_of(client: redis.Redis) -> int:
    found: Any = client.info("clients")
    return int(found["connected_clients"])


def test_words_come_as_they_are(lines: Lines) -> None:
    words = ["", " ", "a b", "\r\n$3\r\n", "ü🦊", "\0", "x" * 100_000]

    assert lines.eval(ECHO, 1, "k", *words, 7) == ["k", *words, "7"]


def test_a_script_that_the_server_does_not_have_is_told_by_its_name(lines: Lines) -> None:
    with pytest.raises(NoScriptError):
        lines.evalsha("0" * 40, 1, "k")
    assert lines.eval(ECHO, 1, "k") == ["k"]


def test_an_answer_that_is_an_error_leaves_the_connection_as_it_was(lines: Lines, client: redis.Redis) -> None:
    lines.eval(ECHO, 1, "k")
    before = clients_of(client)
    for _ in range(5):
        with pytest.raises(ResponseError):
            lines.eval("return redis.error_reply('NO')", 1, "k")

    assert lines.eval(ECHO, 1, "k") == ["k"]
    assert clients_of(client) == before


@pytest.mark.parametrize("moment", ["send_packed_command", "read_response"])
def test_what_was_interrupted_is_never_taken_for_the_answer_to_something_else(
    lines: Lines, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    lines.eval(ECHO, 1, "first")
    connection = lines._idle[-1][0]
    plain = getattr(connection, moment)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if moment == "send_packed_command":
            plain(*args, **kwargs)
        raise Interrupted

    monkeypatch.setattr(connection, moment, interrupted)
    with pytest.raises(Interrupted):
        lines.eval(ECHO, 1, "interrupted")
    monkeypatch.undo()

    assert lines.eval(ECHO, 1, "next") == ["next"]


def test_threads_share_as_many_connections_as_there_are_calls_at_a_time(lines: Lines, client: redis.Redis) -> None:
    client.ping()
    before = clients_of(client)
    wrong: list[Any] = []

    def ask(name: str) -> None:
        answers = [lines.eval(ECHO, 1, name, number) for number in range(200)]
        wrong.extend(answer for number, answer in enumerate(answers) if answer != [name, str(number)])

    threads = [threading.Thread(target=ask, args=(f"thread-{number}",)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not wrong
    assert clients_of(client) - before <= len(threads)


def test_a_connection_that_the_server_closed_meanwhile_is_not_used(
    lines: Lines, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines.eval(ECHO, 1, "k")
    client.client_kill_filter(_type="normal", skipme=True)
    # One that was used a moment ago is believed; without new tries it fails, and the next one is another.
    with pytest.raises(redis.ConnectionError):
        lines.eval(ECHO, 1, "k")
    assert lines.eval(ECHO, 1, "k") == ["k"]

    monkeypatch.setattr(redis_lines, "_FRESH", -1.0)
    port = lines._idle[-1][0]._sock.getsockname()[1]
    client.client_kill_filter(_type="normal", skipme=True)
    wait_until(lambda: f":{port}" not in str(client.client_list()), 10, lambda: "the connection to be closed")
    assert lines.eval(ECHO, 1, "k") == ["k"]


def test_a_client_that_tries_again_does_so(redis_server: RedisServer) -> None:
    retry = Retry(NoBackoff(), 1)
    with redis.Redis.from_url(redis_server.start().url, decode_responses=True, retry=retry) as client:
        lines = Lines(client.connection_pool)
        lines.eval(ECHO, 1, "k")
        client.client_kill_filter(_type="normal", skipme=True)

        assert lines.eval(ECHO, 1, "k") == ["k"]


def test_a_client_of_a_class_of_its_own_is_asked(redis_server: RedisServer) -> None:
    asked: list[str] = []

    class Watched(redis.Redis):
        def execute_command(self, *args: Any, **options: Any) -> Any:
            asked.append(args[0])
            plain: Any = super().execute_command
            return plain(*args, **options)

    store = RedisStore(Watched.from_url(redis_server.start().url), namespace="lines")

    assert store.get("w") is None
    assert "EVALSHA" in asked


def test_where_connections_are_waited_for_they_are_given_back(redis_server: RedisServer) -> None:
    pool = redis.BlockingConnectionPool.from_url(redis_server.start().url, max_connections=1, timeout=5)
    store = RedisStore(redis.Redis(connection_pool=pool), namespace="lines")
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(store.get("w"))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [None] * 5


def test_a_forked_process_leaves_the_connections_of_its_parent_alone(redis_server: RedisServer) -> None:
    store = RedisStore.from_url(redis_server.start().url, namespace="lines")
    assert store.get("w") is None
    pid = os.fork()
    if not pid:
        ends = [store.get("w") is None for _ in range(50)]
        os._exit(not all(ends))
    ends = [store.get("w") is None for _ in range(50)]

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert all(ends)
