"""File processing: an outside API that is sometimes down, then a status row in a database.

The classic place where pipelines go wrong: the API was paid for, the worker died, and the row still says "reading".
Here each file is a workflow. The call to the API is a step with a retry policy; its waits are kept in the store and
hold no worker. The row is written by a transactional step: the row and the step's outcome are committed together, in
this database, so it takes effect exactly once. That is why it may also add to the customer's bill, although the worker
is killed here while it is at work.

    python examples/files.py
"""

import json
import os
import urllib.request
from functools import cache
from http import HTTPStatus
from pathlib import Path
from urllib.error import HTTPError

from celery import Celery
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from durable_celery import RetryPolicy, WorkflowContext, current_step, durable_task, outcome_table, transactional_step

app = Celery("files", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))
app.conf.task_default_queue = "files"
app.conf.durable_store = os.environ.get("DURABLE_STORE_URL", "")

API_URL = os.environ.get("OCR_URL", "http://localhost:8099")
DATABASE_URL = os.environ.get("DATABASE_URL", "sqlite:///files.db")


class Base(DeclarativeBase):
    pass


class File(Base):
    __tablename__ = "files"

    path: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str]
    text: Mapped[str]


class Bill(Base):
    __tablename__ = "bills"

    customer: Mapped[str] = mapped_column(primary_key=True)
    files: Mapped[int]


#: What transactional steps need in your database: one more table.
outcome_table(Base.metadata)


class UnreadableError(Exception):
    """The API has read the file and cannot make sense of it."""


@app.task
def recognise(path: str) -> str:
    """Send the file to the API and return its text."""
    step = current_step()
    request = urllib.request.Request(f"{API_URL}/ocr", data=Path(path).read_bytes(), method="POST")  # noqa: S310 - our own URL
    if step is not None:
        # The same for each attempt: the API can tell a repetition from a second order, and charges once.
        request.add_header("Idempotency-Key", step.key)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - the same
            return str(json.load(response)["text"])
    except HTTPError as error:
        if error.code == HTTPStatus.UNPROCESSABLE_ENTITY:
            raise UnreadableError(path) from error
        raise


@cache
def database() -> Engine:
    """Connect once in each process of the worker, on first use: connections do not survive a fork."""
    return create_engine(DATABASE_URL)


@app.task
@transactional_step(database)
def record(session: Session, path: str, status: str, text: str = "") -> None:
    """Write the row of a file; one that is done is added to the bill."""
    session.merge(File(path=path, status=status, text=text))
    if status == "done":
        bill = session.get(Bill, "ann", with_for_update=True) or Bill(customer="ann", files=0)
        bill.files += 1
        session.add(bill)


PATIENT = RetryPolicy(initial_interval=0.3, maximum_attempts=8, non_retryable=(UnreadableError,))


@durable_task
def process_file(ctx: WorkflowContext, path: str) -> str:
    ctx.step(record, path, "reading")
    try:
        text = ctx.options(retry=PATIENT).step(recognise, path)
    except UnreadableError:
        ctx.step(record, path, "unreadable")
        return "unreadable"
    ctx.step(record, path, "done", text)
    return "done"


def main() -> None:
    from ocr_service import OcrService
    from stage import Stage, wait_until

    with Stage(app, "files") as stage, OcrService(outages=2) as service:
        url = f"sqlite:///{stage.folder / 'files.db'}"
        # Tables are made once, before there are workers: two that make them at the same time stand in each other's way.
        Base.metadata.create_all(create_engine(url))
        names = ("letter", "scribble", "a", "b", "c", "d")
        letter, scribble, *others = paths = [stage.folder / f"{name}.txt" for name in names]
        letter.write_text("dear customer")
        scribble.write_text("???")
        for path in others:
            path.write_text(path.stem)
        worker = stage.start_worker(OCR_URL=service.url, DATABASE_URL=url)

        runs = [process_file.delay(str(path)) for path in paths]
        # The API has read the first files; whose rows are written, and whose are not, is anybody's guess.
        wait_until(lambda: service.charged > 1, "files that were read")
        worker.kill()
        stage.start_worker("B", OCR_URL=service.url, DATABASE_URL=url)
        for path, run in zip(paths, runs, strict=True):
            print(f"{path.name:<13} {run.get(timeout=60)}")

        print("\nrows of the database")
        with Session(create_engine(url)) as session:
            for file in session.scalars(select(File).order_by(File.path)):
                print(f"  {Path(file.path).name:<13} {file.status:<11} {file.text}".rstrip())
            print(f"files on the bill of ann: {session.get_one(Bill, 'ann').files}")
        print(f"\ncalls of the API: {service.calls}, of which it was down for {service.refused}")
        print(f"documents it charges for: {service.charged}")


if __name__ == "__main__":
    main()
