"""The shop: a small Celery app as there are many. Its last lines are all that durable_celery asks for.

celery -A tasks worker
"""

import os
import tempfile
import time
from pathlib import Path
from uuid import uuid4

from celery import Celery

app = Celery(
    "shop",
    broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"),
    backend=os.environ.get("RESULT_BACKEND"),
)
app.conf.task_default_queue = "shop"
app.conf.durable_store = os.environ.get("DURABLE_STORE_URL", "")  # only where the broker is no Redis
if "VISIBILITY_TIMEOUT" in os.environ:
    # How long a Redis broker waits for a worker that is dead. An hour by default; the demo will not wait for that.
    seconds = float(os.environ["VISIBILITY_TIMEOUT"])
    app.conf.broker_transport_options = {
        "visibility_timeout": seconds,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }

#: Here the bank and the mail server write down what really happened: one line for each charge, one for each mail.
BOOKS = Path(os.environ.get("SHOP_BOOKS", tempfile.gettempdir()))
MAIL_SECONDS = float(os.environ.get("MAIL_SECONDS", "1.5"))


def write_down(book: str, line: str) -> None:
    with (BOOKS / book).open("a") as file:
        file.write(line + "\n")


@app.task
def charge(order_id: str, amount: int) -> str:
    """Take the money. The bank keeps no list of what it has done before: each call is a charge."""
    payment_id = f"pay-{uuid4().hex[:6]}"
    write_down("charges.txt", f"{order_id} {amount} {payment_id}")
    return payment_id


@app.task
def send_confirmation(order_id: str, payment_id: str) -> None:
    """Send the mail. The mail server takes its time."""
    time.sleep(MAIL_SECONDS)
    write_down("mails.txt", f"{order_id} {payment_id}")


@app.task(acks_late=True, reject_on_worker_lost=True)
def plain_checkout(order_id: str, amount: int) -> str:
    """Do both in one task, as it is done without durability. Celery starts it over when its worker has died."""
    payment_id = charge(order_id, amount)
    send_confirmation(order_id, payment_id)
    return payment_id


# ------------------------------------------------------------------------------------------------ the one addition

from durable_celery import WorkflowContext, durable_task  # noqa: E402 - here, to show where the addition begins


@durable_task
def checkout(ctx: WorkflowContext, order_id: str, amount: int) -> str:
    payment_id = ctx.step(charge, order_id, amount)
    ctx.step(send_confirmation, order_id, payment_id)
    return payment_id
