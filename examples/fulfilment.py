"""Order fulfilment: many steps at once, then a race between the courier and the clock.

Every line of the order is picked at the same time, on as many workers as there are. A line that is out of stock does
not stop the others. Then whichever comes first decides: the courier's signal or the deadline.

    python examples/fulfilment.py
"""

import os

from celery import Celery

from durable_celery import RetryPolicy, WorkflowContext, durable_task

app = Celery("fulfilment", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))
app.conf.task_default_queue = "fulfilment"
app.conf.durable_store = os.environ.get("DURABLE_STORE_URL", "")

# A day in real life; seconds here.
DELIVERY_SECONDS = float(os.environ.get("DELIVERY_SECONDS", "3"))


class OutOfStockError(Exception):
    """The shelf is empty. Trying again does not fill it."""


@app.task
def pick(item: str, quantity: int) -> str:
    if item == "unicorn":
        raise OutOfStockError(item)
    return f"{quantity} x {item}"


@app.task
def ship(parcel: list[str]) -> str:
    return f"parcel of {len(parcel)}"


@app.task
def refund(items: list[str]) -> str:
    return f"refunded {', '.join(items)}"


@app.task
def apologise(order_id: str) -> str:
    return f"a voucher for {order_id}"


# Three tries for anything that may pass; none for what cannot.
PICKING = RetryPolicy(initial_interval=0.2, maximum_attempts=3, non_retryable=(OutOfStockError,))


@durable_task
def fulfil(ctx: WorkflowContext, order_id: str, lines: dict[str, int]) -> dict[str, object]:
    careful = ctx.options(retry=PICKING)
    picking = [careful.start(pick, item, quantity) for item, quantity in lines.items()]
    outcomes = ctx.gather(*picking, return_exceptions=True)

    picked = [outcome for outcome in outcomes if isinstance(outcome, str)]
    missing = [item for item, outcome in zip(lines, outcomes, strict=True) if isinstance(outcome, OutOfStockError)]
    refunding = ctx.start(refund, missing) if missing else None
    ctx.step(ship, picked)

    # The arm that loses is cancelled.
    first = ctx.race(delivered=ctx.signal("delivered"), late=ctx.timer(DELIVERY_SECONDS))
    voucher = ctx.step(apologise, order_id) if first.name == "late" else None
    return {
        "picked": picked,
        "refund": refunding.result() if refunding else None,
        "delivery": first.name,
        "voucher": voucher,
    }


def main() -> None:
    from stage import Stage, wait_until

    def show(order_id: str, result: dict[str, object]) -> None:
        print(order_id)
        for what, value in result.items():
            print(f"  {what:<9} {value}")

    with Stage(app, "fulfilment") as stage:
        stage.start_worker()

        on_time = fulfil.delay("order-1", {"lamp": 2, "unicorn": 1, "chair": 4, "table": 1})
        wait_until(lambda: "delivered" in on_time.describe().waiting, "the parcel to be on its way")
        on_time.signal("delivered")
        show("order-1", on_time.get(timeout=60))

        late = fulfil.delay("order-2", {"lamp": 1})
        show("order-2", late.get(timeout=60))


if __name__ == "__main__":
    main()
