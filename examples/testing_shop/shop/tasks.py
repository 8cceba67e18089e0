"""What the shop does. Each task may be executed again by its workflow, always under the same key."""

from celery import shared_task

from durable_celery import current_step
from shop import models

#: What the bank pays at most.
LIMIT = 10_000


class CardDeclinedError(Exception):
    """The bank says no. Asking again does not help."""


@shared_task(autoretry_for=(ConnectionError,), retry_backoff=False, default_retry_delay=30)
def charge(order_id: str, amount: int) -> str:
    if amount > LIMIT:
        raise CardDeclinedError(order_id)
    models.add_payment(_key(), order_id, amount)
    return f"pay-{order_id}"


@shared_task
def refund(order_id: str) -> None:
    models.refund(order_id)


@shared_task
def ship(order_id: str) -> str:
    models.add_parcel(_key(), order_id)
    return f"parcel-{order_id}"


@shared_task
def send_mail(order_id: str, text: str) -> None:
    # Nothing tells two mails apart: if a worker dies at the wrong moment, the customer gets two.
    models.add_mail(order_id, text)


def _key() -> str:
    step = current_step()
    if step is None:
        raise RuntimeError("this task is a step: a workflow calls it")
    return step.key
