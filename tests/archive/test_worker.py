"""A real worker moves closed runs from Redis to an SQL database before Redis forgets them; commands read both."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from durable_celery.app import binding_of
from tests.conftest import isolation_settings
from tests.servers import RedisServer
from tests.sites import CONFIG_VARIABLE, Site
from tests.waiting import wait_until
from tests.workers import ROOT


@pytest.fixture
def site(redis_server: RedisServer, tmp_path: Path) -> Iterator[Site]:
    redis_server.start().flush()
    with Site(
        tmp_path / "site",
        broker=redis_server.database_url(1),
        store=redis_server.database_url(2),
        durable_archive=f"sqlite:///{tmp_path}/archive.db",
        durable_retention=3.0,
        **isolation_settings(),
    ) as site:
        yield site


def say(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    """Type `celery durable ...`."""
    import os

    env = {**os.environ, "PYTHONPATH": str(ROOT), CONFIG_VARIABLE: json.dumps(site.config)}
    command = [sys.executable, "-m", "celery", "-A", "tests.flow_worker", "durable", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_closed_runs_outlive_their_retention(site: Site) -> None:
    binding = binding_of(site.app)
    refused = site.worker(wait=False)
    wait_until(lambda: not refused.is_running, 40, site.story)
    assert "has no tables durable_archive_*: make them with 'celery -A <app> durable migrate'" in refused.log
    assert say(site, "migrate").stdout == "the tables durable_archive_* are there\n"
    site.worker()
    handles: list[Any] = [site.start("approval") for _ in range(5)]
    for number, handle in enumerate(handles[:4]):
        handle.signal("approve", number)
    results = [handle.get(timeout=30) for handle in handles[:4]]

    wait_until(lambda: not any(binding.store.get(handle.id) for handle in handles[:4]), 40, site.story)

    assert [handle.get(timeout=0) for handle in handles[:4]] == results
    assert [handle.state for handle in handles] == ["SUCCESS"] * 4 + ["STARTED"]
    listed = json.loads(say(site, "list", "--json").stdout)["runs"]
    assert {run["workflow_id"] for run in listed} == {handle.id for handle in handles}
    assert "completed" in say(site, "history", handles[0].id).stdout
    again = say(site, "archive")
    assert again.stdout == "0 runs were put into the archive; it has 4\n"
    exported = say(site, "export", handles[0].id, "-o", str(site.directory / "saved.json"))
    assert exported.returncode == 0, exported.stderr
    assert json.loads((site.directory / "saved.json").read_text())["workflow_id"] == handles[0].id


def test_an_app_without_archive_says_so(site: Site) -> None:
    del site.config["durable_archive"]

    for words in (["archive"], ["migrate"]):
        done = say(site, *words)
        assert done.returncode == 1
        assert "archive" in done.stderr
