"""One Redis, one worker and one command line for all tests of this folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from durable_celery.app import Binding
from tests.servers import RedisServer
from tests.waiting import wait_until
from tests.workers import ROOT, CeleryWorker

APP = "tests.cli.desk"


class Desk:
    """The approval desk: what starts runs, and the command line that looks at them."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url, self.directory = url, directory
        self.worker = self.new_worker()
        # A producer that knows the tasks by name only.
        self.app = Celery("elsewhere", broker=url, set_as_current=False)
        self.client = Binding(self.app).client

    def new_worker(self, **env: str) -> CeleryWorker:
        return CeleryWorker(APP, self.directory, pool="solo", env={"DESK_BROKER": self.url, **env})

    def start(self, name: str, *args: object, workflow_id: str, until: str) -> str:
        """Start a run and wait until it waits for ``until``."""
        self.app.send_task(f"desk.{name}", args, task_id=workflow_id)
        self.wait(workflow_id, until)
        return workflow_id

    def wait(self, workflow_id: str, until: str) -> None:
        """Wait for a word in a run's status, its waiting text or the error of an open step."""

        def shows() -> bool:
            run = self.client.store.get(workflow_id)
            return run is not None and until in (run.status, run.waiting, *(step.error or "" for step in run.steps))

        wait_until(shows, 30, lambda: f"{workflow_id} to be {until!r}; the worker:\n{self.worker.log}")

    def run(self, *words: str, url: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """Run ``celery -A app durable ...`` to its end."""
        return subprocess.run(
            self.command(*words), env=self.env(url, **env), capture_output=True, text=True, timeout=60, check=False
        )

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "celery", "-A", APP, "durable", *words]

    def env(self, url: str | None = None, **env: str) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), "DESK_BROKER": url or self.url, **env}

    def text(self, *words: str) -> str:
        """Return the output of a command that succeeds and complains of nothing."""
        done = self.run(*words)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout

    def json(self, *words: str) -> Any:
        """Return the document that a command prints."""
        return json.loads(self.text(*words, "--json"))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Give an open desk."""
    directory = tmp_path_factory.mktemp("desk")
    with RedisServer(directory / "redis", aof="everysec") as server:
        desk = Desk(server.url, directory)
        with desk.worker:
            yield desk
