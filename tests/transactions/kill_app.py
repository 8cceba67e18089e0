"""An app for `celery worker` whose steps pay into an account, and whose processes kill themselves at named places.

The workflow id says where: ``<place>.<number>``. Each run is killed once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Celery
from sqlalchemy import NullPool, create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from durable_celery import WorkflowContext, current_step, durable_task, transactional_step
from durable_celery.engine import Engine
from durable_celery.transactions import outcome_table, sql

#: In the order in which an attempt passes them.
PLACES = ("begin", "noted", "body", "effect", "kept", "committed", "recording", "recorded")
SUFFIX = os.environ["BANK_SUFFIX"]

app = Celery("bank", broker=os.environ["BANK_BROKER"], set_as_current=False)
app.conf.update(
    durable_store=os.environ["BANK_STORE"],
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    durable_lost_attempts=10,
)


class Base(DeclarativeBase):
    pass


class Payment(Base):
    """One row for each time that a step took effect."""

    __tablename__ = f"{SUFFIX}_payments"

    id: Mapped[int] = mapped_column(primary_key=True)
    #: Its workflow.
    of: Mapped[str] = mapped_column()


Payment.__table__.c.of.type.length = 200  # type: ignore[attr-defined]  # MySQL wants to know
OUTCOMES = outcome_table(Base.metadata, SUFFIX)


class Where:
    """Which run this process is at work for."""

    workflow_id = ""


def die(place: str) -> None:
    """End this process with no word to anybody, if the run wants it here and was spared so far."""
    if Where.workflow_id.partition(".")[0] != place:
        return
    try:
        (Path(os.environ["BANK_FOLDER"]) / Where.workflow_id).touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def around(owner: Any, name: str, before: str, after: str) -> None:
    """Let a method pass a place before it, and one after it."""
    real: Callable[..., Any] = getattr(owner, name)

    def method(*args: Any, **kwargs: Any) -> Any:
        die(before)
        value = real(*args, **kwargs)
        die(after)
        return value

    setattr(owner, name, method)


if os.environ.get("BANK_IS_WORKER"):
    around(sql._SqlLedger, "add", "begin", "noted")
    around(sql._SqlLedger, "keep", "effect", "kept")
    around(sql._SqlLedger, "work", "", "committed")
    around(Engine, "complete_step", "recording", "recorded")
    real_execute = sql._Home._execute

    def execute(home: Any, session: Any, step: Any, body: Any) -> Any:
        Where.workflow_id = step.workflow_id
        return real_execute(home, session, step, body)

    sql._Home._execute = execute  # type: ignore[assignment,method-assign]  # that is the point


@app.task(name="bank.pay", shared=False)
@transactional_step(lambda: create_engine(os.environ["BANK_URL"]), table=OUTCOMES)
def pay(session: Session) -> list[Any]:
    step = current_step()
    assert step is not None
    die("body")
    payment = Payment(of=step.workflow_id)
    session.add(payment)
    session.flush()
    return [payment.id, step.attempt]


@app.task(name="bank.pay_async", shared=False)
@transactional_step(lambda: create_async_engine(os.environ["BANK_ASYNC_URL"], poolclass=NullPool), table=OUTCOMES)
async def pay_async(session: AsyncSession) -> list[Any]:
    step = current_step()
    assert step is not None
    die("body")
    payment = Payment(of=step.workflow_id)
    session.add(payment)
    await session.flush()
    return [payment.id, step.attempt]


@app.task(name="bank.add", shared=False)
def add(x: int, y: int) -> int:
    return x + y


@durable_task(app=app, name="bank.payment")
def payment(ctx: WorkflowContext, task: str) -> list[Any]:
    return [ctx.step(task), ctx.step(add, 1, 2)]
