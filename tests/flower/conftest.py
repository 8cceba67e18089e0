"""A Redis, a real worker that sends events, and a real Flower that shows them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from durable_celery.app import Binding
from durable_celery.store.protocol import RunRecord
from tests.servers import RedisServer, free_port
from tests.waiting import wait_until
from tests.workers import ROOT, CeleryWorker

APP = "tests.flower.shop"

Row = dict[str, Any]

#: States of a row that is not at its end.
OPEN = {"PENDING", "RECEIVED", "STARTED", "RETRY", "REJECTED"}


class Watched:
    """The shop under Flower's eyes."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url, self.gates = url, directory / "gates"
        self.gates.mkdir()
        self.directory = directory
        self.env = {"SHOP_BROKER": url, "SHOP_GATES": str(self.gates)}
        self.worker = self.new_worker()
        self.port = free_port()
        self.flower_log = directory / "flower.log"
        self.process_env = {**os.environ, **self.env, "PYTHONPATH": str(ROOT)}
        # A producer that knows the tasks by name only.
        self.app = Celery("elsewhere", broker=url, set_as_current=False)
        self.client = Binding(self.app).client

    def new_worker(self, queues: Iterable[str] = ()) -> CeleryWorker:
        return CeleryWorker(APP, self.directory, concurrency=2, queues=queues, env=self.env, args=["-E"])

    def serve(self) -> subprocess.Popen[bytes]:
        """Start Flower."""
        words = ["flower", f"--port={self.port}", "--address=127.0.0.1", f"--db={self.flower_log}.db"]
        with self.flower_log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", APP, *words],
                env={**self.process_env, "FLOWER_UNAUTHENTICATED_API": "true"},
                stdout=log,
                stderr=log,
            )

    def watches(self) -> bool:
        """Whether Flower sees events of the worker."""
        try:
            return any(worker["status"] for worker in self.ask("/workers?json=1")["data"])
        except OSError:
            return False

    def ask(self, path: str, *, post: bool = False) -> Any:
        """Ask Flower."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=b"" if post else None)
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - our own Flower
            return json.loads(answer.read())

    def start(self, name: str, *args: object, workflow_id: str) -> str:
        self.app.send_task(f"shop.{name}", args, task_id=workflow_id)
        return workflow_id

    def rows(self, workflow_id: str) -> dict[str, Row]:
        """Return Flower's rows of a run, its steps and its children, by task id."""
        rows: dict[str, Row] = self.ask("/api/tasks?limit=10000")
        return {name: row for name, row in rows.items() if name == workflow_id or name.startswith(f"{workflow_id}/")}

    def wait_row(self, task_id: str, state: str) -> Row:
        """Wait until the one row of a task has a state."""

        def row() -> Row | None:
            found = self.rows(task_id).get(task_id)
            return found if found and found["state"] == state else None

        return wait_until(row, 30, lambda: f"{task_id} to be {state}, not {self.rows(task_id).get(task_id)}") or {}

    def settled(self, workflow_id: str) -> dict[str, Row]:
        """Wait until no row of a run is left behind, and return its rows."""

        def are_settled() -> bool:
            rows = self.rows(workflow_id)
            return workflow_id in rows and not any(row["state"] in OPEN for row in rows.values())

        wait_until(are_settled, 30, lambda: f"rows of {workflow_id} to end: {_states(self.rows(workflow_id))}")
        return self.rows(workflow_id)

    def closed(self, workflow_id: str) -> RunRecord:
        """Wait until a run is closed and delivered."""
        wait_until(lambda: self.client.describe(workflow_id).delivered, 30, lambda: f"an end\n{self.worker.log}")
        return self.client.describe(workflow_id)

    def open_gate(self, name: str) -> None:
        """Let a holding step go on."""
        (self.gates / name).touch()

    def wait_held(self, name: str) -> None:
        """Wait until a step holds."""
        wait_until((self.gates / f"{name}.held").exists, 30, lambda: f"{name} to hold\n{self.worker.log}")


def _states(rows: dict[str, Row]) -> dict[str, str]:
    return {name: row["state"] for name, row in rows.items()}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Give the shop with its worker, and with Flower watching."""
    directory = tmp_path_factory.mktemp("flower")
    with RedisServer(directory / "redis", aof="everysec") as server:
        watched = Watched(server.url, directory)
        with watched.worker:
            flower = watched.serve()
            try:
                wait_until(watched.watches, 60, lambda: f"Flower:\n{watched.flower_log.read_text()}")
                yield watched
            finally:
                flower.terminate()
                flower.wait(20)
