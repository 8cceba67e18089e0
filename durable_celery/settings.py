"""The settings of durable_celery: Celery settings with the prefix ``durable_``, read once and checked.

They are given as other Celery settings are: ``app.conf.durable_store = "redis://..."``, in the configuration module, or
with the app's configuration namespace (``CELERY_DURABLE_STORE`` in Django's settings).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from durable_celery.errors import ConfigurationError

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["PREFIX", "Settings"]

PREFIX = "durable_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, without their prefix."""

    #: URL of the store. Default: the broker's URL, or the result backend's, whichever is Redis or an SQL database.
    store: str = ""
    #: All keys and tables of this library begin with it; apps with other namespaces do not meet on one server.
    namespace: str = "durable"
    #: Into how many hash slots runs are spread. More than 1 only for Redis Cluster; fixed once runs exist.
    shards: int = 1
    #: Longest argument list, result, signal or failure, in characters of JSON, before ``durable_codec``.
    payload_limit: int = 1_000_000
    #: What payloads and failures pass through on their way into the log: a codec, its dotted path, or a list.
    codec: Any = None
    #: Read payloads from before ``durable_codec`` was set, though it has a codec that hides them.
    codec_plain: bool = False
    #: Where a codec hides payloads: give a run's end to Celery in plain, for result backend, callbacks and monitors.
    reveal_results: bool = False
    #: Longest history in events; a run that reaches it is blocked. 0: no limit.
    history_limit: int = 50_000
    #: Longest history in bytes, about as stored; a run that reaches it is blocked. 0: no limit.
    history_bytes_limit: int = 50 * 1024 * 1024
    #: How many signals and other inputs may wait for a run's next turn; a sender of more is refused. 0: no limit.
    inbox_limit: int = 10_000
    #: Seconds that a worker's leases outlive its last sign of life.
    owner_ttl: float = 10.0
    #: Seconds until a message that nobody picked up is sent again; doubles each time. It is not while messages that
    #: arrive in the same queue have waited as long.
    resend_after: float = 10.0
    #: Longest wait between two sends of one message, in seconds.
    resend_limit: float = 300.0
    #: Seconds that a closed and delivered run is kept.
    retention: float = 7 * 86400.0
    #: Longest wait between two looks at the agenda, in seconds. Timers shorter than this may be late by it.
    sweep_interval: float = 0.25
    #: Suspended executions kept in each worker thread; 0 replays each turn from the start.
    cache_size: int = 500
    #: Seconds for which a process may go on with a run, short step after short step, without a message for each; 0: it
    #: may not.
    run_ahead: float = 0.05
    #: Put messages into the broker within the transactions of the store: both have to be one Redis database.
    atomic_publish: bool = False
    #: How many lost processes a step without a retry policy survives.
    lost_attempts: int = 5
    #: Seconds that a finished step waits for a store that is away, before it gives up and is repeated later.
    patience: float = 60.0
    #: Seconds that an idle worker may leave messages in its queues before it is made to connect again; 0 for ever.
    watchdog: float = 30.0
    #: Your databases whose outbox is relayed: a URL, an engine, what makes one or its path, django:default, or a list.
    outbox: Any = None
    #: What the name of the outbox's table begins with.
    outbox_prefix: str = "durable"
    #: SQL database that keeps closed runs for good: a URL, an engine, what makes one or its path.
    archive: Any = None
    #: Unsafe settings that are accepted all the same, by the name that the error message gives.
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        positive = {"shards", "payload_limit", "owner_ttl", "resend_after", "resend_limit", "sweep_interval"}
        for item in fields(self):
            value: Any = getattr(self, item.name)
            if isinstance(item.default, bool):
                if not isinstance(value, bool):
                    _refuse(item.name, value, "True or False")
            elif isinstance(item.default, int | float):
                kind = int | float if isinstance(item.default, float) else int
                is_number = isinstance(value, kind) and not isinstance(value, bool)
                if not is_number or value < 0 or (value == 0 and item.name in positive):
                    what = "number" if isinstance(item.default, float) else "whole number"
                    _refuse(item.name, value, f"a positive {what}" if item.name in positive else f"a {what} from 0")
            elif isinstance(item.default, str) and not isinstance(value, str):
                _refuse(item.name, value, "a text")
        allow: Any = self.allow
        if not isinstance(allow, tuple) or not all(isinstance(name, str) for name in allow):
            _refuse("allow", self.allow, "a list of names")
        if not self.namespace or any(sign in self.namespace for sign in "{} *?[]"):
            _refuse("namespace", self.namespace, "a name without spaces, braces and wildcards")

    @classmethod
    def of(cls, app: Celery) -> Self:
        """Read the settings of an app.

        Raises:
            ConfigurationError: a setting has a wrong value, or a ``durable_`` setting is unknown.
        """
        known = {item.name for item in fields(cls)}
        given: dict[str, Any] = {}
        for name in known:
            value = app.conf.get(PREFIX + name)
            if value is not None:
                given[name] = tuple(value) if isinstance(value, list | set) else value
        prefix = (app.conf.prefix or "").lower()
        conf: Any = app.conf
        for key in conf:
            name = str(key).lower().removeprefix(prefix)
            if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in known:
                msg = f"there is no setting {name!r}; known are {', '.join(sorted(PREFIX + k for k in known))}"
                raise ConfigurationError(msg)
        return cls(**given)


def _refuse(name: str, value: object, wanted: str) -> None:
    msg = f"the setting {PREFIX}{name} is {value!r}; it takes {wanted}"
    raise ConfigurationError(msg)
