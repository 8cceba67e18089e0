"""Connections to one Redis server that are kept at hand between two scripts.

A script takes Redis some 60 µs. redis-py spends as much again on each command: it looks at the connection before it
hands it out, locks, and copies the command once for each of its words. All that a connection does (TLS, Sentinel, the
protocol, new tries) is redis-py's here too.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from redis import BlockingConnectionPool, Redis
from redis.exceptions import ResponseError

if TYPE_CHECKING:
    from redis import ConnectionPool

__all__ = ["Lines", "lines_of"]

#: Seconds after which a connection that was not used may have been closed by the server, or by something between.
_FRESH = 1.0


class Lines:
    """Runs scripts over connections of a pool; safe for threads, not across forks."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool: Any = pool
        #: Connections that nobody uses, and when they were last used; the latest at the end.
        self._idle: list[tuple[Any, float]] = []

    def evalsha(self, digest: str, *words: str | int) -> Any:
        """Run a script that the server has; raise what redis-py raises."""
        return self._ask("EVALSHA", digest, *words)

    def eval(self, text: str, *words: str | int) -> Any:
        """Run a script; raise what redis-py raises."""
        return self._ask("EVAL", text, *words)

    def _ask(self, *words: str | int) -> Any:
        request = [_packed(words)]
        connection = self._connection()

        def ask() -> Any:
            connection.send_packed_command(request)
            return connection.read_response()

        try:
            answer = connection.retry.call_with_retry(ask, lambda _: connection.disconnect())
        except ResponseError:
            self._idle.append((connection, time.monotonic()))
            raise
        except BaseException:
            # Half a question may have been sent, or half an answer read; also by a soft time limit, at any line.
            connection.disconnect()
            self._pool.release(connection)
            raise
        self._idle.append((connection, time.monotonic()))
        return answer

    def _connection(self) -> Any:
        try:
            connection, used_at = self._idle.pop()
        except IndexError:
            return self._pool.get_connection()
        if time.monotonic() - used_at <= _FRESH:
            return connection
        # The pool looks at it.
        self._pool.release(connection)
        return self._pool.get_connection()


def lines_of(client: Any) -> Lines | None:
    """Return over which connections a client's scripts go; None where the client itself has to be asked each time.

    A cluster's client knows to which node, and one of a class of its own may do more than to ask. Who waits in a
    blocking pool waits for what comes back to it.
    """
    is_plain = type(client) is Redis and not isinstance(client.connection_pool, BlockingConnectionPool)
    return Lines(client.connection_pool) if is_plain else None


def _packed(words: tuple[str | int, ...]) -> bytes:
    """Return a command in Redis's protocol: https://redis.io/docs/latest/develop/reference/protocol-spec/ (arrays)."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        text = str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(text), text))
    return b"".join(parts)
