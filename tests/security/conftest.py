"""A Redis, an app with secrets, its real worker; and who listens to all that the server is told."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import pytest
from celery import Celery

from durable_celery.app import Binding
from durable_celery.codec import AesGcm, Deflate, Place
from durable_celery.engine.starting import start_run
from durable_celery.store.memory import MemoryStore
from durable_celery.store.protocol import NewRun, RunRecord
from durable_celery.store.redis import RedisStore
from tests.servers import RedisServer
from tests.waiting import wait_until
from tests.workers import ROOT, CeleryWorker

APP = "tests.security.vault"


def new_key(key_id: str) -> str:
    """Return a key as the environment has it."""
    return f"{key_id}:{base64.b64encode(os.urandom(32)).decode()}"


class Monitor:
    """Hears every command that a server executes: all that producers and workers send to it."""

    def __init__(self, server: RedisServer) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port))
        self._heard = bytearray()
        self._socket.sendall(b"MONITOR\r\n")
        self._thread = threading.Thread(target=self._listen, daemon=True)

    @property
    def heard(self) -> bytes:
        return bytes(self._heard)

    def _listen(self) -> None:
        while chunk := self._receive():
            self._heard += chunk

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(1 << 16)
        except OSError:
            return b""

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self._heard, 10, "the monitor")
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Vault:
    """The app with its broker and store on one server, as a client with (or without) the keys sees it."""

    def __init__(self, url: str, directory: Path, keys: str = "", **settings: Any) -> None:
        self.url, self.directory, self.settings = url, directory, settings
        self.env = {"VAULT_BROKER": url, "VAULT_KEYS": keys}
        self.binding = Binding(self.client_app(keys))
        self.client = self.binding.client

    def client_app(self, keys: str) -> Celery:
        """Return an app that knows the tasks by name only."""
        app = Celery("elsewhere", broker=self.url, set_as_current=False)
        app.conf.update(self.settings)
        if keys:
            app.conf.durable_codec = [Deflate(above=200), AesGcm.from_text(keys)]
        return app

    def worker(
        self, *, env: Mapping[str, str] | None = None, concurrency: int = 2, queues: tuple[str, ...] = ()
    ) -> CeleryWorker:
        """Return a worker that sends events; not started."""
        given = {**self.env, **(env or {})}
        return CeleryWorker(APP, self.directory, env=given, args=["-E"], concurrency=concurrency, queues=queues)

    def start(self, name: str, *args: object, workflow_id: str) -> str:
        """Start a run as the library's own producers do."""
        codec, place = self.binding.codec, Place(workflow_id, "start")
        text = codec.dumps([list(args), {}], "arguments")
        name, payload = f"vault.{name}", codec.seal(text, place)
        new = NewRun(workflow_id=workflow_id, name=name, payload=payload, digest="")
        started = start_run(self.binding.store, new, codec.digests(text, place))
        self.binding.engine.publish([started.message])
        return workflow_id

    def call(self, name: str, *args: str, workflow_id: str) -> str:
        """Start a run as the app itself does, in a process of its own."""
        code = f"import sys; from {APP} import {name}; {name}.apply_async(sys.argv[2:], task_id=sys.argv[1])"
        env = {**os.environ, **self.env, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code, workflow_id, *args], env=env, check=True, timeout=60)
        return workflow_id

    def wait(self, workflow_id: str, status: str, timeout: float = 40.0, *, log: Any = lambda: "") -> RunRecord:
        """Wait until a run has a status; an ended one is delivered too."""

        def found() -> RunRecord | None:
            record = self.binding.store.get(workflow_id)
            there = record is not None and record.status == status
            return (
                record if there and record is not None and (record.delivered or not record.status.is_closed) else None
            )

        wait_until(found, timeout, lambda: f"{workflow_id}: {self.binding.store.get(workflow_id)}\n{log()}")
        return self.client.describe(workflow_id)

    def result(self, workflow_id: str) -> Any:
        """Return what a run returned, or the exception that it failed with."""
        end = self.client.ending(workflow_id)
        assert end is not None
        return self.client.outcome(end.event, workflow_id)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis", aof="everysec") as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
def any_store(request: pytest.FixtureRequest) -> Any:
    """Give each store, empty."""
    if request.param == "memory":
        return MemoryStore()
    return RedisStore.from_url(request.getfixturevalue("server").url)


@pytest.fixture
def vault_without_worker(server: RedisServer, tmp_path: Path) -> Vault:
    return Vault(server.url, tmp_path, durable_inbox_limit=3)
