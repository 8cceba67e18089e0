"""What happens to an order."""

from durable_celery import WaitTimeoutError, WorkflowContext, durable_task
from shop.tasks import charge, refund, send_mail, ship

TWO_DAYS = 2 * 86400


@durable_task
def checkout(ctx: WorkflowContext, order_id: str, amount: int) -> str:
    ctx.step(charge, order_id, amount)
    return ctx.step(ship, order_id)


@durable_task
def large_order(ctx: WorkflowContext, order_id: str, amount: int) -> str:
    """Somebody has to approve the order within two days; then it is a checkout like any other."""
    ctx.step(charge, order_id, amount)
    try:
        approved = ctx.wait_signal("approved", timeout=TWO_DAYS)
    except WaitTimeoutError:
        approved = False
    if not approved:
        ctx.step(refund, order_id)
        return "refunded"
    return ctx.step(ship, order_id)


@durable_task
def farewell(ctx: WorkflowContext, order_id: str) -> None:
    """Tell the customer, a week after the delivery, that we are still here."""
    ctx.sleep(7 * 86400)
    ctx.step(send_mail, order_id, "Are you happy with it?")
