"""Who waits for the end of a run on PostgreSQL hears of it, and asks again where it cannot."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import create_engine, event, text

from durable_celery.client import Client
from durable_celery.codec import Codec
from durable_celery.store.sql import SqlStore
from durable_celery.store.sql.listening import channel_of
from durable_celery.store.sql.listening import listening as pg_listening
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
        self._client, self._workflow_id = client, workflow_id
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.found = self._client.wait(self._workflow_id, 20.0)

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


def test_an_end_is_heard_of_and_nobody_asks_meanwhile(
    store: SqlStore, other: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than anybody waits here: who does not hear of the end finds nothing.
    monkeypatch.setattr("durable_celery.client._SELDOM", 60.0)
    ends = {name(number): None for number in range(5)}
    finish = {each: run_to_its_end(other, each) for each in ends}
    waiters = {each: Waiter(client_of(store), each) for each in ends}
    wait_until(lambda: listening(store), 10)
    # The looks before they listened are over, and each has looked when they did.
    time.sleep(0.5)
    with counted(store) as seen:
        for each, act in finish.items():
            act()
            assert waiters[each].end() is not None

    # Each looks when it hears, once, and reads the end.
    assert len(seen) <= 3 * len(ends)


def test_who_waits_behind_a_connection_that_hears_nothing_looks_as_often_as_ever(
    store: SqlStore, other: SqlStore, postgresql_tables: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a pooler: what is told on one connection does not come to the other. Here it is in another database."""
    monkeypatch.setattr("durable_celery.store.sql.listening._DEAF_AFTER", 0.2)
    monkeypatch.setattr("durable_celery.client._SELDOM", 60.0)
    elsewhere = create_engine(store._server.url.set(database="postgres"))
    ears, right = store._server.ears, store._server.engine
    assert ears is not None
    split = cast("Any", SimpleNamespace(connect=elsewhere.connect, begin=right.begin))
    monkeypatch.setattr(ears, "_open", lambda: pg_listening(split, channel_of(store._server.namespace)))
    workflow_id = name(1)
    finish = run_to_its_end(other, workflow_id)
    waiter = Waiter(client_of(store), workflow_id)
    time.sleep(1)
    assert not listening(store)
    finish()

    assert waiter.end() is not None
    elsewhere.dispose()


def test_an_end_that_is_there_needs_no_connection_that_listens(store: SqlStore, other: SqlStore) -> None:
    workflow_id = name(1)
    run_to_its_end(other, workflow_id)()

    assert client_of(store).wait(workflow_id, 5.0) is not None
    assert store._server.ears is not None
    assert store._server.ears._thread is None


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


def test_an_end_just_before_anybody_listens_is_found(
    store: SqlStore, other: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes between the first look and the ear; the connection listens already, and tells nothing any more."""
    monkeypatch.setattr("durable_celery.client._SELDOM", 60.0)
    first, second = name(1), name(2)
    end_first, end_second = run_to_its_end(other, first), run_to_its_end(other, second)
    waiting = Waiter(client_of(store), first)
    wait_until(lambda: listening(store), 10)
    plain = store.ear
    monkeypatch.setattr(store, "ear", lambda workflow_id: (end_second(), plain(workflow_id))[1])

    assert client_of(store).wait(second, 20.0) is not None
    end_first()
    assert waiting.end() is not None


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
    monkeypatch.setattr("durable_celery.store.hearing._IDLE", 0.5)
    monkeypatch.setattr("durable_celery.store.hearing._TICK", 0.1)
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
