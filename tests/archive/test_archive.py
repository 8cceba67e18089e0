"""The archive on each database: what is put there, and how clients see store and archive as one."""

# Celery carries no types: to pyright a task is the function that it was made of.
# pyright: reportArgumentType=false, reportFunctionMemberAccess=false, reportCallIssue=false

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from celery import Celery
from sqlalchemy import text

from durable_celery import WorkflowContext, durable_task, publish_event
from durable_celery.archive import Archive, with_archive
from durable_celery.archive.archiver import Archiver
from durable_celery.client import Client
from durable_celery.errors import (
    ConfigurationError,
    EventConflictError,
    InvalidRequestError,
    StoreUnavailableError,
    WorkflowNotFoundError,
)
from durable_celery.store.memory import MemoryStore
from durable_celery.testing import Environment
from durable_celery.workflow import replay
from tests.transactions.banks import sql_url

app = Celery("archived", broker="redis://nowhere.invalid:1/0", set_as_current=False)


@app.task(name="archived.double", shared=False)
def double(x: int) -> int:
    return x * 2


@app.task(name="archived.fail", shared=False)
def fail() -> None:
    raise ValueError("declined")


@durable_task(app=app, name="archived.chain", version=1)
def chain(ctx: WorkflowContext, x: int) -> int:
    return int(ctx.step(double, ctx.step(double, x)))


@durable_task(app=app, name="archived.failing")
def failing(ctx: WorkflowContext) -> None:
    ctx.step(fail)


@durable_task(app=app, name="archived.monthly")
def monthly(ctx: WorkflowContext, month: int = 1) -> int:
    ctx.step(double, month)
    if month < 3:
        ctx.continue_as_new(month + 1)
    ctx.wait_signal("last")
    return month


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Archive]:
    """Give an empty archive."""
    archive = Archive(sql_url(request.param, tmp_path), f"t_{uuid.uuid4().hex[:10]}")
    archive.migrate()
    archive.migrate()
    archive.check()
    yield archive
    with archive.engine.begin() as connection:
        connection.execute(text(f"DROP VIEW {archive.tables.steps}"))
    archive.tables.metadata.drop_all(archive.engine)
    archive.engine.dispose()


@pytest.fixture
def sqlite_archive(tmp_path: Path) -> Archive:
    archive = Archive(f"sqlite:///{tmp_path}/archive.db", "durable")
    archive.migrate()
    return archive


class Shop:
    """An environment, whose store forgets when it is told to, and a client that knows the archive."""

    def __init__(self, env: Environment, archive: Archive, retention: float = 0.0) -> None:
        self.env, self.archive, self.retention = env, archive, retention
        self.archiver = Archiver(cast("Any", env.system.store), archive, retention)

    def client(self) -> Client:
        store = with_archive(cast("Any", self.env.system.store), self.archive, self.retention)
        return replace(self.env.system.binding.client, store=store)

    def forget(self, *ids: str) -> None:
        """Let the store forget closed runs, as its retention does."""
        store = self.env.system.store
        for workflow_id in ids or [name for name, run in store.run_table.items() if run.record.status.is_closed]:
            del store.run_table[workflow_id]
            for entry in [entry for entry in store.agenda if entry[1] == workflow_id]:
                del store.agenda[entry]


@pytest.fixture
def env() -> Iterator[Environment]:
    # Time is skipped; what happens has happened an hour ago at most.
    with Environment(app, now=datetime.now(UTC) - timedelta(hours=1)) as env:
        yield env


def test_closed_runs_move_and_are_read_as_before(env: Environment, archive: Archive) -> None:
    shop = Shop(env, archive)
    done, failed = env.start(chain, 3), env.start(failing)
    before = env.system.binding.client
    records = {handle.id: before.describe(handle.id) for handle in (done, failed)}
    histories = {handle.id: before.history(handle.id) for handle in (done, failed)}

    assert shop.archiver.look() == 2
    assert shop.archiver.look() == 0
    shop.forget()

    client = shop.client()
    assert {name: client.describe(name) for name in records} == records
    assert {name: client.history(name) for name in histories} == histories
    end = client.wait(done.id, 0)
    assert end is not None
    assert client.outcome(end.event, done.id) == 12
    # It replays like any history.
    history = client.history(done.id)
    assert replay(chain.definition, done.id, history, env.system.binding.codec).closed
    assert archive.count() == 2
    with pytest.raises(WorkflowNotFoundError):
        client.describe("never")


def test_open_runs_stay_and_the_earlier_runs_of_a_workflow_that_lives_are_kept(
    env: Environment, archive: Archive
) -> None:
    shop = Shop(env, archive)
    handle = env.start(monthly)
    assert handle.describe().run == 3
    earlier = env.system.binding.client.history(handle.id, 1)

    assert shop.archiver.look() == 2
    # Their logs have a retention of their own.
    env.system.store.run_table[handle.id].past.clear()
    client = shop.client()
    assert client.history(handle.id, 1) == earlier
    assert [item.event for item in client.history(handle.id)] == [item.event for item in handle.history()]
    assert client.news(handle.id, cast("Any", type("At", (), {"run": 3, "seq": 999})()), 0.01) is None

    env.signal(handle, "last")
    assert shop.archiver.look() == 1
    shop.forget()
    assert [len(client.history(handle.id, run)) for run in (1, 2)] == [len(earlier), len(client.history(handle.id, 2))]
    assert (client.describe(handle.id).run, archive.count()) == (3, 3)


def test_the_list_goes_on_in_the_archive(env: Environment, archive: Archive) -> None:
    shop = Shop(env, archive)
    old = []
    for number in range(7):
        env.skip(1)
        workflow, args = (chain, (1,)) if number % 2 else (failing, ())
        old.append(workflow.apply_async(args, task_id=f"old-{number}").id)
        env.settle()
    shop.archiver.look()
    shop.forget()
    env.skip(1)
    new = [chain.apply_async((1,), task_id=f"new-{number}").id for number in range(3)]
    env.settle()
    shop.archiver.look()
    client = shop.client()

    def listed(limit: int, **given: Any) -> list[str]:
        found, cursor = [], None
        while True:
            page = client.runs(limit=limit, cursor=cursor, **given)
            found += [run.workflow_id for run in page.runs]
            assert len(page.runs) <= limit
            if (cursor := page.cursor) is None:
                return found

    for limit in (1, 2, 3, 4, 50):
        assert sorted(listed(limit)[:3]) == new
        assert listed(limit)[3:] == old[::-1]
    assert listed(2, name="archived.failing") == old[::-2]
    assert listed(50, status="failed") == old[::-2]
    assert listed(50, status="running") == []
    with pytest.raises(InvalidRequestError, match="is no cursor"):
        client.runs(cursor="archive:nonsense")


def test_reports_are_plain_sql(env: Environment, archive: Archive) -> None:
    shop = Shop(env, archive)
    env.start(chain, 3)
    env.start(failing)
    env.start(monthly)
    shop.archiver.look()
    prefix = archive.tables.prefix

    with archive.engine.connect() as connection:

        def ask(query: str) -> list[Any]:
            return [tuple(row) for row in connection.execute(text(query.replace("@", prefix)))]

        assert ask(
            "SELECT name, version, status, COUNT(*) FROM @_runs GROUP BY name, version, status ORDER BY name"
        ) == [
            ("archived.chain", 1, "completed", 1),
            ("archived.failing", 1, "failed", 1),
            ("archived.monthly", 1, "continued", 2),
        ]
        assert ask("SELECT task, outcome, COUNT(*) FROM @_steps GROUP BY task, outcome ORDER BY task, outcome") == [
            ("archived.double", "StepCompleted", 4),
            ("archived.fail", "StepFailed", 1),
        ]
        assert ask("SELECT COUNT(*) FROM @_steps WHERE ended_at < scheduled_at OR attempt <> 1") == [(0,)]


def test_a_workflow_id_that_is_used_again_is_another_workflow(env: Environment, archive: Archive) -> None:
    shop = Shop(env, archive)
    for x in (1, 2):
        chain.apply_async((x,), task_id="again")
        env.settle()
        assert shop.archiver.look() == 1
        shop.forget()
        env.skip(5)

    client = shop.client()
    end = client.wait("again", 0)
    assert end is not None
    assert (client.outcome(end.event, "again"), archive.count()) == (8, 2)


def test_two_archivers_at_once_put_each_run_there_once(
    env: Environment, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(env, archive)
    env.start(chain, 3)
    real = Archive.keep

    def keep(self: Archive, *given: Any) -> bool:
        # The other one is there first.
        assert real(self, *given)
        return real(self, *given)

    monkeypatch.setattr(Archive, "keep", keep)
    assert shop.archiver.look() == 0
    assert archive.count() == 1
    assert [archive.may_look(60.0), archive.may_look(60.0), archive.may_look(0.0)] == [True, False, True]


def test_a_run_whose_archiver_dies_amid_is_there_as_a_whole_or_not_at_all(
    env: Environment, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(env, archive)
    env.start(chain, 3)
    monkeypatch.setattr("durable_celery.archive.keeping._ROWS", 2)
    real = MemoryStore.history
    from durable_celery.archive import keeping

    def torn(item: Any) -> Any:
        if item.seq == 5:
            raise KeyboardInterrupt
        return plain(item)

    plain = keeping._event_row
    monkeypatch.setattr(keeping, "_event_row", torn)
    with pytest.raises(KeyboardInterrupt):
        shop.archiver.look()
    assert (archive.count(), MemoryStore.history) == (0, real)
    monkeypatch.setattr(keeping, "_event_row", plain)
    assert shop.archiver.look() == 1


def test_a_named_event_of_the_archive_is_still_published(env: Environment, sqlite_archive: Archive) -> None:
    shop = Shop(env, sqlite_archive)
    env.publish_event("rates", 1)
    shop.archiver.look()
    shop.forget()
    env.system.binding.client = cast("Any", shop.client())

    assert publish_event("rates", 1, app=app) is False
    with pytest.raises(EventConflictError):
        publish_event("rates", 2, app=app)


def test_an_archive_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="durable_archive names 'nonsense', which cannot be imported"):
        Archive("nonsense", "durable")
    with pytest.raises(ConfigurationError, match="cannot name the tables of an archive"):
        Archive(f"sqlite:///{tmp_path}/archive.db", "Not-A-Name")
    with pytest.raises(ConfigurationError, match="has no tables durable_archive_"):
        Archive(f"sqlite:///{tmp_path}/archive.db", "durable").check()
    with pytest.raises(StoreUnavailableError, match="the archive at"):
        Archive("postgresql+psycopg://nobody@127.0.0.1:1/none", "durable").get("w")
