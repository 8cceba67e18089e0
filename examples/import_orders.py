"""Import: a step that takes long, says how far it is, and is stopped and killed on its way; then one that others end.

The worker is killed in the middle of the first import: the next attempt goes on where the last heartbeat was. The
second import is cancelled: its step stops at its next heartbeat. At last a bank is asked to pay an invoice. It calls
back when it has, with the token that it was given, and no worker waits meanwhile.

    python examples/import_orders.py
"""

import os
import time

from celery import Celery

from durable_celery import StepCancelled, WorkflowContext, WorkflowHandle, current_step, durable_task

app = Celery("import_orders", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))
app.conf.task_default_queue = "import_orders"
app.conf.durable_store = os.environ.get("DURABLE_STORE_URL", "")
ROWS = 60


@app.task
def import_rows(name: str) -> str:
    step = current_step()
    first = step.progress or 0
    try:
        for row in range(first, ROWS):
            time.sleep(0.05)  # the work
            step.heartbeat(row + 1)
    except StepCancelled:
        print(f"{name}: stopped", flush=True)
        raise
    return f"{name}: attempt {step.attempt} began {'after' if first else 'at'} the first rows"


@app.task
def ask_bank(invoice: str) -> str:
    step = current_step()
    print(f"dear bank, pay {invoice} and answer to {step.key}", flush=True)
    raise step.complete_later()


@durable_task
def import_file(ctx: WorkflowContext, name: str) -> str:
    return ctx.options(heartbeat_timeout=30).step(import_rows, name)


@durable_task
def pay(ctx: WorkflowContext, invoice: str) -> str:
    # Money goes out: this is not tried a second time where nobody knows how the first one ended.
    return ctx.options(at_most_once=True, start_timeout=60, timeout=86400).step(ask_bank, invoice)


def progress_of(run: WorkflowHandle) -> int:
    """Return how many rows the run's open step has imported."""
    return sum(int(step.progress or 0) for step in run.describe().steps)


def main() -> None:
    from stage import Stage, wait_until

    with Stage(app, "import_orders") as stage:
        worker = stage.start_worker()
        first = import_file.delay("monday")
        wait_until(lambda: progress_of(first) > 1, "more than the first row")
        worker.kill()
        stage.start_worker()
        print(first.get(timeout=60))

        second = import_file.delay("tuesday")
        wait_until(lambda: progress_of(second), "the first row")
        second.cancel()
        wait_until(lambda: second.state == "REVOKED", "the cancel")
        print("tuesday:", second.state)

        third = pay.delay("invoice-7")
        wait_until(lambda: any(step.state == "waiting" for step in third.describe().steps), "the bank to be asked")
        third.client.complete_step(f"{third.id}/1.1", "paid by transfer 4711")
        print("invoice-7:", third.get(timeout=60))


if __name__ == "__main__":
    main()
