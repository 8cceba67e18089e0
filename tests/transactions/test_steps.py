"""Transactional steps as users write them: sessions of each kind, Flask and Django; what is refused."""

# Celery carries no types: to pyright a task is the function that it was made of.
# pyright: reportArgumentType=false, reportFunctionMemberAccess=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Retry, SoftTimeLimitExceeded
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, NullPool, StaticPool, create_engine, select
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from durable_celery import (
    ConfigurationError,
    DurableError,
    RemoteError,
    WorkflowContext,
    current_step,
    durable_task,
    outcome_table,
    transactional_step,
)
from durable_celery.errors import PayloadError
from durable_celery.testing import Environment, crash_everywhere
from tests.databases import server_url


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"

    owner: Mapped[str] = mapped_column(primary_key=True)
    balance: Mapped[int]


OUTCOMES = outcome_table(Base.metadata)


class Site:
    """An app with its database, and a workflow that calls one task."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "bank.db"
        self.url = f"sqlite:///{self.path}"
        self.engine: Engine = create_engine(self.url)
        Base.metadata.create_all(self.engine)
        self.app = Celery("bank", broker="redis://nowhere.invalid:1/0", set_as_current=False)

        @durable_task(app=self.app)
        def call(ctx: WorkflowContext, name: str, *args: Any) -> Any:
            return ctx.step(name, *args)

        self.call = call
        with Session(self.engine) as session, session.begin():
            session.add(Account(owner="ann", balance=0))

    def task(self, database: Any, function: Callable[..., Any], **options: Any) -> Any:
        """Make a function a transactional task; its name is the function's, with a number from the second on."""
        name = function.__name__
        if name in self.app.tasks:
            name += str(len(self.app.tasks))
        return self.app.task(name=name, shared=False)(transactional_step(database, **options)(function))

    def run(self, function: Callable[..., Any], *args: Any, database: Any = None, **options: Any) -> Any:
        """Run a function as a transactional step of a workflow."""
        task = self.task(self.engine if database is None else database, function, **options)
        with Environment(self.app) as env:
            return env.run(self.call, task.name, *args)

    @property
    def balance(self) -> int:
        with Session(self.engine) as session:
            return session.execute(select(Account.balance)).scalar_one()

    @property
    def outcomes(self) -> list[tuple[int, str | None]]:
        with self.engine.connect() as connection:
            return [(row.attempt, row.outcome) for row in connection.execute(select(OUTCOMES))]

    def reset(self) -> None:
        with Session(self.engine) as session, session.begin():
            session.query(Account).update({"balance": 0})


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.engine.dispose()


def pay(session: Session, amount: int = 1) -> int:
    account = session.get_one(Account, "ann")
    account.balance += amount
    return account.balance


async def pay_async(session: AsyncSession, amount: int = 1) -> int:
    account = await session.get_one(Account, "ann")
    account.balance += amount
    assert current_step() is not None
    return account.balance


SOURCES: dict[str, Callable[[Engine], Any]] = {
    "engine": lambda engine: engine,
    "sessionmaker": sessionmaker,
    "scoped session": lambda engine: scoped_session(sessionmaker(engine)),
    "function that returns a session": lambda engine: lambda: Session(engine),
    "function that returns an engine": lambda engine: lambda: engine,
}
ASYNC_SOURCES: dict[str, Callable[[Any], Any]] = {
    "engine": lambda engine: engine,
    "sessionmaker": async_sessionmaker,
    "scoped session": lambda engine: async_scoped_session(async_sessionmaker(engine), lambda: 1),
    "function that returns a session": lambda engine: lambda: AsyncSession(engine),
    "function that returns an engine": lambda engine: lambda: engine,
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_step_and_its_outcome_are_one_transaction(site: Site, source: str) -> None:
    assert site.run(pay, 5, database=SOURCES[source](site.engine)) == 5
    assert (site.balance, site.outcomes) == (5, [(1, "5")])


@pytest.mark.parametrize("source", ASYNC_SOURCES)
def test_an_async_step_and_its_outcome_are_one_transaction(site: Site, source: str) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{site.path}", poolclass=NullPool)

    assert site.run(pay_async, 5, database=ASYNC_SOURCES[source](engine)) == 5
    assert (site.balance, site.outcomes) == (5, [(1, "5")])


def test_async_steps_on_postgresql(site: Site) -> None:
    from sqlalchemy import MetaData

    url = server_url("postgresql")
    metadata = MetaData()
    table = outcome_table(metadata, "t_async_bank")
    engine = create_engine(url)
    metadata.create_all(engine)

    async def look(session: AsyncSession) -> int:
        return int((await session.execute(select(1))).scalar_one())

    try:
        made = create_async_engine(url, poolclass=NullPool)
        assert site.run(look, database=made, table=table) == 1
        with engine.connect() as connection:
            assert [row.outcome for row in connection.execute(select(table))] == ["1"]
    finally:
        metadata.drop_all(engine)
        engine.dispose()


def test_every_fault_leaves_the_effect_once(site: Site) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{site.path}", poolclass=NullPool)
    site.task(site.engine, pay)
    site.task(engine, pay_async)

    @durable_task(app=site.app)
    def both(ctx: WorkflowContext) -> list[int]:
        return [ctx.step("pay", 1), ctx.step("pay_async", 2), ctx.step("pay", 3)]

    report = crash_everywhere(both, effects=lambda: site.balance, before=site.reset)

    assert report.executed_again
    assert site.balance == 6


def test_flask_sqlalchemy(site: Site) -> None:
    flask = Flask("bank")
    flask.config["SQLALCHEMY_DATABASE_URI"] = site.url
    db = SQLAlchemy(flask)

    class InContext(site.app.Task):  # type: ignore[name-defined]  # as Flask's documentation has it
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with flask.app_context():
                return self.run(*args, **kwargs)

    def deposit(session: Any, amount: int) -> int:
        # Models of a Flask app know no other session.
        assert session is db.session()
        db.session.get_one(Account, "ann").balance += amount
        return amount

    site.app.task(name="deposit", base=InContext, shared=False)(transactional_step(db.session)(deposit))

    with Environment(site.app) as env:
        assert env.run(site.call, "deposit", 4) == 4
    report = crash_everywhere(site.call, "deposit", 4, effects=lambda: site.balance, before=site.reset)
    assert report.executed_again
    assert (site.balance, {outcome for _, outcome in site.outcomes}) == (4, {"4"})


def test_django(site: Site) -> None:
    from tests.transactions.django_bank import DjangoBank

    bank = DjangoBank()
    from django.db import transaction

    from durable_celery.contrib.django import transactional_step as django_step

    committed: list[int] = []

    @site.app.task(name="deposit", shared=False)
    @django_step()
    def deposit(amount: int) -> int:
        atomic: Any = transaction.atomic
        with atomic():
            balance = [bank.pay() for _ in range(amount)][-1]
        transaction.on_commit(lambda: committed.append(amount))
        return balance

    @site.app.task(name="decline", shared=False)
    @django_step()
    def decline() -> None:
        bank.pay()
        raise ValueError("declined")

    @site.app.task(name="elsewhere", shared=False)
    @django_step(using="bare")
    def elsewhere() -> None:
        """Has no table there."""

    def before() -> None:
        bank.accounts.objects.update(balance=0)

    with Environment(site.app) as env:
        assert env.run(site.call, "deposit", 3) == 3
        with pytest.raises(ValueError, match="declined"):
            env.run(site.call, "decline")
        with pytest.raises(ConfigurationError, match=r'database "bare" has no table durable_outcomes: add "durable_ce'):
            env.run(site.call, "elsewhere")
    assert (bank.balance, committed) == (3, [3])
    report = crash_everywhere(site.call, "deposit", 3, effects=lambda: bank.balance, before=before)
    assert report.executed_again
    # Called by no workflow, it is a function in a transaction.
    assert deposit(1) == 4
    with pytest.raises(ConfigurationError, match="is `async def`, and Django's transactions are not"):

        @django_step()
        async def _() -> None: ...


def test_what_fails_takes_no_effect_and_is_tried_again_by_its_policy(site: Site) -> None:
    tries: list[int] = []

    def unsteady(session: Session) -> int:
        tries.append(pay(session))
        if len(tries) < 3:
            raise ConnectionError("not yet")
        return tries[-1]

    def refused(session: Session) -> None:
        pay(session)
        session.add(Account(owner="bob"))

    task, other = site.task(site.engine, unsteady), site.task(site.engine, refused)

    @durable_task(app=site.app)
    def patient(ctx: WorkflowContext) -> Any:
        return ctx.options(retry=5).step(task)

    with Environment(site.app) as env:
        assert env.run(patient) == 1
        with pytest.raises(RemoteError, match="IntegrityError"):
            env.run(site.call, other.name)
    assert (tries, site.balance) == ([1, 1, 1], 1)
    assert site.outcomes == [(3, "1"), (1, None)]


def test_a_task_that_asks_celery_for_a_retry_takes_no_effect_until_then(site: Site) -> None:
    tries: list[int] = []

    def bound(session: Session, task: Any) -> int:
        tries.append(pay(session))
        if len(tries) < 2:
            raise task.retry(countdown=5)
        return tries[-1]

    site.app.task(name="bound", bind=True, shared=False)(transactional_step(site.engine)(bound))
    with Environment(site.app) as env:
        assert env.run(site.call, "bound") == 1
    assert issubclass(Retry, Exception)
    assert (tries, site.balance) == ([1, 1], 1)


def test_a_time_limit_that_strikes_after_the_commit_changes_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    from durable_celery.transactions import sql

    real = sql._SqlLedger.work

    def late(ledger: Any, body: Any) -> Any:
        real(ledger, body)
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(sql._SqlLedger, "work", late)
    assert site.run(pay, 2) == 2

    def wrapped(session: Session) -> int:
        return pay(session)

    step = transactional_step(site.engine)(wrapped)

    def outer() -> int:
        step()
        raise SoftTimeLimitExceeded

    outer.durable_settles = True  # type: ignore[attr-defined]  # as the decorator marks its own
    monkeypatch.setattr(sql._SqlLedger, "work", real)
    site.app.task(name="outer", shared=False)(outer)
    with Environment(site.app) as env:
        assert env.run(site.call, "outer") == 3
    assert site.balance == 3


def test_a_step_may_roll_back_and_set_savepoints_but_not_commit(site: Site) -> None:
    def moody(session: Session) -> int:
        pay(session, 10)
        session.rollback()
        with suppress(ZeroDivisionError), session.begin_nested():
            pay(session, 100 // 0)
        with session.begin_nested():
            pay(session)
        return pay(session)

    def commits(session: Session) -> None:
        pay(session, 1000)
        session.commit()

    def commits_all(session: Session) -> None:
        with session.begin():
            pay(session, 1000)

    assert site.run(moody) == 2
    for wrong in (commits, commits_all):
        with pytest.raises(DurableError, match="a transactional step does not commit: the library does"):
            site.run(wrong)
    assert site.balance == 2


def test_a_result_that_cannot_be_recorded_takes_no_effect(site: Site) -> None:
    def returns_an_object(session: Session) -> object:
        pay(session)
        return object()

    with pytest.raises(PayloadError):
        site.run(returns_an_object)
    assert site.balance == 0


def test_a_missing_table_is_named(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"has no table durable_outcomes: add durable_celery\.outcome_table\("):
        site.run(pay, database=create_engine(f"sqlite:///{tmp_path}/other.db"))


def test_what_would_not_be_one_transaction_is_refused(site: Site) -> None:
    def nothing(session: Any) -> None: ...

    async def nothing_async(session: Any) -> None: ...

    pooled = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    with site.engine.connect() as connection:
        wrong = [
            (site.engine.execution_options(isolation_level="AUTOCOMMIT"), nothing, "AUTOCOMMIT"),
            (create_engine(site.url, isolation_level="AUTOCOMMIT"), nothing, "AUTOCOMMIT"),
            (lambda: Session(connection), nothing, "bound to an engine, not to a connection"),
            (lambda: 7, nothing, "an engine, or what makes a session"),
            (pooled, nothing, "an engine, or what makes a session"),
            (site.engine, nothing_async, "AsyncEngine, or what makes an AsyncSession"),
            (pooled, nothing_async, "needs poolclass=NullPool"),
        ]
        for database, function, message in wrong:
            with pytest.raises(ConfigurationError, match=message):
                site.run(function, database=database)
    begun = Session(site.engine)
    begun.begin()
    with pytest.raises(DurableError, match="in a transaction before the step begins"):
        site.run(nothing, database=lambda: begun)


def test_called_by_no_workflow_it_is_a_function_in_a_transaction(site: Site) -> None:
    task = site.task(site.engine, pay)

    assert [task(2), task(3)] == [2, 5]
    with pytest.raises(DurableError, match="does not commit"):
        transactional_step(site.engine)(lambda session: session.commit())()
    assert site.outcomes == []
    with pytest.raises(TypeError):
        # The session is no argument of the task.
        task.delay(1, 2)


def test_the_rows_of_two_apps_in_one_database_are_apart(site: Site) -> None:
    from sqlalchemy import MetaData

    metadata = MetaData()
    own = outcome_table(metadata, "shop")
    assert outcome_table(metadata, "shop") is own
    metadata.create_all(site.engine)

    assert site.run(pay, table=own) == 1
    assert site.outcomes == []
