"""The SQL store and its databases: statements for each verb, the schema, lost connections, losers, forks, settings."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import create_engine, event, inspect, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from durable_celery.errors import ConfigurationError, StoreUnavailableError
from durable_celery.events import SignalReceived
from durable_celery.store.protocol import Claim, Finishing, Lease, Sweep, Timing, Turn
from durable_celery.store.sql import SqlStore, runs, steps
from durable_celery.store.sql.checks import check_database
from durable_celery.store.sql.desk import Desk
from durable_celery.store.sql.schema import SCHEMA, VERSIONS
from tests.databases import Database
from tests.servers import free_port
from tests.store.backends import SqlBackend
from tests.store.invariants import check_invariants
from tests.store.moves import (
    again,
    begin,
    call,
    cancel,
    child,
    claim,
    close,
    deliver,
    end,
    execute,
    key,
    kinds,
    new,
    record,
    result,
    signal,
    step,
    sweep,
    take,
    timer,
    turn,
)
from tests.waiting import wait_until

DATABASES = ["sqlite", "postgresql", "mariadb"]


@pytest.fixture(params=DATABASES)
def backend(request: pytest.FixtureRequest) -> Iterator[SqlBackend]:
    made = SqlBackend(request.getfixturevalue(f"{request.param}_tables"), Timing())
    yield made
    check_invariants(made.store)
    made.delete()


@pytest.fixture
def store(backend: SqlBackend) -> SqlStore:
    return backend._sql


@pytest.fixture
def on_postgresql(postgresql_tables: Database) -> Iterator[SqlBackend]:
    made = SqlBackend(postgresql_tables, Timing())
    yield made
    check_invariants(made.store)
    made.delete()


@contextmanager
def counted(store: SqlStore) -> Generator[list[str]]:
    """Give the list of the statements that the store executes."""
    seen: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        if not statement.startswith("BEGIN"):
            seen.append(statement)

    event.listen(store._server.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(store._server.engine, "before_cursor_execute", note)


class Costs:
    """Counts the statements of verbs, by the names that a test gives them."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self.found: dict[str, int] = {}

    def __call__(self, name: str, act: Callable[[], Any]) -> Any:
        with counted(self._store) as seen:
            answer = act()
        self.found[name] = len(seen)
        return answer


# -- what a verb costs -----------------------------------------------------------------------------------------------


def test_each_verb_takes_these_statements_on_postgresql(on_postgresql: SqlBackend) -> None:
    store = on_postgresql._sql
    store.renew(["p1"])
    count = Costs(store)

    count("start", lambda: store.start(new()))
    count("start that is repeated", lambda: store.start(new()))
    count("start of a hundred", lambda: store.start_all([new(f"many-{n}", delay=9000.0) for n in range(100)]))
    taken: Turn = count("take", lambda: take(store))
    outputs = [step(1), step(2), timer(3, 0), child(4)]
    count("commit", lambda: store.commit(taken.lease, outputs, read=1, waiting="", hold=False))
    begun: Claim = count("claim", lambda: claim(store))
    count("claim that is refused", lambda: store.claim(key(1), call()))
    count("signal", lambda: signal(store))
    count("signal that is repeated", lambda: signal(store))
    done = count("finish", lambda: store.finish(begun.key, result(1), token=1, take_over=call(), known=5))
    read = done.turn.run.length
    count(
        "commit with a cancel", lambda: store.commit(done.turn.lease, [cancel(5, 4)], read=read, waiting="", hold=True)
    )
    count("settle", lambda: store.settle(key(4), cancel=True))
    other: Claim = claim(store, 2)
    count("postpone", lambda: store.postpone(other.key, other.owner, delay=0.0, error="e"))
    count("release", lambda: store.release("w", done.turn.lease.owner, delay=60.0))
    count("sweep with work", store.sweep)
    count("sweep without", store.sweep)
    store.start(new("other"))
    signal(store, "other")
    other_turn = take(store, "other")
    signal(store, "other", "s-2")
    end_of_run = [again(9, kept=(2,), cause=2)]
    count(
        "commit that continues, with signals that go along",
        lambda: store.commit(other_turn.lease, end_of_run, read=2, waiting="", hold=False),
    )
    assert [type(item.event).__name__ for item in store.history("other")] == ["RunStarted", *["SignalReceived"] * 2]
    on_postgresql.advance(600)
    store.renew(["p1"])
    count("sweep with work of both kinds", store.sweep)
    assert store.sweep().counts
    count("renew", lambda: store.renew(["p1", "p2"]))
    count("renew with a dead one", lambda: store.renew(["p1"], gone=["p2"]))
    begin(store, step(1), workflow_id="published")
    store.start(new("also"))
    on_postgresql.advance(2)
    count("hasten", lambda: store.hasten(10))
    in_hand = claim(store, 1, workflow_id="published")
    finishing = Finishing(key=in_hand.key, token=1, outcome=result(1), at=store.history("published")[-1].at)
    lease = Lease(workflow_id="published", token=2, owner=in_hand.owner)
    count(
        "commit with an outcome and the next step in hand",
        lambda: store.commit(lease, [step(2)], read=3, waiting="", hold=False, begin=2, finishing=finishing),
    )
    ended = take(store)
    count("commit of the end", lambda: store.commit(ended.lease, [end()], read=ended.run.length, waiting="", hold=True))
    count("deliver", lambda: store.deliver(ended.lease))
    count("get", lambda: store.get("w"))
    count("history", lambda: store.history("w"))
    count("runs", store.runs)

    # BEGIN and COMMIT come on top, but for start's look, renew, sweep without work, get, history and runs.
    assert count.found == {
        "start": 2,
        "start that is repeated": 1,
        "start of a hundred": 2,
        "take": 2,
        "commit": 2,
        "claim": 2,
        "claim that is refused": 1,
        "signal": 2,
        "signal that is repeated": 1,
        "finish": 2,
        "commit with a cancel": 3,
        "settle": 2,
        "postpone": 2,
        "release": 2,
        "sweep with work": 3,
        "sweep without": 1,
        "commit that continues, with signals that go along": 3,
        "sweep with work of both kinds": 3,
        "renew": 2,
        "renew with a dead one": 3,
        # Rare: a look, and for runs and for steps a transaction of its own.
        "hasten": 5,
        "commit with an outcome and the next step in hand": 2,
        "commit of the end": 3,
        "deliver": 2,
        "get": 1,
        "history": 1,
        "runs": 1,
    }


def test_long_steps_and_long_runs_take_these_statements_on_postgresql(on_postgresql: SqlBackend) -> None:
    store = on_postgresql._sql
    limits = {"attempt_timeout": 60, "heartbeat_timeout": 60}
    begin(store, step(1), step(2, options=limits))
    count = Costs(store)

    begun: Claim = count("claim under limits", lambda: claim(store, 2))
    count("heartbeat", lambda: store.claim(begun.key, begun.owner, progress="1"))
    count("wait for an outcome from outside", lambda: store.postpone(begun.key, begun.owner, delay=None, error=""))
    count("outcome from outside", lambda: store.finish(begun.key, result(2), token=None))
    ended = take(store)
    outputs = [again(3)]

    def commit() -> Any:
        return store.commit(ended.lease, outputs, read=ended.run.length, waiting="", hold=False)

    count("continue", commit)
    count("continue that is repeated", commit)
    signal(store, signal_key="seen")
    more = take(store)
    signal(store, signal_key="unseen")
    last = [again(1, kept=(2,))]
    count("continue with inputs", lambda: store.commit(more.lease, last, read=2, waiting="", hold=False))
    count("claim of a step that is left", lambda: claim(store, 1))
    count("history of an earlier run", lambda: store.history("w", run=1))

    assert count.found == {
        "claim under limits": 2,
        "heartbeat": 2,
        "wait for an outcome from outside": 2,
        "outcome from outside": 2,
        "continue": 3,
        "continue that is repeated": 3,
        "continue with inputs": 3,
        "claim of a step that is left": 2,
        "history of an earlier run": 1,
    }
    assert [len(store.history("w", run=run)) for run in (1, 2, 3)] == [5, 4, 3]


def test_what_comes_again_beside_a_dead_process_takes_these_statements_on_postgresql(
    on_postgresql: SqlBackend,
) -> None:
    store = on_postgresql._sql
    count = Costs(store)

    begin(store, step(1), step(2), step(3))
    first, _ = (claim(store, number, owner=call("mortal")) for number in (1, 2))
    store.finish(first.key, result(1), token=1, take_over=call("mortal"), known=4)
    store.renew([], gone=["mortal"])
    count("claim of a step that a dead process has", lambda: claim(store, 2, owner=call("new-1")))
    count("claim of a finished step", lambda: store.claim(first.key, call("new-2")))
    take(store, owner=call("mortal-2"))
    store.renew([], gone=["mortal-2"])
    repeat: dict[str, Any] = {"token": 1, "take_over": call("new-3"), "known": 4}
    count("finish that is repeated", lambda: store.finish(first.key, result(1), **repeat))
    store.release("w", record(store).owner or "", delay=0.0)
    take(store, owner=call("mortal-3"))
    store.renew([], gone=["mortal-3"])
    turn_ = count("take", lambda: take(store, owner=call("new-4")))
    outputs = [step(number) for number in range(4, 254)]

    def commit() -> Any:
        return store.commit(turn_.lease, outputs, read=turn_.run.length, waiting="", hold=False)

    commit()
    count("commit of many that is repeated", commit)
    claim(store, 4, owner=call("mortal-4"))
    take(store, owner=call("mortal-4"))
    store.renew([], gone=["mortal-4"])
    while (found := count("sweep", store.sweep)).counts.keys() != {"owner"}:
        assert found.more

    assert count.found == {
        "claim of a step that a dead process has": 3,
        "claim of a finished step": 3,
        "finish that is repeated": 3,
        "take": 3,
        "commit of many that is repeated": 3,
        "sweep": 3,
    }


# -- the schema ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=DATABASES)
def empty(request: pytest.FixtureRequest) -> Iterator[SqlStore]:
    """A store without tables."""
    tables: Database = request.getfixturevalue(f"{request.param}_tables")
    namespace = f"{tables.namespace}_x"
    made = SqlStore(tables.url, namespace=namespace)
    yield made
    made._server.drop()
    with made._server.engine.begin() as connection:
        connection.execute(text(f"DROP TABLE IF EXISTS {namespace}_alembic"))
    made.close()


def test_missing_tables_are_told_with_the_command_that_makes_them(empty: SqlStore) -> None:
    if empty._server.dialect == "sqlite":
        assert empty.get("w") is None, "SQLite gets its tables at first use"
        return
    for act in (lambda: empty.start(new()), lambda: empty.get("w"), empty.findings):
        with pytest.raises(ConfigurationError, match=r"tables .* are missing.*celery -A <app> durable migrate"):
            act()


def test_migrating_makes_the_tables_of_this_release_and_may_be_repeated(empty: SqlStore) -> None:
    assert [empty.migrate(), empty.migrate()] == [SCHEMA, SCHEMA]

    begin(empty, step(1))
    assert execute(empty).message is not None
    assert record(empty).length == 3
    found = inspect(empty._server.engine)
    for table in empty._server.tables.metadata.sorted_tables:
        assert {column["name"] for column in found.get_columns(table.name)} == set(table.columns.keys())
        names = {item["name"] for item in found.get_indexes(table.name)}
        assert {str(index.name) for index in table.indexes} <= names


def test_tables_of_an_older_schema_are_refused_and_of_a_newer_one_accepted(empty: SqlStore) -> None:
    empty.migrate()
    with empty._server.engine.begin() as connection:
        connection.execute(empty._server.tables.schema.update().values(version=SCHEMA + 1))
    assert SqlStore(str_of(empty), namespace=empty._server.namespace).get("w") is None

    with empty._server.engine.begin() as connection:
        connection.execute(empty._server.tables.schema.update().values(version=SCHEMA - 1))
    later = SqlStore(str_of(empty), namespace=empty._server.namespace)
    if later._server.dialect == "sqlite":
        assert later.get("w") is None
    else:
        with pytest.raises(ConfigurationError, match="durable migrate"):
            later.get("w")


def test_a_users_own_alembic_tree_takes_the_revisions_in(empty: SqlStore) -> None:
    from alembic.migration import MigrationContext
    from alembic.operations import Operations
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(VERSIONS.parent), version_locations=[str(VERSIONS)])
    with empty._server.engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"durable_namespace": empty._server.namespace})
        with Operations.context(context):
            for script in reversed(list(scripts.walk_revisions())):
                script.module.upgrade()

    begin(empty)
    assert kinds(empty) == ["RunStarted"]


def str_of(store: SqlStore) -> str:
    return store._server.url.render_as_string(hide_password=False)


# -- connections -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["postgresql+psycopg://x@127.0.0.1:{port}/x", "mysql+pymysql://x@127.0.0.1:{port}/x", "sqlite:////no/such/x.db"],
)
def test_database_that_is_not_there_is_unavailable(url: str) -> None:
    store = SqlStore(url.format(port=free_port()))

    with pytest.raises(StoreUnavailableError, match="does not answer"):
        store.start(new())


@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_unknown_database_is_a_wrong_setting(request: pytest.FixtureRequest, name: str) -> None:
    tables: Database = request.getfixturevalue(f"{name}_tables")
    store = SqlStore(tables.url.rpartition("/")[0] + "/no_such_database")

    with pytest.raises(ConfigurationError, match=r"does not allow this.*no_such_database"):
        store.get("w")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("oracle://h/x", "scheme 'oracle'"),
        ("postgresql+asyncpg://h/x", "scheme 'postgresql\\+asyncpg'"),
        ("postgresql", "scheme 'postgresql'"),
        ("postgresql://h:port/x", "no URL"),
    ],
)
def test_url_of_no_such_store_is_refused(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        SqlStore(url)


@pytest.mark.parametrize("namespace", ["a b", "Shop", "1a", "", "a" * 41, 'x"; --'])
def test_namespace_that_cannot_name_tables_is_refused(namespace: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot name tables"):
        SqlStore("sqlite:////tmp/x.db", namespace=namespace)


@pytest.mark.parametrize(
    ("url", "module", "extra"), [("postgresql://h/x", "psycopg", "postgresql"), ("mysql://h/x", "pymysql", "mysql")]
)
def test_missing_driver_is_told_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, url: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(ConfigurationError, match=rf"Install durable-celery\[{extra}\]"):
        SqlStore(url).get("w")


def test_password_is_not_in_an_error(postgresql_tables: Database) -> None:
    store = SqlStore(f"postgresql://x:sesame@127.0.0.1:{free_port()}/x")

    with pytest.raises(StoreUnavailableError) as caught:
        store.get("w")

    assert "sesame" not in str(caught.value)


def test_payload_is_not_in_an_error(on_postgresql: SqlBackend) -> None:
    store = on_postgresql._sql

    with pytest.raises(Exception, match="refused") as caught:
        store.start(new(payload="secret \0 payload"))

    assert "secret" not in str(caught.value)


def test_connections_that_the_server_ends_are_made_again(on_postgresql: SqlBackend) -> None:
    store = on_postgresql._sql
    begin(store, step(1))
    with administrator(store).connect() as connection:
        connection.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = :name"),
            {"name": "durable_celery"},
        )

    assert execute(store).message is not None
    assert kinds(store) == ["RunStarted", "StepScheduled", "StepCompleted"]


def test_commit_whose_answer_is_lost_takes_effect_once(on_postgresql: SqlBackend) -> None:
    """The connection ends after COMMIT took effect: the verb is repeated, and finds what it did."""
    store = on_postgresql._sql
    begin(store, step(1))
    begun = claim(store)
    lost: list[int] = []

    def lose(connection: Any) -> None:
        if not lost:
            lost.append(1)
            raw = connection.connection.dbapi_connection
            raw.execute("COMMIT")
            raw.close()

    event.listen(store._server.engine, "commit", lose)
    done = store.finish(begun.key, result(1), token=begun.token, take_over=call(), known=2)
    event.remove(store._server.engine, "commit", lose)

    assert lost
    assert done.turn is not None
    assert kinds(store) == ["RunStarted", "StepScheduled", "StepCompleted"]
    assert record(store).token == 2


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_a_deadlock_is_repeated(request: pytest.FixtureRequest, database: str) -> None:
    """Freeing locks `a` and then `b`; another client has `b` and then wants `a`."""
    made = SqlBackend(request.getfixturevalue(f"{database}_tables"), Timing())
    store, runs = made._sql, made._sql._server.tables.runs
    for name in ("a", "b"):
        begin(store, step(1), workflow_id=name)
        claim(store, owner=call("mortal"), workflow_id=name)
    store.renew([], gone=["mortal"])
    engine = create_engine(store._server.url)
    with engine.connect() as other, ThreadPoolExecutor(1) as pool:
        # More to undo makes it the dearer one to end, where the server asks for that.
        other.execute(runs.update().where(runs.c.workflow_id == "b").values(waiting="x" * 10_000))
        freed = pool.submit(store._server.free, "mortal")
        try:
            # Not before the other side waits: else there is no deadlock.
            wait_until(lambda: _waits_for_a_lock(engine, database), 10)
            other.execute(runs.select().where(runs.c.workflow_id == "a").with_for_update())
        except OperationalError:
            pass  # the server chose this side
        other.rollback()

        assert freed.result(20)

    assert [record(store, name).steps[0].lost for name in ("a", "b")] == [1, 1]
    check_invariants(store)
    made.delete()


def _waits_for_a_lock(engine: Engine, database: str) -> bool:
    questions = {
        "postgresql": "SELECT count(*) FROM pg_locks WHERE NOT granted",
        "mariadb": "SELECT count(*) FROM information_schema.innodb_lock_waits",
    }
    with engine.connect() as connection:
        return bool(connection.execute(text(questions[database])).scalar())


def administrator(store: SqlStore) -> Engine:
    """Return an engine of somebody else."""
    return create_engine(store._server.url, isolation_level="AUTOCOMMIT")


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_verb_that_a_stuck_client_locks_out_is_unavailable_in_the_end(
    request: pytest.FixtureRequest, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durable_celery.store.sql.dialects.LOCK_TIMEOUT", 1)
    monkeypatch.setattr("durable_celery.store.sql.server.CONFLICTS", 2)
    made = SqlBackend(request.getfixturevalue(f"{database}_tables"), Timing())
    store = made._sql
    begin(store)
    runs = store._server.tables.runs
    with create_engine(store._server.url).connect() as connection:
        connection.execute(runs.select().with_for_update())

        with pytest.raises(StoreUnavailableError, match="too busy"):
            signal(store)

    assert signal(store).added
    made.delete()


def test_a_child_process_makes_its_own_connections(store: SqlStore) -> None:
    """A fork with connections in use: both sides go on, each with its own."""
    begin(store, step(1))
    reader, writer = os.pipe()
    child_pid = os.fork()
    if child_pid == 0:
        try:
            added = store.append("w", SignalReceived(name="from the child"), key="c").added
            os.write(writer, b"1" if added else b"0")
        finally:
            os._exit(0)
    for number in range(20):
        signal(store, signal_key=str(number))
    os.waitpid(child_pid, 0)

    assert os.read(reader, 1) == b"1"
    assert kinds(store).count("SignalReceived") == 21
    os.close(reader)
    os.close(writer)


def test_redis_stores_do_not_load_sqlalchemy() -> None:
    code = (
        "import sys; from celery import Celery; import durable_celery\n"
        "from durable_celery.app import binding_of\n"
        "binding_of(Celery('x', broker='redis://h/0'))\n"
        "assert 'sqlalchemy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# -- names -----------------------------------------------------------------------------------------------------------


def test_ids_that_differ_in_case_or_in_a_space_are_different_runs(store: SqlStore) -> None:
    for name in ("Order", "order", "ORDER"):
        begin(store, workflow_id=name)
    signal(store, "Order", signal_key="key")
    signal(store, "Order", signal_key="key ")
    signal(store, "Order", signal_key="Key")

    assert record(store, "Order").length == 4
    assert record(store, "order").length == 1
    assert {run.workflow_id for run in store.runs().runs} == {"Order", "order", "ORDER"}


@pytest.mark.parametrize("words", ["a\0b", "\udce9", "'; DROP TABLE x; --", "🦆" * 300, "%s %(x)s :y"])
def test_words_of_errors_may_be_anything(store: SqlStore, words: str) -> None:
    begin(store, step(1))
    begun = claim(store)

    assert store.postpone(begun.key, begun.owner, delay=0.0, error=words)
    taken = take(store, known=1)
    store.release("w", taken.lease.owner, delay=0.0, reason=words)

    assert record(store).steps[0].error
    assert record(store).reason


def test_payloads_may_be_long(store: SqlStore) -> None:
    payload = '"' + "🦆x" * 200_000 + '"'
    begin(store, step(1))
    begun = claim(store)
    store.finish(begun.key, result(1, payload=payload), token=begun.token)

    assert store.history("w")[-1].event.payload == payload
    close(store)
    deliver(store)


# -- what comes while a statement waits ------------------------------------------------------------------------------


def test_step_that_is_scheduled_while_its_claim_waits_for_the_run_is_found(backend: SqlBackend) -> None:
    """The claim's statement began before there was such a step, and sees nothing of it."""
    store = backend._sql
    if store._server.dialect == "sqlite":
        pytest.skip("SQLite has one writer at a time: nothing comes in between")
    begin(store, step(1))
    execute(store)
    taken = take(store)
    server: Any = store._server
    with ThreadPoolExecutor(1) as pool, server.engine.connect() as connection:
        desk = Desk(connection, server.statements, server.writer, server.timing)
        runs.commit(desk, taken.lease, [step(2)], read=taken.run.length, waiting="", hold=True)
        begun = pool.submit(claim, store, 2)
        time.sleep(0.3)  # it waits for the run's lock
        assert not begun.done()
        connection.commit()

        assert begun.result(20).attempt == 1


# -- dead processes --------------------------------------------------------------------------------------------------


def test_process_that_dies_while_it_is_given_something_loses_that_too(backend: SqlBackend) -> None:
    """The freeing has read what is held, and waits for a claim to commit: the foreign key makes it look again."""
    store = backend._sql
    if store._server.dialect == "sqlite":
        pytest.skip("SQLite has one writer at a time: nothing comes in between")
    begin(store, step(1), step(2))
    claim(store, 1, owner=call("mortal"))
    server: Any = store._server
    swept: list[Sweep] = []

    def free() -> None:
        store.renew([], gone=["mortal"])
        swept.append(sweep(store))

    with server.engine.connect() as connection:
        desk = Desk(connection, server.statements, server.writer, server.timing)
        assert isinstance(steps.claim(desk, key(2), call("mortal"), None), Claim)
        thread = threading.Thread(target=free)
        thread.start()
        time.sleep(0.3)  # it waits: on PostgreSQL for the run's lock, on MariaDB even for the owner's
        assert not swept
        connection.commit()
    thread.join(20)

    assert swept[0].counts["owner"] == 1
    assert [found.lost for found in record(store).steps] == [1, 1]
    turn(store)


# -- settings of servers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "said", "level", "check"),
    [
        (
            "postgresql",
            {"server_version_num": "150019", "synchronous_commit": "on", "fsync": "on"},
            "info",
            "durability",
        ),
        ("postgresql", {"server_version_num": "150019", "synchronous_commit": "off"}, "warning", "synchronous_commit"),
        ("postgresql", {"server_version_num": "150019", "fsync": "off"}, "warning", "fsync"),
        ("postgresql", {"server_version_num": "110000", "synchronous_commit": "on"}, "error", "version"),
        ("postgresql", {"server_version_num": "150019", "standby": "true"}, "error", "read_only"),
        ("mysql", {"version": "10.11.19-MariaDB", "innodb_flush_log_at_trx_commit": "1"}, "info", "durability"),
        ("mysql", {"version": "10.5.1-MariaDB", "innodb_flush_log_at_trx_commit": "1"}, "error", "version"),
        (
            "mysql",
            {"version": "8.4.0", "innodb_flush_log_at_trx_commit": "2"},
            "warning",
            "innodb_flush_log_at_trx_commit",
        ),
        (
            "mysql",
            {"version": "8.4.0", "innodb_flush_log_at_trx_commit": "1", "log_bin": "ON", "sync_binlog": "0"},
            "warning",
            "sync_binlog",
        ),
        ("mysql", {"version": "8.4.0", "read_only": "ON"}, "error", "read_only"),
        ("sqlite", {"version": "3.40.1", "journal_mode": "wal"}, "info", "durability"),
        ("sqlite", {"version": "3.40.1", "journal_mode": "delete"}, "error", "journal_mode"),
    ],
)
def test_settings_that_lose_work_are_told(kind: str, said: dict[str, str], level: str, check: str) -> None:
    assert (level, check) in {(found.level, found.check) for found in check_database(kind, said)}


def test_findings_are_asked_of_the_database(store: SqlStore) -> None:
    assert [finding.check for finding in store.findings() if finding.level == "error"] == []
    assert store.findings()[-1].check in {"durability", "fsync", "synchronous_commit", "innodb_flush_log_at_trx_commit"}
