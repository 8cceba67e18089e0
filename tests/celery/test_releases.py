"""Two releases on real workers: the runs of each version stay with the workers that have its code."""

# Celery carries no types: to pyright a task is the function that it was made of.
# pyright: reportFunctionMemberAccess=false

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from durable_celery.store.protocol import RunStatus
from tests.celery import releases
from tests.celery.conftest import shop_env
from tests.servers import RedisServer
from tests.waiting import wait_until
from tests.workers import CeleryWorker

WAIT = 40
#: Both releases execute steps.
STEPS = "releases-steps"

Deploy = Callable[..., CeleryWorker]


@pytest.fixture
def deploy(shop_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deploy]:
    """Give a function that starts a worker of a release, on empty servers."""
    env = shop_env(shop_server, first=6)
    for number in (6, 7):
        shop_server.client(number).flushdb()
    monkeypatch.setitem(releases.app.conf, "broker_url", env["SHOP_BROKER"])
    monkeypatch.setitem(releases.app.conf, "durable_store", env["SHOP_STORE"])
    workers: list[CeleryWorker] = []

    def deploy(release: str, *queues: str) -> CeleryWorker:
        worker = CeleryWorker(
            "tests.celery.releases", tmp_path, queues=queues, pool="threads", env={**env, "RELEASE": release}
        )
        workers.append(worker)
        return worker.start()

    yield deploy
    for worker in workers:
        worker.kill()
        print(worker.name, *worker.log.splitlines()[-30:], sep="\n")  # noqa: T201 - for a failure's report


def begun(*handles: Any) -> None:
    """Wait until runs wait for their signal."""
    wait_until(lambda: all("signal go" in handle.describe().waiting for handle in handles), WAIT)


def by(version: int, release: str, result: list[Any]) -> bool:
    """Tell whether all turns of a run were taken by one release; its steps may have been executed by the other."""
    return [result[0], result[1], result[-1]] == [f"v{version}", f"begun by {release}", f"ended by {release}"]


@pytest.mark.timeout(180)
def test_old_runs_end_on_the_old_worker_and_new_ones_on_the_new(deploy: Deploy) -> None:
    deploy("old", "releases-v1", STEPS)
    old = [releases.old.delay(STEPS) for _ in range(6)]
    begun(*old)
    deploy("new", "releases-v2", STEPS)
    new = [releases.new.delay(STEPS) for _ in range(6)]
    begun(*new)

    for handle in (*old, *new):
        handle.signal("go", "went")

    results = [handle.get(WAIT) for handle in (*old, *new)]
    assert all(by(1, "old", result) for result in results[:6])
    assert all(by(2, "new", result) for result in results[6:])
    # A worker that executes a step of the other version does not go on with its run; that was put to the test.
    assert any("by new" in part for result in results[:6] for part in result[3:5]) or any(
        "by old" in part for result in results[6:] for part in result[3:5]
    )


@pytest.mark.timeout(180)
@pytest.mark.parametrize("end", [CeleryWorker.stop, CeleryWorker.kill], ids=["drained", "killed"])
def test_what_the_old_worker_left_waits_and_ends_when_it_is_there_again(
    deploy: Deploy, end: Callable[[CeleryWorker], None]
) -> None:
    worker = deploy("old", "releases-v1")
    deploy("new", "releases-v2", STEPS)
    left = releases.old.delay(STEPS)
    begun(left)
    end(worker)

    left.signal("go", "went")
    # New runs do not wait for it.
    ahead = releases.new.delay(STEPS)
    ahead.signal("go", "went")
    assert by(2, "new", ahead.get(WAIT))
    assert left.describe().status is RunStatus.RUNNING

    deploy("old", "releases-v1")
    result = left.get(WAIT)
    assert by(1, "old", result)
    # The steps of the old run were executed by the new release, which did not take its turns.
    assert result[3:5] == ["step 0 by new", "step 1 by new"]


@pytest.mark.timeout(180)
def test_on_one_queue_a_run_is_blocked_with_the_reason_until_a_worker_has_its_version(deploy: Deploy) -> None:
    worker = deploy("old", "releases-v1", STEPS)
    left = releases.old.delay(STEPS)
    begun(left)
    worker.stop()

    new = deploy("new", "releases-v1", "releases-v2", STEPS)
    left.signal("go", "went")
    wait_until(lambda: left.describe().status is RunStatus.BLOCKED, WAIT)
    reason = left.describe().reason
    assert "version 1 of the workflow 'releases.checkout' is not registered in this process, only 2" in reason

    # Were it to stay, the run might come to it again and again, after longer and longer waits.
    new.stop()
    deploy("both", "releases-v1", STEPS)
    result = left.get(WAIT)
    assert (result[0], result[-1]) == ("v1", "ended by both")


@pytest.mark.timeout(180)
def test_children_go_to_the_workers_of_the_version_that_their_parent_named(deploy: Deploy) -> None:
    deploy("both", "releases-nest")
    deploy("old", "releases-v1", STEPS)
    deploy("new", "releases-v2", STEPS)
    run = releases.parent.delay(STEPS)
    children = [releases.old.AsyncResult(f"{run.id}/1.{number}") for number in (1, 2)]
    wait_until(lambda: all(child.client.store.get(child.id) for child in children), WAIT)
    begun(*children)
    for child in children:
        child.signal("go", "went")

    first, second = run.get(WAIT)
    assert by(1, "old", first)
    assert by(2, "new", second)
