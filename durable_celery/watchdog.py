"""The watchdog of a worker: a worker that has nothing to do takes the messages that wait for it.

After a lost connection or a failover of the broker Celery can be left with a worker that lives, answers its control
commands, and consumes nothing. Durable runs then wait although their messages are sent again and again. The watchdog
asks the broker, over a connection of its own and only while the worker is idle, whether messages wait in the queues
that this worker consumes. A worker that leaves them there for several looks in a row is made to connect again; one that
still takes nothing is ended with a line that says why, so that whatever started it starts it again.

A worker with a task in hand, a paused queue (``cancel_consumer``) or other queues (``-Q``) is never suspected, and a
long queue is none of its business: it is enough that one message arrives between two looks.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.platforms import EX_FAILURE
from celery.worker import state
from kombu.exceptions import OperationalError

from durable_celery.dispatch import has_one_consumer

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Watchdog"]

_log = logging.getLogger(__name__)

#: Looks in a row that find waiting messages and an idle worker, before something is done. More than two, so that a
#: process that was stopped for a while has time to take what came meanwhile.
LOOKS = 3
#: New connections that are tried before the worker is ended.
RESTARTS = 2
#: So that a broker that hangs does not keep the watchdog waiting for ever; by the transport's driver, in seconds.
_TIMEOUTS: dict[str, dict[str, float]] = {
    "redis": {"socket_timeout": 5.0},
    "amqp": {"read_timeout": 5.0, "write_timeout": 5.0},
}


class Watchdog:
    """Looks after the consumer of one worker; :meth:`look` is called again and again from a thread of its own."""

    def __init__(self, worker: Any, seconds: float) -> None:
        """Watch Celery's ``WorkController``, once it is ready.

        Args:
            worker: what is watched.
            seconds: how long an idle worker may leave messages in its queues.
        """
        self.worker = worker
        self.pause = seconds / LOOKS
        #: Looks in a row with an idle worker and waiting messages, since the last restart.
        self.looks = 0
        #: Restarts since the last message that arrived.
        self.restarts = 0
        self._is_ready = self._has_dropped = False
        #: Tasks that the worker had begun at the last look.
        self._begun = 0
        signals.worker_ready.connect(self._on_ready, weak=False)
        # A message that is taken is counted when its task begins, and is in hand until then, or gives one of these.
        for signal in (signals.task_unknown, signals.task_rejected, signals.task_revoked):
            signal.connect(self._on_dropped, weak=False)

    def look(self) -> float:
        """Look once; return the seconds until the next look."""
        has_received = self._has_received()
        self._has_dropped, self._begun = False, state.all_total_count[0]
        if has_received:
            self.restarts = 0
        if has_received or not self._is_idle() or not (waiting := self._waiting()):
            self.looks = 0
            return self.pause
        self.looks += 1
        if self.looks >= LOOKS and not self._has_received():
            self.looks = 0
            self._act(waiting)
        return self.pause

    def _has_received(self) -> bool:
        """Whether a message came since the last look."""
        return self._has_dropped or bool(state.all_total_count[0] != self._begun)

    def _is_idle(self) -> bool:
        """Whether nothing keeps this worker from taking a message."""
        worker, conf = self.worker, self.worker.app.conf
        is_leaving = state.should_stop is not None or state.should_terminate is not None
        if not self._is_ready or is_leaving or state.reserved_requests or state.active_requests:
            return False
        if any(bucket and bucket.contents for bucket in worker.consumer.task_buckets.values()):
            # Tasks under a rate limit count as prefetched, and may be as many as this worker may have.
            return False
        return not (conf.worker_eta_task_limit and getattr(state, "scheduled_requests", True))

    def _waiting(self) -> dict[str, int]:
        """Return how many messages wait in each of this worker's queues that has any; {} if the broker is away."""
        app, driver = self.worker.app, self.worker.consumer.conninfo.transport.driver_type
        try:
            with app.connection_for_read(transport_options=_TIMEOUTS.get(driver, {})) as connection:
                return {name: count for name in self._queues() if (count := _messages(connection, name))}
        except (OSError, OperationalError, *self.worker.consumer.connection_errors) as error:
            # Celery itself sees to a broker that is away.
            _log.debug("the broker does not say what waits in its queues: %r", error)
            return {}

    def _queues(self) -> Iterator[str]:
        """Give the queues that this worker consumes now."""
        for queue in list(self.worker.app.amqp.queues.consume_from.values()):
            if not has_one_consumer(queue):
                yield queue.name

    def _act(self, waiting: dict[str, int]) -> None:
        told = ", ".join(f"{count} in {name}" for name, count in sorted(waiting.items()))
        if self.restarts < RESTARTS:
            self.restarts += 1
            _log.error(
                "this worker is idle and takes none of the messages that wait for it (%s); it connects again", told
            )
            self._break_connection()
            return
        _log.critical(
            "this worker is idle and takes none of the messages that wait for it (%s), although it has connected "
            "again %s times; it ends, to be started again",
            told, self.restarts,
        )  # fmt: skip
        logging.shutdown()
        # Nothing is in hand, and a loop that does not run would not see a polite request.
        os._exit(EX_FAILURE)

    def _break_connection(self) -> None:
        """Let the worker's loop meet a lost connection; Celery's answer to that is a new one."""
        consumer = self.worker.consumer
        if consumer.hub is not None:
            consumer.hub.call_soon(_lose)
        elif consumer.connection is not None:
            # The loop without an event hub swallows what callbacks raise; this object is thrown away in a moment.
            consumer.connection.drain_events = _lose

    def _on_ready(self, sender: Any = None, **_: Any) -> None:
        self._is_ready = self._is_ready or sender is self.worker.consumer

    def _on_dropped(self, **_: Any) -> None:
        self._has_dropped = True


def _lose(**_: Any) -> None:
    msg = "given up by durable_celery's watchdog: messages wait, and this connection brings none"
    raise ConnectionResetError(msg)


def _messages(connection: Any, queue: str) -> int:
    """Return how many messages are ready in a queue; a missing one has none."""
    try:
        with connection.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).message_count)
    except connection.channel_errors:
        return 0
