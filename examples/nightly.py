"""Nightly: a batch over many customers that tolerates a few failures, and stops early when there are too many.

Statements are made for all customers, twenty at a time. One customer in a hundred may fail; if more do, something is
wrong with the night itself, and the batch stops instead of failing for everybody.

    python examples/nightly.py          # 10000 customers, or as many as you say
"""

import os
import sys

from celery import Celery

from durable_celery import Tolerance, WorkflowContext, durable_task

app = Celery("nightly", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))
app.conf.task_default_queue = "nightly"
app.conf.durable_store = os.environ.get("DURABLE_STORE_URL", "")


@app.task
def make_statement(customer: int) -> int:
    if customer % 150 == 0:
        raise ValueError(f"customer {customer} has no address")
    return customer % 7


@app.task
def broken_printer(customer: int) -> int:
    raise OSError(f"out of paper for customer {customer}")


@durable_task
def nightly(ctx: WorkflowContext, customers: int) -> str:
    batch = ctx.map(make_statement, range(customers), max_concurrency=20, tolerate=Tolerance(percent=1))
    batch.raise_if_failed()
    return f"{sum(batch.results)} pages for {len(batch.results)} customers, {len(batch.errors)} to look at"


@durable_task
def print_all(ctx: WorkflowContext, customers: int) -> str:
    batch = ctx.map(broken_printer, range(customers), max_concurrency=20, tolerate=3)
    ended = [item for item in batch.items if item.status != "skipped"]
    return f"stopped after {len(batch.errors)} failures; {customers - len(ended)} customers were never tried"


def main() -> None:
    from stage import Stage

    customers = int(sys.argv[1]) if len(sys.argv) > 1 else 10000
    with Stage(app, "nightly") as stage:
        stage.start_worker()
        print(nightly.delay(customers).get(timeout=600))
        print(print_all.delay(customers).get(timeout=60))


if __name__ == "__main__":
    main()
