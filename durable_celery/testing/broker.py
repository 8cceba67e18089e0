"""The broker of a test: a list of messages that are published and read as Celery does, and never leave the process.

A message goes through the app's own serializer on its way, so that what cannot be sent in production cannot be sent
here. One with an ``eta`` waits for the test's clock.
"""

from __future__ import annotations

import heapq
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from kombu.compression import decompress
from kombu.connection import Connection
from kombu.messaging import Producer
from kombu.serialization import loads, prepare_accept_content

from durable_celery.dispatch import ETA, HEADER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager

    from durable_celery.testing.world import Clock

__all__ = ["Broker", "Message"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One Celery message on its way."""

    headers: dict[str, Any]
    properties: dict[str, Any]
    body: Any
    content_type: str
    content_encoding: str
    exchange: str
    routing_key: str

    @property
    def task(self) -> str:
        """Name of the Celery task that is to be executed."""
        return str(self.headers["task"])

    @property
    def id(self) -> str:
        """The Celery task id."""
        return str(self.headers["id"])

    def request(self, accept: Iterable[str]) -> dict[str, Any]:
        """Return the request that a worker would make of this message.

        Raises:
            kombu.exceptions.ContentDisallowed: the app does not accept this content type.
        """
        headers = dict(self.headers)
        body = decompress(self.body, headers["compression"]) if "compression" in headers else self.body
        content = prepare_accept_content(accept)
        payload: Any = loads(body, self.content_type, self.content_encoding, accept=content)
        args, kwargs, embedded = payload
        return {
            **headers,
            "properties": self.properties,
            "reply_to": self.properties.get("reply_to"),
            "correlation_id": self.properties.get("correlation_id"),
            "delivery_info": {
                "exchange": self.exchange,
                "routing_key": self.routing_key,
                "priority": self.properties.get("priority"),
                "redelivered": False,
            },
            "hostname": "durable-testing",
            "is_eager": False,
            "args": args,
            "kwargs": kwargs,
            **(embedded or {}),
        }


class Broker:
    """Messages that can be taken now, and those that wait for their time."""

    def __init__(self, clock: Clock, is_durable: Callable[[str], bool]) -> None:
        """Begin empty; ``is_durable`` knows the names of durable tasks."""
        self.clock, self._is_durable = clock, is_durable
        self.producer = _LocalProducer(self)
        #: Returns what becomes of a message that was just published: messages, each with a delay in seconds.
        self.carrier: Callable[[Message], Sequence[tuple[Message, float]]] = _at_once
        self._ready: deque[Message] = deque()
        self._waiting: list[tuple[int, int, Message]] = []
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._ready) + len(self._waiting)

    @property
    def next_at(self) -> int | None:
        """When the next message can be taken that cannot be taken now (ms since 1970), or None."""
        return self._waiting[0][0] if self._waiting else None

    def post(self, message: Message) -> None:
        """Take a message in."""
        headers = message.headers
        if headers.get("eta") and HEADER not in headers and self._is_durable(message.task):
            # A start by name: its wait belongs into the log, where a worker puts it too.
            headers[ETA], headers["eta"] = headers["eta"], None
        for one, delay in self.carrier(message):
            due_at = max(_eta_of(one), self.clock.now + round(delay * 1000) if delay else 0)
            if due_at > self.clock.now:
                heapq.heappush(self._waiting, (due_at, next(self._numbers), one))
            else:
                self._ready.append(one)

    def take(self) -> Message | None:
        """Give the oldest message out, or None if there is none now."""
        while self._waiting and self._waiting[0][0] <= self.clock.now:
            self._ready.append(heapq.heappop(self._waiting)[2])
        return self._ready.popleft() if self._ready else None


def _at_once(message: Message) -> Sequence[tuple[Message, float]]:
    return ((message, 0.0),)


def _eta_of(message: Message) -> int:
    """Return when a message may be executed (ms since 1970)."""
    eta = message.headers.get("eta")
    return round(datetime.fromisoformat(eta).timestamp() * 1000) if eta else 0


class _LocalProducer(Producer):
    """A producer whose messages go to the broker of a test; its connection is kombu's own in-memory one."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(Connection("memory://"))  # type: ignore[no-untyped-call] # kombu
        self._broker = broker

    # Celery gives everything by name.
    def publish(self, body: Any, **options: Any) -> None:  # type: ignore[override] # see above
        headers: dict[str, Any] = dict(options.pop("headers", None) or {})
        exchange = options.pop("exchange", "")
        compression = options.pop("compression", None)
        data, content_type, encoding = self._prepare(  # type: ignore[no-untyped-call] # kombu
            body, options.pop("serializer", None), None, None, compression, headers
        )
        message = Message(
            headers=headers,
            properties={name: value for name, value in options.items() if name not in _PUBLISHING},
            body=data,
            content_type=str(content_type),
            content_encoding=str(encoding),
            exchange=getattr(exchange, "name", exchange) or "",
            routing_key=options.get("routing_key") or "",
        )
        self._broker.post(message)


#: Options of ``Producer.publish`` that are no properties of the message.
_PUBLISHING = frozenset({"routing_key", "retry", "retry_policy", "declare", "timeout", "confirm_timeout", "mandatory"})


class LocalPool:
    """What an app has in place of its pools of producers and connections."""

    limit = None

    def __init__(self, producer: Producer) -> None:
        """Give this producer, or its connection, to everybody."""
        connection: Any = producer.connection
        self.producers = SimpleNamespace(
            acquire=_always(producer), connections=SimpleNamespace(connection=connection), limit=None
        )
        self.connections = SimpleNamespace(acquire=_always(connection), limit=None)


def _always(thing: object) -> Callable[..., AbstractContextManager[Any]]:
    return lambda *_, **__: nullcontext(thing)
