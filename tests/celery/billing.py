"""A service of another team: a Celery app that knows nothing of durable_celery, and says so with each result."""

from __future__ import annotations

import os
import sys

from celery import Celery, Task

app = Celery("billing", broker=os.environ.get("BILLING_BROKER"), backend=os.environ.get("BILLING_BACKEND"))
app.conf.task_default_queue = "billing"


@app.task(name="billing.charge", bind=True)
def charge(self: Task, order: str, *, amount: int = 1) -> list[object]:
    # Celery's command line loads the names of its plug-ins, ours among them, and no more.
    return [order, amount, self.request.id, self.request.parent_id, "durable_celery.task" in sys.modules]


@app.task(name="billing.decline")
def decline(order: str) -> None:
    raise ValueError(f"{order} is declined")


@app.task(name="billing.own_error")
def own_error(order: str) -> None:
    # A module that the workflow's side cannot import.
    kind = type("DeclinedError", (Exception,), {"__module__": "billing.errors"})
    raise kind(f"{order} is declined")


@app.task(name="billing.flaky", bind=True)
def flaky(self: Task) -> str:
    """Fail the first two times, whichever task that is."""
    count = self.backend.client.incr("flaky")
    if count < 3:
        raise ValueError(f"failed {count}")
    return str(self.request.id)


@app.task(name="billing.silent", ignore_result=True)
def silent() -> None:
    """Have no result, unless the sender asks for it."""
