"""Mail: messages in the form in which Redis, as a store, can put them into the queues of Redis as a broker.

With ``durable_atomic_publish`` a message enters its queue in the very transaction that makes it due. That spares a
round trip for each step and each start, and leaves no moment in which a crash loses a message. Celery and kombu make
the message as ever; only what kombu would send is taken here, and given to the store.

Where that cannot be the message is published as ever, after the commit: where the task publishes in a way of its own,
where somebody listens to what is published, and where the message is more than one entry of one queue.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from celery import signals
from celery.app.task import Task

from durable_celery.errors import ConfigurationError
from durable_celery.store.protocol import Mail, NewRun, RunMessage

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from celery import Celery

    from durable_celery.dispatch import CeleryDispatcher
    from durable_celery.store.protocol import StepMessage

__all__ = ["PostOffice", "check_place", "is_publishing_watched"]

_log = logging.getLogger(__name__)
#: Name, key and value of the one command by which kombu publishes into a queue.
_PUSH, _WORDS = "lpush", 3


def is_publishing_watched() -> bool:
    """Tell whether somebody would miss the signals of messages that are not published by Celery."""
    return bool(signals.before_task_publish.receivers or signals.after_task_publish.receivers)


class PostOffice:
    """Makes the mail of an app."""

    def __init__(self, app: Celery, dispatcher: CeleryDispatcher) -> None:
        """Use an app whose broker is where its log is, see :func:`check_place`."""
        self.app, self.dispatcher = app, dispatcher

    def mail_of(self, messages: Sequence[RunMessage | StepMessage]) -> list[Mail]:
        """Return the mail of all these messages; nothing if one of them has to be published."""
        if is_publishing_watched() or not all(map(self._is_plain, messages)):
            return []
        try:
            with (
                self.app.producer_or_acquire() as producer,
                _drawn_from(producer.channel) as commands,
                producer.batch(len(messages)),
            ):
                for message in messages:
                    self.dispatcher.write(message, producer)
        except Exception as error:  # noqa: BLE001 - a user's router or codec, or the broker: who publishes it tells of it
            _log.debug("no mail could be made: %r", error)
            return []
        pushes = [words for words in commands if words[0] == _PUSH and len(words) == _WORDS]
        return [Mail(*words[1:]) for words in pushes] if len(pushes) == len(commands) == len(messages) else []

    def of_start(self, new: NewRun) -> Mail | None:
        """Return the mail of a run that is to begin at once, as it will be once it is started."""
        if new.delay or self.dispatcher.results_are_messages:
            return None
        message = RunMessage(
            workflow_id=new.workflow_id,
            name=new.name,
            envelope=new.envelope,
            created_at=round(time.time() * 1000),
            first=True,
        )
        mail = self.mail_of([message])
        return mail[0] if mail else None

    def _is_plain(self, message: RunMessage | StepMessage) -> bool:
        """Tell whether a message is published as Celery does it."""
        if isinstance(message, RunMessage):
            return True
        task = self.app.tasks.get(message.scheduled.task)
        is_task = message.scheduled.kind == "task" and not getattr(task, "is_durable", False)
        return is_task and (task is None or type(task).apply_async is Task.apply_async)


@contextmanager
def _drawn_from(channel: Any) -> Generator[list[tuple[str, ...]]]:
    """Collect the commands that a channel would send in a batch, instead of sending them."""
    drawer = _Drawer(channel)
    channel.create_publish_batch = lambda max_size: drawer  # noqa: ARG005 - kombu's name for it
    try:
        yield drawer.commands
    finally:
        del channel.create_publish_batch


class _Drawer:
    """Stands in for kombu's ``PublishBatch``: what is added to it stays in it."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.commands: list[tuple[str, ...]] = []

    def publish(self, message: Any, **options: Any) -> Any:
        return self.channel.basic_publish(message, _publish_batch=self, **options)

    def add(self, name: str, key: str, *words: str) -> None:
        self.commands.append((name, f"{self.channel.global_keyprefix}{key}", *words))

    def flush(self) -> None:
        """Send nothing, as :meth:`close` and :meth:`discard`."""

    close = discard = flush


def check_place(app: Celery, store: str) -> None:
    """Refuse ``durable_atomic_publish`` where the store could not put a message into the broker.

    Raises:
        ConfigurationError: they are not one and the same Redis database, or kombu is too old.
    """
    from kombu.transport.redis import Channel

    broker: Any = app.conf.broker_write_url or app.conf.broker_url
    log = store or broker
    if not hasattr(Channel, "create_publish_batch"):
        raise ConfigurationError("durable_atomic_publish needs kombu 5.7 or newer")
    places = {_database(url) if isinstance(url, str) else None for url in (broker, log)}
    if len(places) > 1 or None in places:
        shown = app.connection_for_write().as_uri()
        raise ConfigurationError(
            f"durable_atomic_publish puts messages into the broker within the transactions of the store, and {shown} "
            "is not the Redis database of durable_store. Use one database for both (a cluster cannot be the broker), "
            "or leave the setting out"
        )


def _database(url: str) -> tuple[Any, ...] | None:
    """Return what tells one database of one Redis server from others; None if the URL is not of one."""
    from durable_celery.store.redis_server import plain_url

    parts = urlsplit(plain_url(url))
    if ";" in url or parts.scheme not in {"redis", "rediss", "valkey", "valkeys", "unix"}:
        return None
    if parts.scheme == "unix":
        return parts.path, parts.query
    return parts.hostname or "localhost", parts.port or 6379, parts.path.strip("/") or "0"
