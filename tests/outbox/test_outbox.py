"""Starts and signals in transactions of the user's database: with the data or not at all; in the environment."""

# Celery carries no types: to pyright a task is the function that it was made of.
# pyright: reportArgumentType=false, reportFunctionMemberAccess=false, reportCallIssue=false

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import Engine, NullPool, create_engine, select, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from durable_celery import (
    ConfigurationError,
    Signal,
    WorkflowContext,
    WorkflowNotFoundError,
    durable_task,
    outbox_table,
)
from durable_celery.codec import AesGcm
from durable_celery.errors import InvalidIdError, InvalidRequestError, PayloadError
from durable_celery.outbox.shelves import shelves_of
from durable_celery.relay import Relay
from durable_celery.testing import Environment


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    name: Mapped[str] = mapped_column(primary_key=True)


OUTBOX = outbox_table(Base.metadata)
paid = Signal("paid", int)
app = Celery("shop", broker="redis://nowhere.invalid:1/0", set_as_current=False)


@durable_task(app=app)
def checkout(ctx: WorkflowContext, order: str, pieces: int = 1) -> list[Any]:
    return [order, pieces]


@durable_task(app=app, signals=[paid])
def payment(ctx: WorkflowContext, order: str) -> list[Any]:
    return [order, ctx.wait_signal(paid), ctx.wait_signal(paid)]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path}/shop.db")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def env(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Environment]:
    monkeypatch.setitem(app.conf, "durable_outbox", engine)
    with Environment(app) as env:
        yield env


def rows(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(select(OUTBOX).order_by(OUTBOX.c.id)))


def make_due(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(update(OUTBOX).where(OUTBOX.c.not_before.is_not(None)).values(not_before=0))


def test_a_start_is_made_when_its_transaction_commits(env: Environment, engine: Engine) -> None:
    with Session(engine) as session:
        session.add(Order(name="o-1"))
        handle = checkout.start_in(session, ("o-1",), {"pieces": 3}, task_id="order-o-1")
        env.settle()
        assert (handle.id, handle.state) == ("order-o-1", "PENDING")
        with pytest.raises(WorkflowNotFoundError):
            handle.describe()
        session.commit()
    env.settle()

    assert handle.get() == ["o-1", 3]
    assert rows(engine) == []


def test_a_start_whose_transaction_is_rolled_back_never_was(env: Environment, engine: Engine) -> None:
    with Session(engine) as session:
        session.add(Order(name="o-1"))
        handle = checkout.start_in(session, ("o-1",))
        payment.AsyncResult("elsewhere").signal_in(session, paid, 1)
        session.rollback()
    env.settle()

    assert (handle.state, rows(engine)) == ("PENDING", [])
    assert env.system.open_runs() == []


def test_a_run_and_its_signals_may_be_made_in_one_transaction(env: Environment, engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        handle = payment.start_in(session, ("o-1",))
        handle.signal_in(session, paid, 1)
        handle.signal_in(session, paid, 2, key="second")
        handle.signal_in(session, paid, 2, key="second")
    env.settle()

    assert handle.get() == ["o-1", 1, 2]
    assert rows(engine) == []


def test_each_kind_of_session_will_do(env: Environment, engine: Engine) -> None:
    scoped = scoped_session(sessionmaker(engine))
    handles = [checkout.start_in(scoped, ("scoped",))]
    scoped.commit()
    scoped.remove()
    with engine.begin() as connection:
        handles.append(checkout.start_in(connection, ("connection",)))

    async def in_async_session() -> Any:
        url = str(engine.url).replace("sqlite://", "sqlite+aiosqlite://")
        async with AsyncSession(create_async_engine(url, poolclass=NullPool)) as session:
            with pytest.raises(ConfigurationError, match=r"await session\.run_sync"):
                checkout.start_in(session, ("no",))
            handle = await session.run_sync(lambda session: checkout.start_in(session, ("async",)))
            await session.commit()
            return handle

    handles.append(asyncio.run(in_async_session()))
    env.settle()

    assert [handle.get()[0] for handle in handles] == ["scoped", "connection", "async"]


def test_django(env: Environment, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.transactions.django_bank import DjangoBank

    bank = DjangoBank()
    from django.db import transaction

    from durable_celery.contrib.django import outbox
    from durable_celery.contrib.django.models import OutboxEntry

    monkeypatch.setitem(app.conf, "durable_outbox", ["django:default", engine])
    atomic: Any = transaction.atomic
    with Environment(app) as second:
        with atomic():
            bank.pay()
            handle = payment.start_in(outbox(), ("o-1",))
            handle.signal_in(outbox(), paid, 1)
            handle.signal_in(outbox(), paid, 2)
        with pytest.raises(ZeroDivisionError), atomic():
            checkout.start_in(outbox(), (str(1 / 0),))
        with Session(engine) as session, session.begin():
            other = checkout.start_in(session, ("o-2",))
        second.settle()
        assert (handle.get(), other.get()) == (["o-1", 1, 2], ["o-2", 1])
        entries: Any = OutboxEntry
        assert entries.objects.count() == 0

        with atomic():
            payment.AsyncResult(handle.id).signal_in(outbox(), paid, 3)
        second.settle()
        (row,) = entries.objects.all()
        assert (row.not_before, row.error) == (None, f"workflow {handle.id!r} is already completed")
        entries.objects.all().delete()
    with pytest.raises(ConfigurationError, match=r'database "bare" has no table durable_outbox: add "durable_celery.c'):
        shelves_of("django:bare", "durable")[0].check()


def test_what_cannot_be_relayed_stays_with_the_reason(
    env: Environment, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    checkout.apply_async(("other",), task_id="taken")
    env.settle()
    with Session(engine) as session, session.begin():
        checkout.start_in(session, ("o-1",), task_id="taken")
        checkout.AsyncResult("taken").signal_in(session, "late", 1)
        good = checkout.start_in(session, ("o-2",))
    env.settle()

    assert good.get() == ["o-2", 1]
    first, second = rows(engine)
    assert (first.not_before, first.tries, first.kind) == (None, 1, "start")
    assert first.error.startswith("workflow 'taken' was already started as")
    assert (second.not_before, second.error) == (None, "workflow 'taken' is already completed")
    assert "a start of taken in the outbox cannot be relayed, and stays there" in caplog.text


def test_a_signal_waits_for_its_run(env: Environment, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transaction that starts it may commit later than the one that signals."""
    with Session(engine) as session, session.begin():
        payment.AsyncResult("p-1").signal_in(session, "paid", 1)
        payment.AsyncResult("p-2").signal_in(session, "paid", 1)
    env.settle()
    assert [(row.tries, row.error.partition(" in ")[0]) for row in rows(engine)] == [
        (1, "no workflow 'p-1'"),
        (1, "no workflow 'p-2'"),
    ]
    with Session(engine) as session, session.begin():
        handle = payment.start_in(session, ("o-1",), task_id="p-1")
        handle.signal_in(session, paid, 2)
    make_due(engine)
    env.settle()
    make_due(engine)
    env.settle()

    assert sorted(handle.get()[1:]) == [1, 2]
    # After a day it is not waited for any more.
    monkeypatch.setattr("durable_celery.relay._PATIENCE", 0.0)
    make_due(engine)
    env.settle()
    (row,) = rows(engine)
    assert (row.workflow_id, row.not_before) == ("p-2", None)


def test_what_was_relayed_and_not_deleted_is_relayed_again_and_does_no_harm(
    env: Environment, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay dies between the store and the commit: its database rolls back."""
    real = Relay._take
    with Session(engine) as session, session.begin():
        handle = payment.start_in(session, ("o-1",))
        handle.signal_in(session, paid, 1)
        handle.signal_in(session, paid, 2)

    def take(relay: Relay, entry: Any) -> Any:
        real(relay, entry)
        if entry.kind == "signal":
            raise KeyboardInterrupt
        return None

    monkeypatch.setattr(Relay, "_take", take)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            env.settle()
    assert len(rows(engine)) == 3
    monkeypatch.setattr(Relay, "_take", real)
    env.settle()

    assert handle.get() == ["o-1", 1, 2]
    assert [type(item.event).__name__ for item in handle.history()].count("SignalReceived") == 2


def test_options_of_a_start_count_from_the_call(env: Environment, engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        later = checkout.start_in(session, ("o-1",), countdown=3600)
        never = checkout.start_in(session, ("o-2",), countdown=7200, expires=60)
    env.settle()
    assert (later.state, never.state) == ("PENDING", "PENDING")
    assert later.describe().length == 1

    env.skip(3700)
    assert later.get() == ["o-1", 1]
    env.skip(3700)
    assert never.state == "REVOKED"


def test_payloads_are_sealed_in_the_users_database_too(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(app.conf, "durable_outbox", engine)
    monkeypatch.setitem(app.conf, "durable_codec", [AesGcm({"k1": b"k" * 32})])
    with Environment(app) as env:
        with Session(engine) as session, session.begin():
            handle = payment.start_in(session, ("the-canary",))
            handle.signal_in(session, paid, 424242)
            handle.signal_in(session, paid, 2)
        assert not [row for row in rows(engine) if "canary" in row.body or "424242" in row.body]
        env.settle()
        assert handle.get() == ["the-canary", 424242, 2]


def test_bad_input_is_refused_before_anything_is_written(env: Environment, engine: Engine) -> None:
    running = payment.apply_async(("o-1",), task_id="running")
    with Session(engine) as session, session.begin():
        with pytest.raises(TypeError):
            checkout.start_in(session, ())
        with pytest.raises(PayloadError):
            checkout.start_in(session, (object(),))
        with pytest.raises(InvalidIdError):
            checkout.start_in(session, ("o-1",), task_id="two words")
        with pytest.raises(PayloadError):
            running.signal_in(session, paid, "not a number")
        with pytest.raises(InvalidRequestError):
            running.signal_in(session, "unknown", 1)
        for wrong in (engine, None, "session"):
            with pytest.raises(ConfigurationError, match="take a session or connection of SQLAlchemy"):
                checkout.start_in(wrong, ("o-1",))
    assert rows(engine) == []


def test_what_nobody_would_relay_is_refused(engine: Engine) -> None:
    with Environment(app), Session(engine) as session:
        with pytest.raises(ConfigurationError, match="nobody would relay this: set durable_outbox"):
            checkout.start_in(session, ("o-1",))
        with pytest.raises(ConfigurationError, match="nobody would relay this"):
            checkout.AsyncResult("w").signal_in(session, "paid", 1)


def test_a_missing_table_is_named_on_both_sides(env: Environment, tmp_path: Path) -> None:
    bare = create_engine(f"sqlite:///{tmp_path}/bare.db")
    missing = r"has no table durable_outbox: add durable_celery\.outbox_table"
    with Session(bare) as session, pytest.raises(ConfigurationError, match=missing):
        checkout.start_in(session, ("o-1",))
    with pytest.raises(ConfigurationError, match=missing):
        shelves_of(str(bare.url), "durable")[0].check()


@pytest.mark.parametrize("setting", ["nonsense", "no.such.module:engine", "unknown+driver://x/y", 7, object])
def test_a_setting_that_names_no_database_is_an_error(setting: Any) -> None:
    with pytest.raises(ConfigurationError, match="durable_outbox"):
        shelves_of(setting, "durable")


def test_a_setting_may_name_a_database_in_each_of_its_ways(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.outbox.test_outbox.SHOP", engine, raising=False)

    for setting in (engine, str(engine.url), lambda: engine, f"{__name__}:SHOP", [engine, str(engine.url)]):
        shelves = shelves_of(setting, "durable")
        for shelf in shelves:
            shelf.check()
        assert len(shelves) == (2 if isinstance(setting, list) else 1)
