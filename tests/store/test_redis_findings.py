"""Every setting of a server that would lose work is found, with what it costs and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from durable_celery.errors import ConfigurationError
from durable_celery.store.protocol import Finding
from durable_celery.store.redis import RedisStore
from durable_celery.store.redis_checks import check_server
from tests.servers import Aof, RedisServer, free_port
from tests.store.moves import new

#: What a well-kept server says.
GOOD: dict[str, Any] = {
    "redis_version": "7.0.15",
    "role": "master",
    "maxmemory_policy": "noeviction",
    "maxmemory": 1000,
    "used_memory": 100,
    "aof_enabled": 1,
    "aof_last_write_status": "ok",
    "aof_last_bgrewrite_status": "ok",
    "loading": 0,
}


def found(findings: list[Finding], check: str) -> Finding | None:
    matching = [finding for finding in findings if finding.check == check]
    assert len(matching) <= 1
    return matching[0] if matching else None


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A server with the parameter's words on its command line."""
    with RedisServer(tmp_path, aof="everysec", extra_args=request.param) as started:
        yield started


def ask(server: RedisServer) -> list[Finding]:
    return RedisStore.from_url(server.url).findings()


@pytest.mark.parametrize(
    "server",
    [("--maxmemory-policy", policy) for policy in ("allkeys-lru", "volatile-lru", "allkeys-random", "volatile-ttl")],
    indirect=True,
    ids=lambda words: words[1],
)
def test_server_that_evicts_is_an_error(server: RedisServer) -> None:
    finding = found(ask(server), "maxmemory-policy")

    assert finding is not None
    assert finding.level == "error"
    assert "3,960 of 8,000" in finding.message
    assert "noeviction" in finding.message


@pytest.mark.parametrize(
    ("aof", "check", "level", "words"),
    [
        ("no", "appendonly", "warning", "D0"),
        ("everysec", "appendfsync", "info", "D1"),
        ("always", "appendfsync", "info", "D2"),
    ],
)
def test_durability_class_is_told(tmp_path: Path, aof: Aof, check: str, level: str, words: str) -> None:
    with RedisServer(tmp_path, aof=aof) as server:
        findings = ask(server)

    finding = found(findings, check)
    assert finding is not None
    assert finding.level == level
    assert f"durability class {words}" in finding.message
    assert findings == [finding]


@pytest.mark.parametrize("server", [("--appendfsync", "no")], indirect=True, ids=["no"])
def test_server_that_leaves_syncing_to_the_system_is_a_warning(server: RedisServer) -> None:
    server.client().config_set("appendfsync", "no")

    finding = found(ask(server), "appendfsync")

    assert finding is not None
    assert finding.level == "warning"


@pytest.mark.parametrize("server", [("--repl-diskless-sync", "yes")], indirect=True, ids=["replica"])
def test_replica_is_an_error(server: RedisServer) -> None:
    server.client().replicaof("127.0.0.1", free_port())

    finding = found(ask(server), "role")

    assert finding is not None
    assert finding.level == "error"


def test_findings_write_nothing_and_refuse_another_layout(redis_url: str) -> None:
    store = RedisStore.from_url(redis_url)
    assert store.findings()
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0

    store.start(new())

    assert store.findings()
    with pytest.raises(ConfigurationError, match="shards"):
        RedisStore.from_url(redis_url, shards=2).findings()


@pytest.mark.parametrize("server", [("--maxmemory", "2gb")], indirect=True, ids=["no-config"])
def test_server_that_hides_its_settings_is_assumed_to_sync_each_second(server: RedisServer) -> None:
    server.client().acl_setuser(
        "app", enabled=True, nopass=True, keys=["*"], categories=["+@all"], commands=["-config"]
    )
    findings = RedisStore.from_url(f"redis://app:x@127.0.0.1:{server.port}/0").findings()

    finding = found(findings, "appendfsync")

    assert finding is not None
    assert finding.level == "warning"
    assert "unknown" in finding.message


@pytest.mark.parametrize(
    ("said", "check", "level"),
    [
        ({"redis_version": "6.0.16"}, "version", "error"),
        ({"redis_version": "5.0"}, "version", "error"),
        ({"aof_last_write_status": "err"}, "aof_last_write_status", "error"),
        ({"aof_last_bgrewrite_status": "err"}, "aof_last_bgrewrite_status", "error"),
        ({"loading": 1}, "loading", "warning"),
        ({"used_memory": 800}, "memory", "warning"),
    ],
)
def test_what_a_server_says_of_itself_is_held_against_what_it_should(
    said: dict[str, Any], check: str, level: str
) -> None:
    finding = found(check_server({**GOOD, **said}, "always"), check)

    assert finding is not None
    assert finding.level == level


def test_server_that_loads_its_data_is_not_said_to_write_none() -> None:
    # While it reads its append-only file, a server says that it has none.
    findings = check_server({**GOOD, "loading": 1, "aof_enabled": 0}, None)

    assert [finding.check for finding in findings] == ["loading"]


@pytest.mark.parametrize("version", ["6.2.0", "7.4.1", "8.0", "10.1.0"])
def test_well_kept_server_has_nothing_but_its_class(version: str) -> None:
    findings = check_server({**GOOD, "redis_version": version}, "always")

    assert [(finding.level, finding.check) for finding in findings] == [("info", "appendfsync")]
