"""The command line shows what is stored; opened only for who has the keys and asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.security.conftest import APP, Vault, new_key
from tests.servers import RedisServer
from tests.workers import ROOT

CANARY = "canary-on-the-screen"


@pytest.fixture
def vault(server: RedisServer, tmp_path: Path) -> Vault:
    vault = Vault(server.url, tmp_path, new_key("k1"))
    vault.start("waits", CANARY, workflow_id="w")
    vault.client.signal("w", "go", CANARY)
    vault.client.cancel("w", f"because of {CANARY}")
    return vault


def durable(vault: Vault, *words: str, keys: str | None = None) -> str:
    env = {**os.environ, **vault.env, "PYTHONPATH": str(ROOT)}
    if keys is not None:
        env["VAULT_KEYS"] = keys
    command = [sys.executable, "-m", "celery", "-A", APP, "durable", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True).stdout


def test_payloads_are_shown_as_stored_unless_somebody_asks(vault: Vault) -> None:
    for words in (
        ["list"],
        ["show", "w"],
        ["history", "w"],
        ["history", "w", "--payloads"],
        ["history", "w", "--json"],
    ):
        shown = durable(vault, *words)
        assert "w" in shown
        assert CANARY not in shown
    assert "~aes~" in durable(vault, "history", "w", "--payloads")

    told = durable(vault, "history", "w", "--decode")
    assert f"vault.waits('{CANARY}')" in told
    assert f"go = '{CANARY}'" in told
    assert f"because of {CANARY}" in told
    assert CANARY in durable(vault, "show", "w", "--decode")
    events = json.loads(durable(vault, "history", "w", "--decode", "--json"))["events"]
    assert events[0]["payload"] == f'[["{CANARY}"],{{}}]'


def test_who_asks_without_the_keys_sees_what_is_stored(vault: Vault) -> None:
    for keys in ("", new_key("k9")):
        told = durable(vault, "history", "w", "--decode", keys=keys)
        assert CANARY not in told
        assert "~aes~" in told
