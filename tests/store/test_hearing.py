"""Who waits for the end of a run on PostgreSQL hears of it, and asks again where it cannot."""

from __future__ import annotations

import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
from sqlalchemy import event, text

from durable_celery.client import Client
from durable_celery.codec import Codec
from durable_celery.store.sql import SqlStore
from tests.databases import Database
from tests.store.moves import begin, close, deliver, new, run_messages
from tests.waiting import wait_until


@pytest.fixture
def store(postgresql_tables: Database) -> Iterator[SqlStore]:
    """The store of who waits."""
    store = postgresql_tables.store()
    yield store
    store.close()


@pytest.fixture
def other(postgresql_tables: Database) -> Iterator[SqlStore]:
    """The store of another process, which ends runs."""
    store = postgresql_tables.store()
    store.renew(["p1"])
    yield store
    store.close()


def client_of(store: SqlStore) -> Client:
    return Client(store=cast("Any", store), engine=cast("Any", None), codec=Codec())


class Waiter:
    """A thread that waits for the end of a run."""

    def __init__(self, client: Client, workflow_id: str) -> None:
        self.found: Any = None
        self.at = 0.0
        self._client, self._workflow_id = client, workflow_id
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.found = self._client.wait(self._workflow_id, 20.0)
        self.at = time.monotonic()

    def end(self) -> Any:
        self._thread.join(30)
        return self.found


@contextmanager
def counted(store: SqlStore) -> Generator[list[str]]:
    """Give the statements that a store issues."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    event.listen(store._server.engine, "before_cursor_execute", note)
    yield seen
    event.remove(store._server.engine, "before_cursor_execute", note)


def listening(store: SqlStore) -> bool:
    assert store._server.ears is not None
    return store._server.ears.is_listening


def name(number: int) -> str:
    return f"heard-{time.monotonic_ns()}-{number}"


def run_to_its_end(store: SqlStore, workflow_id: str) -> Callable[[], object]:
    """Start a run; return what ends it."""
    begin(store, workflow_id=workflow_id)
    return lambda: close(store, workflow_id)


def test_an_end_is_heard_of_at_once_and_nobody_asks_meanwhile(store: SqlStore, other: SqlStore) -> None:
    ends = {name(number): None for number in range(5)}
    finish = {each: run_to_its_end(other, each) for each in ends}
    waiters = {each: Waiter(client_of(store), each) for each in ends}
    wait_until(lambda: listening(store), 10)
    lateness = []
    with counted(store) as seen:
        began = time.monotonic()
        for each, act in finish.items():
            act()
            ended = time.monotonic()
            assert waiters[each].end() is not None
            lateness.append(waiters[each].at - ended)
        took = time.monotonic() - began

    # By looking alone it would be a second on average, for the looks are 2 s apart.
    assert statistics.median(lateness) < 0.5
    # Each looks when it hears; without that there would be four looks a second for each of them.
    assert len(seen) <= 6 * len(ends) + 2 * took * len(ends)


def test_each_hears_of_its_own_run_only(store: SqlStore, other: SqlStore) -> None:
    first, second = name(1), name(2)
    end_first, end_second = run_to_its_end(other, first), run_to_its_end(other, second)
    waiting, later = Waiter(client_of(store), first), Waiter(client_of(store), second)
    wait_until(lambda: listening(store), 10)
    end_first()

    assert waiting.end() is not None
    assert later.found is None
    end_second()
    assert later.end() is not None


def test_an_end_just_before_anybody_listens_is_found(store: SqlStore, other: SqlStore) -> None:
    workflow_id = name(1)
    run_to_its_end(other, workflow_id)()

    assert client_of(store).wait(workflow_id, 5.0) is not None


def test_a_lost_connection_is_made_again_and_ends_are_asked_for_meanwhile(store: SqlStore, other: SqlStore) -> None:
    first, second = name(1), name(2)
    end_first, end_second = run_to_its_end(other, first), run_to_its_end(other, second)
    waiting, later = Waiter(client_of(store), first), Waiter(client_of(store), second)
    wait_until(lambda: listening(store), 10)
    with other._server.engine.begin() as connection:
        killed = connection.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE :listen"),
            {"listen": f'LISTEN "{other._server.namespace}_ends"%'},
        ).all()
    assert killed
    end_first()
    assert waiting.end() is not None
    wait_until(lambda: listening(store), 10)
    end_second()
    assert later.end() is not None


def test_the_connection_goes_when_nobody_waits_any_more(
    store: SqlStore, other: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durable_celery.store.sql.hearing._IDLE", 0.5)
    monkeypatch.setattr("durable_celery.store.sql.hearing._TICK", 0.1)
    workflow_id = name(1)
    finish = run_to_its_end(other, workflow_id)
    waiting = Waiter(client_of(store), workflow_id)
    wait_until(lambda: listening(store), 10)
    finish()
    assert waiting.end() is not None

    wait_until(lambda: not listening(store), 10)
    assert store._server.ears is not None
    assert not store._server.ears._waiting
    assert store._server.engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # a QueuePool has it


def test_a_child_of_a_fork_hears_with_a_connection_of_its_own(store: SqlStore, other: SqlStore) -> None:
    first, second = name(1), name(2)
    end_first, end_second = run_to_its_end(other, first), run_to_its_end(other, second)
    waiting = Waiter(client_of(store), first)
    wait_until(lambda: listening(store), 10)
    context = multiprocessing.get_context("fork")
    answers: Any = context.Queue()
    child = context.Process(target=lambda: answers.put(client_of(store).wait(second, 20.0) is not None))
    child.start()
    end_second()
    end_first()

    assert answers.get(timeout=30) is True
    child.join(10)
    assert waiting.end() is not None


def test_only_ends_are_told(store: SqlStore, other: SqlStore) -> None:
    with other._server.engine.connect() as connection:
        connection.exec_driver_sql(f'LISTEN "{other._server.namespace}_ends"')
        connection.commit()
        driver: Any = connection.connection.dbapi_connection
        driver.autocommit = True
        workflow_id = name(1)
        other.start(new(workflow_id))
        finish = run_to_its_end(other, workflow_id)
        assert list(driver.notifies(timeout=0.2)) == []
        finish()
        told = [note.payload for note in driver.notifies(timeout=0.5)]
        deliver(other, workflow_id)
        driver.autocommit = False
    assert told == [workflow_id]
    assert run_messages(store) is not None
