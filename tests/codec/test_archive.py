"""Large payloads on a real worker: neither the store nor the broker sees them."""

# Celery carries no types: to pyright a task is the function that it was made of.
# pyright: reportFunctionMemberAccess=false

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from durable_celery.app import Binding, bound
from durable_celery.codec import FileBlobs, Offload
from tests.codec import archive
from tests.security.conftest import Monitor
from tests.servers import RedisServer
from tests.waiting import wait_until
from tests.workers import CeleryWorker

WAIT = 40
TEXT = "0123456789" * 1000


@pytest.fixture
def worker(redis_server: RedisServer, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    blobs = tmp_path / "blobs"
    monkeypatch.setitem(archive.app.conf, "broker_url", redis_url)
    monkeypatch.setitem(archive.app.conf, "durable_store", redis_url)
    monkeypatch.setitem(archive.app.conf, "durable_codec", Offload(FileBlobs(blobs), above=2000))
    env = {"ARCHIVE_BROKER": redis_url, "ARCHIVE_BLOBS": str(blobs)}
    # What the app had of an earlier test, it had on other blobs.
    with bound(Binding(archive.app)), CeleryWorker("tests.codec.archive", tmp_path, env=env) as one:
        yield one
        print(*one.log.splitlines()[-40:], sep="\n")  # noqa: T201 - for a failure's report


@pytest.mark.timeout(120)
def test_the_broker_and_the_store_are_told_references_only(redis_server: RedisServer, worker: CeleryWorker) -> None:
    with Monitor(redis_server) as monitor:
        runs = [workflow.delay(TEXT) for workflow in (archive.store, archive.store_async)]
        wait_until(lambda: all("signal go" in run.describe().waiting for run in runs), WAIT)
        # What is cold reads its payloads again.
        worker.kill()
        worker.start()
        for run in runs:
            run.signal("go", TEXT)
        wanted = [TEXT * 2, TEXT * 2, TEXT, TEXT * 2]
        assert [run.get(WAIT) for run in runs] == [wanted, wanted]
        heard = monitor.heard

    assert b"archive.double" in heard
    assert b"~ref~" in heard
    # Celery shows monitors the first thousand characters of arguments; there is no more of them.
    assert TEXT[:2000].encode() not in heard


@pytest.mark.timeout(120)
def test_a_run_waits_for_a_blob_that_is_away(worker: CeleryWorker, tmp_path: Path) -> None:
    worker.stop()
    run = archive.store.delay(TEXT)
    (tmp_path / "blobs").rename(tmp_path / "away")
    worker.start()
    wait_until(lambda: "is not in FileBlobs(" in run.describe().reason, WAIT)
    assert run.state == "BLOCKED"

    (tmp_path / "away").rename(tmp_path / "blobs")
    run.signal("go", "short")

    assert run.get(WAIT) == [TEXT * 2, TEXT * 2, "short", TEXT * 2]


@pytest.mark.timeout(120)
def test_a_step_is_not_executed_where_its_blob_is_not_and_has_not_failed_by_that(
    worker: CeleryWorker, tmp_path: Path
) -> None:
    astray = {**worker.env, "ARCHIVE_BLOBS": str(tmp_path / "nowhere")}
    with CeleryWorker("tests.codec.archive", tmp_path, queues=("elsewhere",), env=astray) as other:
        run = archive.store_elsewhere.delay(TEXT)
        wait_until(lambda: other.log.count("is not executed here: ") > 2, WAIT)
        assert run.state == "STARTED"
    with CeleryWorker("tests.codec.archive", tmp_path, queues=("elsewhere",), env=worker.env):
        assert run.get(WAIT) == TEXT * 2
