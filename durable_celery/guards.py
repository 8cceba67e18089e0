"""Guards at the places of faults in Celery, kombu and billiard that durable workers would meet.

Nothing durable is lost without them, but a worker would end, stand still, mix up messages or take much longer. Each may
be set again.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import celery
import kombu
from billiard.pool import Pool
from celery.concurrency.prefork import TaskPool

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from celery.concurrency.base import BasePool

__all__ = ["guard_blocking_pool", "guard_redis_transport", "guard_sql_transport", "keep_redis_clients"]


def guard_redis_transport() -> None:
    """Let a worker of Celery 5.7.0 live on when its Redis broker goes away.

    In these very versions a lost connection is closed twice; the second time, with a late-ack task unacknowledged, the
    channel asks for parameters that are gone, and the AttributeError ends the worker. Made a ConnectionError, it is
    handled as what it is.
    """
    if (celery.__version__, kombu.__version__) != ("5.7.0", "5.7.0"):
        return
    from kombu.transport.redis import Channel

    plain = Channel._connparams  # noqa: SLF001 - the fault is in there
    if hasattr(plain, "durable_plain"):
        return

    @functools.wraps(plain)
    def connparams(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.connection is None or self.connection.client is None:
            msg = "the transport is closed already"
            raise ConnectionError(msg)
        return plain(self, *args, **kwargs)  # type: ignore[no-untyped-call] # kombu

    connparams.durable_plain = plain  # type: ignore[attr-defined] # so that it is wrapped once
    # A guard at the place of the fault.
    Channel._connparams = connparams  # type: ignore[method-assign] # noqa: SLF001


def keep_redis_clients() -> None:
    """Let a channel of the Redis transport keep the client by which it publishes and acknowledges.

    kombu (5.7) makes one for each command, although all have the channel's one pool of connections: half of what it
    takes to publish, and a tenth of what a worker spends on a task that does nothing.
    """
    from kombu.transport.redis import Channel

    plain = Channel._create_client  # noqa: SLF001 - where they are made
    if hasattr(plain, "durable_plain"):
        return

    @functools.wraps(plain)
    def create_client(self: Any, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's signature
        if asynchronous:
            return plain(self, asynchronous)  # type: ignore[no-untyped-call] # kombu
        kept = getattr(self, "durable_client", None)
        # A channel that was closed has another pool when it is used again.
        if kept is None or kept.connection_pool is not self.pool:
            kept = self.durable_client = plain(self)  # type: ignore[no-untyped-call] # kombu
        return kept

    create_client.durable_plain = plain  # type: ignore[attr-defined] # so that it is wrapped once
    Channel._create_client = create_client  # type: ignore[method-assign] # noqa: SLF001


@functools.cache
def guard_sql_transport() -> None:
    """Let a child of the pool have connections of its own to a broker that is an SQL database.

    kombu (5.7, and all before it) keeps the engines of its transport with the class, so a child inherits the very
    connections that its parent goes on to read from: messages are mixed up, and publishing fails.
    """
    os.register_at_fork(after_in_child=_forget_sql_transport)


def _forget_sql_transport() -> None:
    transport = sys.modules.get("kombu.transport.sqlalchemy")
    if transport is None:
        return
    engines: dict[str, tuple[Any, Any]] = transport.Channel._engines  # noqa: SLF001 - the fault is in there
    for engine, _ in engines.values():
        # What the parent uses stays open.
        engine.dispose(close=False)
    engines.clear()


def guard_blocking_pool(pool: BasePool) -> None:
    """Let a prefork pool outlive the SIGKILL of a child that was idle, or that was about to hand in a result.

    With a transport that Celery cannot watch (SQL, files) all children read one pipe, and write another, each under
    a semaphore of billiard's. An idle child holds it all the while; killed, it takes the semaphore along, and the
    worker stands still for ever. A lock on a file is let go by the system.
    """
    if isinstance(pool, TaskPool) and sys.platform != "win32":
        pool.BlockingPool = _KillProofPool


class _KillProofPool(Pool):
    def _setup_queues(self) -> None:
        super()._setup_queues()
        self._inqueue._rlock = _FileLock()  # noqa: SLF001
        self._outqueue._wlock = _FileLock()  # noqa: SLF001


class _FileLock:
    """A lock between processes of one parent, not between threads, that ends with its holder."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the lock

    def acquire(self) -> bool:
        """Wait until no other process holds it. POSIX locks belong to a process, not to the inherited file."""
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.release()
