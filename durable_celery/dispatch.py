"""Celery messages of runs and steps: how they are published, and what an envelope holds.

An *envelope* is the set of ``apply_async`` options with which a run's own messages are published: queue, priority,
links, chain, chord, group, root and parent. It is recorded at the start, so that any process can publish the message
that delivers the end, and Celery itself then stores the result and fires the callbacks.

A message says which run or step is meant, and nothing else is believed of it: a lost, repeated or forged message can at
worst cause a turn that finds nothing to do.
"""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from celery.backends.rpc import RPCBackend
from celery.utils.saferepr import saferepr
from kombu import exceptions
from kombu.exceptions import OperationalError
from kombu.utils import json as kombu_json

from durable_celery.codec import HIDDEN, Place
from durable_celery.errors import CodecError, ConfigurationError
from durable_celery.store.protocol import RunMessage
from durable_celery.workflow import foreign, named_events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from celery import Celery
    from celery.app.task import Context

    from durable_celery.codec import Codec
    from durable_celery.lags import Lags
    from durable_celery.store.protocol import StepMessage

__all__ = [
    "ETA",
    "HEADER",
    "VERSION",
    "CeleryDispatcher",
    "envelope",
    "envelope_of_request",
    "header_of",
    "shown",
    "took",
    "version_of",
]

_log = logging.getLogger(__name__)

#: Name of the message header by which a worker knows a message of this library.
HEADER = "durable"
#: Tasks that this library registers, and that are executed as steps.
_OWN_TASKS = frozenset({
    foreign.SEND, foreign.OUTCOME, named_events.PUBLISH, named_events.WAIT, named_events.TELL,
})  # fmt: skip
#: What a message of protocol 2 has in its body: args, kwargs and links.
_BODY_PARTS = 3
#: How many messages are published in one round trip.
_TOGETHER = 100
#: What kombu 5.7 raises where a round trip failed; earlier releases know none of that.
_BATCH_FAILED: type[Exception] = getattr(exceptions, "BatchPublishError", OperationalError)
#: From the soft time limit of an attempt, which its code may catch, to the hard one, in seconds.
_GRACE = 5.0
#: Name of the message header that keeps the ``eta`` of a start by a producer that does not know this library.
ETA = "durable_eta"
#: Name of the entry of an envelope that has the version of the run's code; without it, the first.
VERSION = "durable_version"
#: The options of ``apply_async`` that belong to a run for all its life.
ENVELOPE = frozenset({
    "queue", "exchange", "routing_key", "priority", "serializer", "compression", "delivery_mode", "ignore_result",
    "link", "link_error", "chain", "chord", "group_id", "group_index", "root_id", "parent_id", "reply_to", "shadow",
    "time_limit", "soft_time_limit", "stamped_headers", "replaced_task_nesting", "headers", "argsrepr", "kwargsrepr",
    VERSION,
})  # fmt: skip


def envelope(options: Mapping[str, Any]) -> str:
    """Return the envelope text of ``apply_async`` options; what is unset stays out."""
    stamps = {name: options[name] for name in options.get("stamped_headers") or () if name in options}
    kept = {
        name: value
        for name, value in options.items()
        if name in ENVELOPE and value is not False and value not in (None, [], {})
    }
    text: str = kombu_json.dumps({**kept, **stamps}, separators=(",", ":"))
    return text


@lru_cache(maxsize=256)
def _options_of(envelope_text: str) -> Mapping[str, Any]:
    """Return what an envelope holds: it is read with each message of the run and of its steps."""
    return MappingProxyType(kombu_json.loads(envelope_text))


def version_of(envelope_text: str) -> int:
    """Return the version of the code of a run, from its envelope."""
    version: int = _options_of(envelope_text).get(VERSION, 1)
    return version


def envelope_of_request(request: Context) -> dict[str, Any]:
    """Return the options with which a message arrived, as ``Task.retry`` reads them."""
    options = dict(request.as_execution_options())
    delivery = request.delivery_info or {}
    # The header of a message that arrived holds all of Celery's own fields; they are set anew.
    del options["headers"]
    options["ignore_result"] = bool(request.ignore_result)
    options["priority"] = delivery.get("priority")
    if delivery.get("exchange") == "" and delivery.get("routing_key"):
        options["queue"] = delivery["routing_key"]
    else:
        options |= {"exchange": delivery.get("exchange"), "routing_key": delivery.get("routing_key")}
    return options


def shown(args: Sequence[Any], kwargs: Mapping[str, Any], codec: Codec) -> dict[str, str]:
    """Return the options by which monitors see a run's arguments."""
    if codec.hides:
        return {"argsrepr": HIDDEN, "kwargsrepr": HIDDEN}
    # Where there are none Celery says so by itself.
    texts = {"argsrepr": saferepr(tuple(args), 1024)} if args else {}
    return {**texts, "kwargsrepr": saferepr(dict(kwargs), 1024)} if kwargs else texts


def took(header: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the event field that tells how long a run took, from the header of its last message."""
    at = (header or {}).get("at")
    return {"runtime": max(0.0, time.time() - at / 1000)} if isinstance(at, int | float) else {}


def header_of(request: Any) -> dict[str, Any] | None:
    """Return this library's header of a message that arrived, or None. Whoever can write to the broker wrote it."""
    header = request.get(HEADER)
    return header if isinstance(header, dict) else None if header is None else {}


def has_one_consumer(queue: Any) -> bool:
    """Tell whether the broker gives all messages of one of kombu's queues to one consumer, whoever else consumes it."""
    return bool((queue.queue_arguments or {}).get("x-single-active-consumer"))


class _Unset(str):
    """A parent id that is none: empty, yet true, so that Celery does not put the publishing task in its place."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


class _Sealing:
    """A producer that puts a step's arguments as they stand in the log into the message.

    So whatever of the user's and of Celery's code looks at a call before it is sent sees the arguments, and the broker
    does not.
    """

    def __init__(self, producer: Any, payload: str) -> None:
        self._producer, self._payload = producer, payload

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def publish(self, body: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(body, tuple) and len(body) == _BODY_PARTS:
            body = ([self._payload], {}, body[2])
        elif not (isinstance(body, dict) and "type" in body):
            # Neither a message of protocol 2 nor an event.
            raise ConfigurationError("durable_codec needs task_protocol 2")
        return self._producer.publish(body, *args, **kwargs)


class _Catching:
    """A producer that keeps a message instead of publishing it."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def publish(self, body: Any, *_: Any, **options: Any) -> None:
        self.body, self.options = body, options


def _time_limits(options: Mapping[str, Any], task: Any) -> dict[str, float]:
    """Return the Celery time limits that end an attempt's code, in pools that have them; the task's own where shorter.

    The store ends the attempt itself at about the same time, whatever the pool.
    """
    limit = options.get("attempt_timeout")
    if limit is None:
        return {}
    soft, hard = getattr(task, "soft_time_limit", None), getattr(task, "time_limit", None)
    return {"soft_time_limit": min(limit, soft or limit), "time_limit": min(limit + _GRACE, hard or limit + _GRACE)}


def _place(message: StepMessage) -> Place:
    """Return the place of the arguments that a step's message is for."""
    key = message.key
    return key.place("override" if message.override else "call")


class CeleryDispatcher:
    """Publishes the engine's messages through a Celery app."""

    def __init__(self, app: Celery, codec: Codec, reject: Callable[[StepMessage, Exception], object]) -> None:
        """Use an app; ``reject`` is told of steps that can never be published."""
        self.app, self.codec, self.reject = app, codec, reject
        #: How long messages wait in the queues of this worker; other processes do not know.
        self.lags: Lags | None = None

    def publish(self, messages: Sequence[RunMessage | StepMessage]) -> int:
        """Publish messages over one connection; stop at the first that the broker does not take.

        Where the transport can (kombu 5.7, Redis) many go in one round trip. If that fails some of them may have come.
        """
        published = 0
        with self.app.producer_or_acquire() as producer:
            at_once = _TOGETHER if getattr(producer, "supports_batch_publish", False) else 1
            try:
                while chunk := messages[published : published + at_once]:
                    with producer.batch(len(chunk)) if len(chunk) > 1 else nullcontext():
                        for message in chunk:
                            self._publish(message, producer)
                    published += len(chunk)
            except self._unreachable() as error:
                _log.warning(
                    "the broker took %s of %s messages (%r); the agenda sends the others again",
                    published, len(messages), error,
                )  # fmt: skip
        return published

    @property
    def results_are_messages(self) -> bool:
        """Whether the result backend sends results to the caller (rpc) instead of storing them."""
        return isinstance(self.app.backend, RPCBackend)

    def child_envelope(self, message: StepMessage) -> str:
        """See :meth:`Dispatcher.child_envelope`."""
        options = dict(message.scheduled.options or {})
        options |= self._kinship(message)
        options["shadow"], options[VERSION] = options.pop("label", None), options.pop("version", None)
        args, kwargs = (), {}
        if not self.codec.hides:
            args, kwargs = self.codec.decode(message.scheduled.payload, _place(message)) or ((), {})
        return envelope({**options, **shown(args, kwargs, self.codec)})

    def publish_first(self, message: RunMessage, *, producer: Any) -> None:
        """Publish a run's first message; the run is in the store, so an unreachable broker is only a delay."""
        try:
            with self.app.producer_or_acquire(producer) as one:
                self.expect_results(one)
                self._publish_run(message, one)
        except self._unreachable() as error:
            _log.warning(
                "the broker did not take the start of %s (%r); the agenda sends it", message.workflow_id, error
            )

    def expect_results(self, producer: Any = None) -> None:
        """Make the queue of results that come as messages, before the first of them."""
        if self.results_are_messages:
            with self.app.producer_or_acquire(producer) as one:
                self.app.backend.on_task_call(one, None)

    def _publish_run(self, message: RunMessage, producer: Any) -> None:
        options = kombu_json.loads(message.envelope)
        options.pop(VERSION, None)
        if not message.first:
            # Only the first message shows the arguments; it is the one that monitors take them from.
            options |= {"argsrepr": "()", "kwargsrepr": "{}"}
        header = {"first": message.first, "at": message.created_at, "sent": round(time.time() * 1000)}
        # Where the result is wanted, Celery would subscribe each publishing process to it, and fail if the backend is
        # away. Headers are written last, so the worker sees what was asked for.
        wanted = {"ignore_result": options.pop("ignore_result", False)}
        options["headers"] = {**options.get("headers", {}), HEADER: header, **wanted}
        options.setdefault("root_id", message.workflow_id)
        # A run's later messages are published by its steps, which are its children and not its parents.
        options.setdefault("parent_id", _Unset())
        self.app.send_task(
            message.name,
            (),
            {},
            task_id=message.workflow_id,
            task_type=self.app.tasks.get(message.name),
            producer=producer,
            add_to_parent=False,
            ignore_result=True,
            **options,
        )

    def run_request(self, message: RunMessage, queue: str) -> dict[str, Any]:
        """Return what a worker would have of a run's message from a queue, where there is none.

        Raises:
            Exception: whatever a router or a serializer of the user's raises.
        """
        with self.app.producer_or_acquire() as producer:
            caught = _Catching(producer)
            self._publish_run(message, caught)
        args, kwargs, links = caught.body
        options = caught.options
        return {
            **options["headers"],
            **links,
            "correlation_id": options.get("correlation_id"),
            "reply_to": options.get("reply_to"),
            "is_eager": False,
            "args": args,
            "kwargs": kwargs,
            "delivery_info": {
                "exchange": "",
                "routing_key": queue,
                "priority": options.get("priority"),
                "redelivered": False,
            },
        }

    def _publish(self, message: RunMessage | StepMessage, producer: Any) -> None:
        try:
            if self._may_wait_still(message):
                _log.debug("%s is not sent again, it may well wait still", message)
            else:
                self.write(message, producer)
        except self._unreachable():
            raise
        except CodecError as error:
            # Another process may have the key: the agenda sends it again.
            _log.error("a message cannot be published here: %s", error)
        except Exception as error:  # noqa: BLE001 - a user's code is called here
            # Whatever a user's own apply_async, router or serializer raises must not stop the others' messages. A run
            # is sent again by the agenda, more and more rarely; a step fails, because each resend would fail.
            name = message.workflow_id if isinstance(message, RunMessage) else f"step {message.key}"
            _log.exception("the message of %s cannot be published", name)
            if not isinstance(message, RunMessage):
                self.reject(message, error)

    def write(self, message: RunMessage | StepMessage, producer: Any) -> None:
        """Give a message to a producer.

        Raises:
            Exception: the broker is away, or whatever a router, a codec or an ``apply_async`` of the user's raises.
        """
        if isinstance(message, RunMessage):
            self._publish_run(message, producer)
        else:
            self._publish_step(message, producer)

    def _may_wait_still(self, message: RunMessage | StepMessage) -> bool:
        """Tell whether a message that was published before is most likely in its queue."""
        if not message.sends or self.lags is None:
            return False
        if isinstance(message, RunMessage):
            queue = self.queue_of(message.name, message.envelope)
        else:
            _, _, queue = self.call(message)
        return self.lags.explains(queue, message.sends)

    def _publish_step(self, message: StepMessage, producer: Any) -> None:
        scheduled, key = message.scheduled, message.key
        payload, place = message.override or scheduled.payload, _place(message)
        args, kwargs = self.arguments(message)
        options, header = dict(scheduled.options or {}), self._header(message)
        if scheduled.task in _OWN_TASKS and header["queue"] in self.app.amqp.queues:
            # Who serves the workflow knows them, and maybe nobody else.
            options["queue"] = header["queue"]
        secret: dict[str, str] = {}
        if self.codec.hides or self.codec.is_reference(payload):
            header["sealed"] = place.kind
            producer = _Sealing(producer, payload or "")
        if self.codec.hides:
            secret = shown((), {}, self.codec)
        task = self.app.tasks.get(scheduled.task)
        # A durable task would start a run of its own here; its worker fails the step instead.
        send = self._by_name(scheduled.task)
        if task is not None and not getattr(task, "is_durable", False):
            send = task.apply_async
        send(
            args=args,
            kwargs=kwargs,
            task_id=str(key),
            headers={HEADER: header},
            producer=producer,
            add_to_parent=False,
            ignore_result=True,
            retries=message.retries,
            shadow=options.get("label"),
            **secret,
            **{name: options[name] for name in ("queue", "priority") if name in options},
            **_time_limits(options, task),
            **options.get("message", {}),
            **self._kinship(message),
        )

    def arguments(self, message: StepMessage) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments of a step.

        Raises:
            CodecError: they cannot be opened here.
        """
        args, kwargs = self.codec.decode(message.override or message.scheduled.payload, _place(message))
        return args, kwargs

    def call(self, message: StepMessage) -> tuple[list[Any], dict[str, Any], str]:
        """Return the arguments of a step, and the queue to which its message goes.

        Raises:
            CodecError: the arguments cannot be opened here.
            Exception: whatever a router of the user's raises.
        """
        name, options = message.scheduled.task, message.scheduled.options or {}
        given = {"queue": options["queue"]} if "queue" in options else {}
        args, kwargs = self.arguments(message)
        route = self.app.amqp.router.route(given, name, args, kwargs, task_type=self.app.tasks.get(name))
        queue = route.get("queue")
        return args, kwargs, str(getattr(queue, "name", queue))

    def request(self, message: StepMessage, args: list[Any], kwargs: dict[str, Any], queue: str) -> dict[str, Any]:
        """Return what a worker would have of a step's message, where there is none."""
        key, options = str(message.key), message.scheduled.options or {}
        made = self.app.amqp.as_task_v2(
            key, message.scheduled.task, args, kwargs, ignore_result=True, shadow=options.get("label"),
            **self._kinship(message),
        )  # fmt: skip
        return {
            **made.headers,
            HEADER: self._header(message),
            "correlation_id": key,
            "is_eager": False,
            "delivery_info": {"exchange": "", "routing_key": queue, "priority": None, "redelivered": False},
            "callbacks": None,
            "errbacks": None,
            "chain": None,
            "chord": None,
        }

    def _header(self, message: StepMessage) -> dict[str, Any]:
        key = message.key
        header = {
            "id": key.workflow_id,
            "run": key.run,
            "step": key.number,
            "name": message.workflow,
            "queue": self.queue_of(message.workflow, message.envelope),
            "sent": round(time.time() * 1000),
        }
        if (version := version_of(message.envelope)) > 1:
            header["version"] = version
        return header

    def queue_of(self, name: str, envelope_text: str) -> str:
        """Return the queue (or routing key) to which a run's messages go."""
        given = _options_of(envelope_text)
        route = self.app.amqp.router.route(
            {key: given[key] for key in ("queue", "exchange", "routing_key") if key in given}, name
        )
        queue = route.get("queue")
        return str(getattr(queue, "name", None) or queue or route.get("routing_key") or "")

    def _by_name(self, name: str) -> Callable[..., Any]:
        return lambda args, kwargs, **options: self.app.send_task(name, args, kwargs, **options)

    def _kinship(self, message: StepMessage) -> dict[str, str]:
        workflow_id = message.key.workflow_id
        root = _options_of(message.envelope).get("root_id")
        return {"root_id": root or workflow_id, "parent_id": workflow_id}

    def _unreachable(self) -> tuple[type[BaseException], ...]:
        with self.app.connection_for_write() as connection:
            errors: Iterable[type[BaseException]] = (*connection.connection_errors, *connection.channel_errors)
        return (OperationalError, OSError, _BATCH_FAILED, *errors)
