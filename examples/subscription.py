"""Subscription: a workflow that lives for years, with a history that stays short.

Each month is a run of its own. When the month is over the workflow continues as new: the next run has the same id and
an empty history, so the tenth year costs what the first month did. A card that is declined is tried again for some
days. Customers change their plan, pause and leave with signals, which are kept from one month to the next.

    python examples/subscription.py
"""

import os
from datetime import datetime, timedelta
from typing import Any

from celery import Celery

from durable_celery import RetryPolicy, WaitTimeoutError, WorkflowContext, durable_task

app = Celery("subscription", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))
app.conf.task_default_queue = "subscription"
app.conf.durable_store = os.environ.get("DURABLE_STORE_URL", "")

# Thirty days in real life; seconds here.
MONTH = timedelta(seconds=float(os.environ.get("MONTH_SECONDS", "3")))
PRICES = {"basic": 5, "pro": 12}
#: A declined card is tried again after a day, then after two more, and so on.
DUNNING = RetryPolicy(initial_interval=MONTH.total_seconds() / 30, maximum_attempts=4)


class CardDeclinedError(Exception):
    """The bank said no."""


@app.task
def charge(customer: str, amount: int, month: int) -> int:  # noqa: ARG001 - for the payment provider
    """Ask the payment provider; customer and month make a repeated call one payment."""
    return amount


@app.task
def mail(customer: str, words: str) -> None:
    """Send a mail."""


@durable_task
def subscription(
    ctx: WorkflowContext,
    customer: str,
    plan: str,
    *,
    since: datetime | None = None,
    month: int = 1,
    paid: int = 0,
    is_paused: bool = False,
) -> str:
    """Live through one month, and continue as new."""
    since = since or ctx.now()
    if not is_paused:
        try:
            paid += ctx.options(retry=DUNNING).step(charge, customer, PRICES[plan], month)
        except CardDeclinedError:
            ctx.step(mail, customer, "Your card was declined, and your subscription is paused")
            is_paused = True
    # Counted from the first day, so that what a month takes too long is not added up.
    while change := next_change(ctx, until=since + month * MONTH):
        match change:
            case {"plan": better} if PRICES[better] > PRICES[plan] and not is_paused:
                paid += ctx.step(charge, customer, PRICES[better] - PRICES[plan], month)
                plan = better
            case {"plan": other}:
                plan = other
            case {"paused": bool(wanted)}:
                is_paused = wanted
            case {"leave": True}:
                return f"{customer} leaves {plan} in month {month} and has paid {paid}"
    return ctx.continue_as_new(customer, plan, since=since, month=month + 1, paid=paid, is_paused=is_paused)


def next_change(ctx: WorkflowContext, until: datetime) -> dict[str, Any] | None:
    """Wait for what the customer wants changed, up to the end of the month."""
    try:
        return ctx.wait_signal("change", timeout=max(until - ctx.now(), timedelta()))
    except WaitTimeoutError:
        return None


def main() -> None:
    from stage import Stage, wait_until

    with Stage(app, "subscription") as stage:
        stage.start_worker()

        ann = subscription.delay("ann", "basic")
        wait_until(lambda: ann.describe().run > 2, "two months to pass")  # noqa: PLR2004 - the third run is the third month
        print("after two months:  run", ann.describe().run)
        ann.signal("change", {"plan": "pro"})
        ann.signal("change", {"paused": True})
        wait_until(lambda: ann.describe().run > 4, "two more months to pass")  # noqa: PLR2004 - the same
        ann.signal("change", {"leave": True})
        print("at the end:       ", ann.get(timeout=60))
        print("runs, events each:", [len(ann.history(run)) for run in (1, 2, 3, 4, 5)])


if __name__ == "__main__":
    main()
