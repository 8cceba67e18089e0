"""Databases with one account each, and attempts of one step that pay into it: by SQLAlchemy, and by Django's ORM.

What an attempt does is stopped, or ended, at named places, so that a test can put another attempt between any two.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from celery.exceptions import Ignore
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, event, insert, select, update
from sqlalchemy.orm import Session

from durable_celery.codec import Codec
from durable_celery.current import StepInfo
from durable_celery.transactions.exactly_once import Ledger, perform
from durable_celery.transactions.sql import _SqlLedger, outcome_table
from tests.databases import server_url

#: Places in an attempt, in order. Each is passed once by an attempt that goes through.
PLACES = ("before it is noted", "noted", "in the task", "after the effect", "kept", "committed")
LIMIT = 20.0


class Died(BaseException):
    """The process of an attempt has ended."""


@dataclass(slots=True)
class Pulse:
    """What an attempt needs of its worker."""

    codec: Codec = field(default_factory=Codec)
    run: str = "7"
    is_lost: bool = False
    losses: int = 0
    settled: tuple[Any] | None = None

    def incarnation(self) -> str:
        return self.run

    def lose(self) -> None:
        self.losses += 1


def step(attempt: int, pulse: Pulse | None = None) -> StepInfo:
    return StepInfo(
        workflow_id="w",
        workflow="flow",
        run=1,
        step=1,
        attempt=attempt,
        key="w/1.1",
        pulse=cast("Any", pulse or Pulse()),
    )


class Watched:
    """A ledger that says where it is."""

    def __init__(self, ledger: Ledger, at: Callable[[str], None]) -> None:
        self.ledger, self.at = ledger, at
        self._is_noted = False

    @property
    def passing(self) -> tuple[type[Exception], ...]:
        return self.ledger.passing

    def add(self, key: str, attempt: int) -> bool:
        self.at("before it is noted")
        added = self.ledger.add(key, attempt)
        if added:
            self.at("noted")
        return added

    def renew(self, key: str, attempt: int) -> bool:
        return self.ledger.renew(key, attempt)

    def find(self, key: str) -> tuple[int, str | None] | None:
        return self.ledger.find(key)

    def work(self, body: Callable[[], Any]) -> Any:
        value = self.ledger.work(body)
        self.at("committed")
        return value

    def keep(self, key: str, attempt: int, outcome: str) -> bool:
        self.at("after the effect")
        kept = self.ledger.keep(key, attempt, outcome)
        self.at("kept")
        return kept

    def clear(self) -> None:
        self.ledger.clear()


class Bank:
    """One account, and the attempts of one step that pay 1 into it."""

    #: The errors that a broken database raises here.
    away: type[Exception]

    @contextmanager
    def ledger(self) -> Generator[Ledger]:
        """Give the ledger of a new session."""
        raise NotImplementedError

    def pay(self) -> int:
        """Pay 1 into the account, in the transaction of the newest ledger of this thread; return the balance."""
        raise NotImplementedError

    @property
    def balance(self) -> int:
        raise NotImplementedError

    @property
    def rows(self) -> int:
        """How many rows of outcomes there are."""
        raise NotImplementedError

    def attempt(
        self,
        number: int,
        at: Callable[[str], None] = lambda _: None,
        *,
        pulse: Pulse | None = None,
        result: Callable[[int], Any] = lambda balance: balance,
    ) -> Any:
        """Execute an attempt of the step, which returns the balance."""

        def body() -> Any:
            at("in the task")
            return result(self.pay())

        with self.ledger() as ledger:
            return perform(step(number, pulse), cast("Ledger", Watched(ledger, at)), body)


class SqlBank(Bank):
    """With SQLAlchemy."""

    def __init__(self, url: str, suffix: str) -> None:
        from sqlalchemy.exc import OperationalError

        self.away = OperationalError
        self.metadata = MetaData()
        self.table = outcome_table(self.metadata, f"t_{suffix}")
        self.accounts = Table(
            f"t_{suffix}_accounts", self.metadata, Column("id", Integer, primary_key=True), Column("balance", Integer),
            mysql_engine="InnoDB",
        )  # fmt: skip
        self.engine: Engine = create_engine(url)
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", lambda connection, _: connection.execute("PRAGMA journal_mode = WAL"))
        self.metadata.create_all(self.engine)
        with self.engine.begin() as connection:
            connection.execute(insert(self.accounts).values(id=1, balance=0))
        self._here = threading.local()

    def close(self) -> None:
        self.metadata.drop_all(self.engine)
        self.engine.dispose()

    @contextmanager
    def ledger(self) -> Generator[Ledger]:
        with Session(self.engine) as session:
            self._here.session = session
            yield cast("Ledger", _SqlLedger(session, self.table, timedelta(days=30)))

    def pay(self) -> int:
        session, account = self._here.session, self.accounts.c
        session.execute(update(self.accounts).values(balance=account.balance + 1))
        return int(session.execute(select(account.balance)).scalar_one())

    @property
    def balance(self) -> int:
        with self.engine.connect() as connection:
            return int(connection.execute(select(self.accounts.c.balance)).scalar_one())

    @property
    def rows(self) -> int:
        with self.engine.connect() as connection:
            return len(connection.execute(select(self.table)).all())


class Parallel:
    """An attempt in a thread of its own, which stops at a place, if one is given, until it is let go."""

    def __init__(self, bank: Bank, number: int, place: str = "") -> None:
        self._bank, self._number, self._place = bank, number, place
        self._is_there, self._may_go = threading.Event(), threading.Event()
        #: What it returned, or what it raised.
        self.outcome: Any = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        if place:
            assert self._is_there.wait(LIMIT), f"attempt {number} did not come to {place!r}"

    def _run(self) -> None:
        try:
            self.outcome = self._bank.attempt(self._number, self._stop)
        except (Exception, Ignore) as error:  # noqa: BLE001 - it is looked at
            self.outcome = error
        finally:
            self._is_there.set()

    def _stop(self, place: str) -> None:
        if place == self._place:
            self._is_there.set()
            assert self._may_go.wait(LIMIT)

    def give_time(self, seconds: float) -> None:
        """Wait for its end, but not for long."""
        self._thread.join(seconds)

    def end(self) -> Any:
        """Let it go on to its end; return what it returned, or raised."""
        self._may_go.set()
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()
        return self.outcome


def sql_url(name: str, folder: Path) -> str:
    """Return the URL of a database; a server that does not answer skips the test (fails in CI)."""
    return f"sqlite:///{folder}/bank.db" if name == "sqlite" else server_url(name)
