"""How a script gets to Redis or Valkey, one server or a cluster, and how what goes wrong becomes our own errors."""

from __future__ import annotations

import json
import logging
import os
import re
from contextlib import contextmanager
from functools import cache
from hashlib import sha1
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit
from zlib import crc32

import redis
from redis.backoff import ExponentialBackoff
from redis.cluster import RedisCluster
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.retry import Retry

from durable_celery.errors import ConfigurationError, StoreError, StoreUnavailableError
from durable_celery.store.hearing import Ears
from durable_celery.store.redis_checks import check_server
from durable_celery.store.redis_lines import lines_of
from durable_celery.store.redis_replies import milliseconds

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from durable_celery.store.hearing import Told
    from durable_celery.store.protocol import Finding, Timing
    from durable_celery.store.redis_lines import Lines

__all__ = ["Client", "Server", "connect", "plain_url", "script"]

_log = logging.getLogger(__name__)

Client = redis.Redis | RedisCluster

#: Version of the keys and their values; recorded beside the number of shards.
LAYOUT = 1
#: Seconds in which a server says that a subscription stands.
_FIRST_WORD = 5.0
#: Words by which a server says: not now. redis-py takes off those that it has a class for; Redis 6.2 wraps an error
#: inside a script, so that the word may stand anywhere.
_NOT_NOW = re.compile(r"\b(READONLY|MISCONF|NOREPLICAS|BUSY|UNKILLABLE|LOADING|CLUSTERDOWN|MASTERDOWN|TRYAGAIN)\b")


class Server:
    """One namespace on a server or cluster: how a script gets there, and how its errors become ours."""

    def __init__(self, connect: Callable[[], Client], namespace: str, shards: int, timing: Timing) -> None:
        if not namespace or set(namespace) & set("{}") or shards < 1:
            raise ConfigurationError(
                f"namespace {namespace!r} with {shards} shards: a namespace takes characters other than braces, "
                "and there is at least one shard"
            )
        self.namespace, self.shards = namespace, shards
        waits = (timing.owner_ttl, timing.resend_after, timing.resend_limit, timing.retention)
        self._waits = " ".join(str(milliseconds(wait)) for wait in waits)
        self._layout_key, self._layout = f"{namespace}:layout", {"layout": LAYOUT, "shards": shards}
        self._connect = connect
        self._client: Client | None = None
        #: Over which scripts go, if not by the client.
        self._lines: Lines | None = None
        self._pid = 0
        self._is_checked = False
        #: Those who wait for the end of a run.
        self.ears = Ears(self._listening)

    @contextmanager
    def _listening(self) -> Generator[Told | None]:
        """Give what is told of the ends of runs, or None where the server lets nobody hear it."""
        client: Any = self._connected()
        with client.pubsub() as listener:
            listener.subscribe(f"{self.namespace}:ends")
            try:
                listener.get_message(timeout=_FIRST_WORD)
            except NoPermissionError as error:
                _log.info("ends of runs are asked for, because nobody may hear of them: %s", error)
                yield None
                return

            def told(seconds: float) -> list[str | None]:
                message = listener.get_message(timeout=seconds)
                if message is None:
                    return []
                # A second subscription is that of a new connection: what was told in between was told to nobody.
                return [_as_text(message["data"]) if message["type"] == "message" else None]

            yield told

    def shard_of(self, workflow_id: str) -> int:
        """Return the shard in which a run lies."""
        return crc32(workflow_id.encode()) % self.shards

    def key(self, shard: int, name: str) -> str:
        """Return the name of a key of a shard."""
        return f"{self.namespace}:{{{shard}}}:{name}"

    def script(self, name: str, shard: int, *words: str | int) -> Any:
        """Run a verb's script on a shard."""
        if not self._is_checked:
            self._note_layout()
        text, digest = script(name)
        arguments = (1, self.key(shard, "agenda"), self._waits, *words)

        def run(client: Any) -> Any:
            runner = self._lines or client
            try:
                return runner.evalsha(digest, *arguments)
            except NoScriptError:
                return runner.eval(text, *arguments)

        return self.ask(run)

    def scripts(self, name: str, calls: Sequence[tuple[int, tuple[str | int, ...]]]) -> list[Any]:
        """Run a verb's script many times, each time on a shard with other words, in one round trip.

        A cluster takes them one by one.
        """
        if not calls:
            return []
        # The first one by itself: then the server has the script, and the layout is known.
        (shard, words), *rest = calls
        replies = [self.script(name, shard, *words)]
        if isinstance(self._connected(), RedisCluster):
            return replies + [self.script(name, shard, *words) for shard, words in rest]
        _, digest = script(name)

        def run(client: Any) -> list[Any]:
            pipe = client.pipeline(transaction=False)
            for shard, words in rest:
                pipe.evalsha(digest, 1, self.key(shard, "agenda"), self._waits, *words)
            found: list[Any] = pipe.execute()
            return found

        replies += self.ask(run)
        return replies

    def ask(self, question: Callable[[Any], Any]) -> Any:
        """Ask the server, and say in our own errors what went wrong."""
        try:
            return _as_text(question(self._connected()))
        except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
            raise ConfigurationError(f"the Redis server does not allow this: {error}") from error
        except ResponseError as error:
            raise _refusal(error) from error
        except (RedisError, RedisClusterException, OSError) as error:
            raise StoreUnavailableError(f"the Redis server does not answer: {error}") from error

    def findings(self) -> list[Finding]:
        """Ask each primary about its settings; refuse another layout. Writes nothing."""
        client: Any = self._connected()
        nodes = client.get_primaries() if isinstance(client, RedisCluster) else [None]  # type: ignore[no-untyped-call]  # redis-py
        found: list[Finding] = []
        for node in nodes:
            to = {} if node is None else {"target_nodes": node}
            found += [item for item in self._check(to) if item not in found]
        self._compare_layout()
        return found

    def _check(self, to: dict[str, Any]) -> list[Finding]:
        info = self.ask(lambda client: client.info(**to))
        try:
            setting = self.ask(lambda client: client.config_get("appendfsync", **to))
        except (StoreError, ConfigurationError):
            # Managed servers often refuse CONFIG; the check says that it does not know.
            setting = {}
        return check_server(info, setting.get("appendfsync"))

    def _note_layout(self) -> None:
        """Record the layout at first use of the namespace, or find it there."""
        self.ask(methodcaller("setnx", self._layout_key, json.dumps(self._layout)))
        self._compare_layout()
        self._is_checked = True

    def _compare_layout(self) -> None:
        """Refuse a layout that another process did not have: its runs would not be found."""
        text = self.ask(methodcaller("get", self._layout_key))
        if text is not None and (theirs := json.loads(text)) != self._layout:
            raise ConfigurationError(
                f"namespace {self.namespace!r} was made with {theirs}, and this process has {self._layout}: runs would "
                "not be found. Set the number of shards back, or use another namespace"
            )

    def _connected(self) -> Client:
        # A cluster client holds locks and node tables that do not survive a fork in the middle of their use.
        if self._client is None or self._pid != os.getpid():
            client = self._connect()
            self._lines = lines_of(client)
            self._client, self._pid = client, os.getpid()
        return self._client


def _refusal(error: ResponseError) -> StoreError:
    text = str(error)
    if isinstance(error, OutOfMemoryError) or "OOM command not allowed" in text:
        # Whoever has an outcome in hand waits, as for a server that is away: room may be made.
        return StoreUnavailableError(
            f"the Redis server is at its memory limit and refused the write, nothing was written: {text}"
        )
    if isinstance(error, ReadOnlyError | ClusterError | TryAgainError | AskError) or _NOT_NOW.search(text):
        return StoreUnavailableError(f"the Redis server refuses work for now: {text}")
    return StoreError(f"the Redis server refused: {text}")


def _as_text(reply: Any) -> Any:
    """Return a reply with text for bytes: the client may or may not decode."""
    if isinstance(reply, bytes):
        return reply.decode()
    if isinstance(reply, list):
        return [_as_text(item) for item in reply]
    if isinstance(reply, dict):
        return {_as_text(key): _as_text(value) for key, value in reply.items()}
    return reply


@cache
def script(name: str) -> tuple[str, str]:
    """Return the text of a verb's script, with what all share before it, and its digest."""
    folder = Path(__file__).with_name("lua")
    text = "\n".join((folder / f"{part}.lua").read_text() for part in ("common", name))
    return text, sha1(text.encode()).hexdigest()  # noqa: S324 - Redis names scripts by SHA-1


def connect(url: str, *, cluster: bool) -> Client:
    """Return a client for a URL of redis-py or of kombu. It connects when it is first asked."""
    # Three more tries within half a second: enough for a restart of a proxy, too short to hide an outage.
    retry = Retry(ExponentialBackoff(cap=0.3, base=0.05), 3)
    options: dict[str, Any] = {"decode_responses": True, "socket_timeout": 5, "socket_connect_timeout": 5}
    if cluster:
        return RedisCluster.from_url(url, retry=retry, **options)
    return redis.Redis.from_url(plain_url(url), retry=retry, retry_on_error=[BusyLoadingError], **options)


def plain_url(url: str) -> str:
    """Return a URL as redis-py spells it: kombu writes ``redis+socket:///path?virtual_host=0`` for a Unix socket."""
    parts = urlsplit(url)
    if parts.scheme not in {"redis+socket", "socket"}:
        return url
    database = parse_qs(parts.query).get("virtual_host", ["0"])[0]
    login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return f"unix://{login}{parts.path}?db={database.strip('/') or 0}"
