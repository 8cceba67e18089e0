"""A secret goes through every place of a run, on a real worker, and is found nowhere but in the process's memory."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from durable_celery.codec import HIDDEN
from tests.security.conftest import APP, Monitor, Vault, new_key
from tests.servers import RedisServer, free_port
from tests.waiting import wait_until
from tests.workers import ROOT, CeleryWorker

CANARY = "canary-7f3a-4111-1111-1111-1111"


def find(canary: str, text: bytes) -> bytes | None:
    """Return the surroundings of a secret in a text, also where it is in base64, deflated, or in a base64 body."""
    needles = [canary.encode(), *_base64_forms(canary)]
    for needle in needles:
        at = text.find(needle)
        if at >= 0:
            return text[max(0, at - 200) : at + 100]
    return None


def _base64_forms(canary: str) -> list[bytes]:
    """Return what every base64 text has that holds the secret, at each of the three alignments."""
    return [base64.b64encode(b"x" * shift + canary.encode())[4:-4] for shift in range(3)]


def dump(server: RedisServer) -> bytes:
    """Return all keys of all databases with all their values, as they are and inflated."""
    parts: list[bytes] = []
    for database in range(3):
        with server.client(database) as client:
            for key in client.scan_iter(count=1000):
                raw: Any = client.dump(key)
                parts += [bytes(key), raw or b"", repr(_value(client, key)).encode()]
    return b"\n".join(parts)


def _value(client: Any, key: bytes) -> Any:
    match client.type(key):
        case b"string":
            return client.get(key)
        case b"list":
            return client.lrange(key, 0, -1)
        case b"hash":
            return client.hgetall(key)
        case b"set":
            return client.smembers(key)
        case b"zset":
            return client.zrange(key, 0, -1, withscores=True)
        case other:
            raise AssertionError(other)


def test_the_search_finds_a_secret_in_each_form() -> None:
    body = base64.b64encode(json.dumps([["a", CANARY], {}, {}]).encode())
    for shift in range(3):
        assert find(CANARY, base64.b64encode(b"y" * (shift + 9) + CANARY.encode() + b"zzzz"))
    assert find(CANARY, body)
    assert find(CANARY, f"x {CANARY} y".encode())
    assert find(CANARY, zlib.compress(CANARY.encode() * 50)) is None, "so payloads are looked at before they are small"


@pytest.fixture
def keys() -> str:
    return new_key("k1")


@pytest.fixture
def flower(server: RedisServer, tmp_path: Path, keys: str) -> Iterator[int]:
    """Start Flower and give its port."""
    port, log = free_port(), tmp_path / "flower.log"
    words = ["flower", f"--port={port}", "--address=127.0.0.1", f"--db={log}.db"]
    env = {
        "VAULT_BROKER": server.url,
        "VAULT_KEYS": keys,
        "PYTHONPATH": str(ROOT),
        "FLOWER_UNAUTHENTICATED_API": "true",
    }
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", APP, *words], env={**os.environ, **env}, stdout=file, stderr=file
        )
    try:
        wait_until(lambda: _ask(port, "/api/tasks") is not None, 60, lambda: f"Flower:\n{log.read_text()}")
        yield port
    finally:
        process.terminate()
        process.wait(20)


def _ask(port: int, path: str) -> bytes | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return bytes(answer.read())
    except OSError:
        return None


def rows_of(port: int) -> dict[str, Any]:
    """Return Flower's rows by task id."""
    rows: dict[str, Any] = json.loads(_ask(port, "/api/tasks?limit=1000") or b"{}")
    return rows


def are_settled(rows: dict[str, Any]) -> bool:
    return all(rows.get(name, {}).get("state") in {"SUCCESS", "FAILURE"} for name in ("all", "broken"))


def run_everything(vault: Vault, worker: CeleryWorker) -> Any:
    """Carry the canary through all places; return the result of the run that has them all."""
    vault.call("everything", CANARY, workflow_id="all")
    vault.start("breaks", CANARY, workflow_id="broken")
    vault.start("touches", CANARY, workflow_id="touching")
    vault.start("waits", CANARY, workflow_id="unwanted")
    vault.client.signal("all", "go", {"word": CANARY})
    vault.client.cancel("unwanted", f"because of {CANARY}")
    vault.wait("all", "completed", log=lambda: worker.log)
    vault.wait("broken", "failed", log=lambda: worker.log)
    vault.wait("touching", "blocked", log=lambda: worker.log)
    vault.wait("unwanted", "cancelled", log=lambda: worker.log)
    return vault.result("all")


def test_secret_is_found_nowhere_with_the_codec_on(server: RedisServer, tmp_path: Path, keys: str, flower: int) -> None:
    vault = Vault(server.url, tmp_path, keys)
    backend = {"VAULT_BACKEND": server.database_url(1)}
    with Monitor(server) as monitor, vault.worker(env=backend) as worker:
        result = run_everything(vault, worker)
        wait_until(lambda: are_settled(rows_of(flower)), 30, "Flower's rows")
        rows = rows_of(flower)
    assert result[0] == CANARY * 2
    assert result[-1] == {"word": CANARY}
    assert isinstance(vault.result("broken"), ValueError)
    assert CANARY in str(vault.result("broken"))
    assert CANARY in vault.client.legible(vault.client.describe("touching")).reason

    assert find(CANARY, worker.log.encode()) is None
    assert find(CANARY, json.dumps(rows).encode()) is None
    assert find(CANARY, dump(server)) is None
    assert find(CANARY, monitor.heard) is None

    assert rows["all/1.1"]["args"] == HIDDEN
    assert HIDDEN in rows["all"]["result"]
    assert HIDDEN in rows["all/1.1"]["result"]
    assert "builtins.ValueError" in rows["all/1.2"]["exception"]
    assert "HiddenFailure" in worker.log
    assert b"celery-task-meta-all" in monitor.heard, "the result backend was written to, and is part of the search"


def test_the_same_run_without_a_codec_leaks_everywhere_so_the_search_is_no_fake(
    server: RedisServer, tmp_path: Path
) -> None:
    vault = Vault(server.url, tmp_path)
    with Monitor(server) as monitor, vault.worker() as worker:
        run_everything(vault, worker)
    assert find(CANARY, monitor.heard)
    assert find(CANARY, dump(server))
    assert find(CANARY, worker.log.encode()), "Celery's own lines show results"
    own = [line for line in worker.log.splitlines() if "durable_celery" in line or "durable-celery" in line]
    assert not any(CANARY in line for line in own if "SideEffectError" not in line and "touching" not in line)


def test_results_are_shown_where_that_is_asked_for(server: RedisServer, tmp_path: Path, keys: str) -> None:
    vault = Vault(server.url, tmp_path, keys)
    env = {"VAULT_REVEAL": "1"}
    with vault.worker(env=env) as worker:
        vault.start("child", CANARY, workflow_id="shown")
        vault.wait("shown", "completed", log=lambda: worker.log)
        wait_until(lambda: f"'{CANARY}c'" in worker.log, 20, "the result in the log")
    steps = [line for line in worker.log.splitlines() if "vault.echo" in line]
    assert not any(CANARY in line for line in steps)
