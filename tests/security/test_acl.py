"""The ACL file that users copy: a real server with it, real workers, and everything else refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import NoPermissionError, ResponseError

from durable_celery.store.protocol import Mail
from durable_celery.store.redis import RedisStore
from tests.security.conftest import APP, Vault
from tests.servers import RedisServer
from tests.store.moves import new
from tests.workers import ROOT

ACL = ROOT / "docker" / "redis-users.acl"
PASSWORDS = {name: f"change-me-{name}" for name in ("admin", "celery", "durable", "broker")}


class GuardedServer(RedisServer):
    """A server with the file: its own clients are the admin."""

    def client(self, database: int = 0) -> redis.Redis:
        return redis.Redis(port=self.port, db=database, username="admin", password=PASSWORDS["admin"])

    def url_of(self, user: str, database: int = 0) -> str:
        return f"redis://{user}:{PASSWORDS[user]}@127.0.0.1:{self.port}/{database}"

    def as_user(self, user: str) -> redis.Redis:
        return redis.Redis.from_url(self.url_of(user))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedServer]:
    directory = tmp_path_factory.mktemp("acl")
    file = directory / "users.acl"
    file.write_text(ACL.read_text())
    with GuardedServer(directory / "redis", aof="everysec", extra_args=("--aclfile", str(file))) as server:
        with server.client() as admin:
            admin.set("foreign", "theirs")
        yield server


@pytest.mark.parametrize(
    ("broker", "store"), [("celery", "celery"), ("broker", "durable")], ids=["one user", "two users"]
)
def test_worker_and_command_line_do_all_they_need(
    guarded: GuardedServer, tmp_path: Path, broker: str, store: str
) -> None:
    vault = Vault(guarded.url_of(broker), tmp_path, durable_store=guarded.url_of(store))
    vault.env["VAULT_STORE"] = guarded.url_of(store)
    with vault.worker() as worker:
        vault.start("everything", "word", workflow_id=f"run-{broker}")
        vault.client.signal(f"run-{broker}", "go", "on")
        vault.wait(f"run-{broker}", "completed", log=lambda: worker.log)
        assert "NoPermission" not in worker.log
        assert "NOPERM" not in worker.log
        assert "appendfsync is unknown (CONFIG GET is refused; everysec is assumed)" in worker.log
        for words in (["list"], ["show", f"run-{broker}"], ["history", f"run-{broker}"]):
            done = _celery(vault, "durable", *words)
            assert done.returncode == 0, done.stderr
            assert f"run-{broker}" in done.stdout
        assert "pong" in _celery(vault, "inspect", "ping").stdout


def _celery(vault: Vault, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **vault.env, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "celery", "-A", APP, *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("user", ["celery", "durable", "broker"])
@pytest.mark.parametrize(
    "command",
    [
        "FLUSHALL", "FLUSHDB", "KEYS *", "CONFIG GET *", "CONFIG SET appendonly no", "ACL LIST", "SHUTDOWN NOSAVE",
        "MONITOR", "REPLICAOF NO ONE", "GET foreign", "SET foreign mine", "DEL foreign", "SAVE",
    ],
)  # fmt: skip
def test_what_no_application_needs_is_refused(guarded: GuardedServer, user: str, command: str) -> None:
    with guarded.as_user(user) as client, pytest.raises(NoPermissionError):
        client.execute_command(*command.split())
    with guarded.client() as admin:
        assert admin.get("foreign") == b"theirs"


@pytest.mark.parametrize("user", ["celery", "durable"])
def test_scripts_reach_no_foreign_key(guarded: GuardedServer, user: str) -> None:
    with guarded.as_user(user) as client:
        for script, keys in (
            ("return redis.call('get', KEYS[1])", ["foreign"]),
            ("return redis.call('get', 'foreign')", []),
        ):
            with pytest.raises((NoPermissionError, ResponseError)):
                client.eval(script, len(keys), *keys)


def test_users_of_broker_and_store_cannot_reach_each_other_s_keys(guarded: GuardedServer) -> None:
    for user, key in (("broker", "durable:{0}:log:x"), ("durable", "celery")):
        with guarded.as_user(user) as client, pytest.raises(NoPermissionError):
            client.lpush(key, "forged")


@pytest.mark.parametrize(("user", "may_publish"), [("celery", True), ("durable", False)])
def test_a_store_that_may_not_write_to_the_broker_leaves_that_to_the_caller(
    guarded: GuardedServer, user: str, may_publish: bool
) -> None:
    store = RedisStore.from_url(guarded.url_of(user))
    started = store.start(new(f"mail-of-{user}", mail=Mail("celery", "a message")))

    assert started.created
    assert (started.message is None) == may_publish
    with guarded.client() as admin:
        assert admin.delete("celery") == may_publish


def test_nobody_gets_in_without_a_name(guarded: GuardedServer) -> None:
    with redis.Redis(port=guarded.port) as client, pytest.raises(redis.exceptions.AuthenticationError):
        client.get("x")


def test_findings_without_the_right_to_ask_say_so(guarded: GuardedServer) -> None:
    findings: list[Any] = RedisStore.from_url(guarded.url_of("durable")).findings()
    [sync] = [finding for finding in findings if finding.check == "appendfsync"]
    assert sync.level == "warning"
    assert "CONFIG GET is refused" in sync.message
    assert not [finding for finding in findings if finding.level == "error"]
