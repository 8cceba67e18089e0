"""An upgrade while orders are on their way, done wrong, and done right.

Release 1 reserves the goods, then charges the card. Release 2 swaps the two. An engine that just counted its steps
would take the reservation of an order on its way for a payment. Here the run is parked as BLOCKED, with both sides
shown, nothing repeated and nothing failed; after the fixed deploy it goes on by itself. The fix is `ctx.patched`: new
orders take the new way, those that had begun keep the old one.

Release 3 is written anew. It is version 2 of the workflow, with workers and a queue of its own: the orders of version 1
end where they are, and then their workers can go.

    python examples/upgrade.py
"""

import os

from celery import Celery
from celery.exceptions import TimeoutError as CeleryTimeoutError

from durable_celery import WorkflowContext, durable_task

app = Celery("upgrade", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))
app.conf.task_default_queue = "upgrade"
app.conf.durable_store = os.environ.get("DURABLE_STORE_URL", "")


@app.task
def reserve(order_id: str) -> str:
    return f"shelf-{order_id}"


@app.task
def charge(order_id: str) -> str:
    return f"pay-{order_id}"


@app.task
def ship(order_id: str) -> str:
    return f"parcel-{order_id}"


# Three releases of one workflow. In your project they are three commits of the same lines.


def release_1(ctx: WorkflowContext, order_id: str) -> list[str]:
    first = ctx.step(reserve, order_id)
    second = ctx.step(charge, order_id)
    ctx.wait_signal("packed")
    return [first, second, ctx.step(ship, order_id)]


def release_2_careless(ctx: WorkflowContext, order_id: str) -> list[str]:
    first = ctx.step(charge, order_id)
    second = ctx.step(reserve, order_id)
    ctx.wait_signal("packed")
    return [first, second, ctx.step(ship, order_id)]


def release_2_patched(ctx: WorkflowContext, order_id: str) -> list[str]:
    if ctx.patched("charge-first"):
        first = ctx.step(charge, order_id)
        second = ctx.step(reserve, order_id)
    else:
        first = ctx.step(reserve, order_id)
        second = ctx.step(charge, order_id)
    ctx.wait_signal("packed")
    return [first, second, ctx.step(ship, order_id)]


def release_3(ctx: WorkflowContext, order_id: str) -> list[str]:
    payment, shelf = ctx.gather(ctx.start(charge, order_id), ctx.start(reserve, order_id))
    return [payment, shelf, ctx.step(ship, order_id), "by version 2"]


RELEASES = {"1": release_1, "2-careless": release_2_careless, "2-patched": release_2_patched}
RELEASE = os.environ.get("RELEASE", "")
# The shop that takes the orders knows both versions; each worker has one of them. Steps go to the default queue.
if RELEASE != "3":
    order = durable_task(name="upgrade.order", queue="upgrade-v1")(RELEASES[RELEASE or "1"])
if RELEASE in {"", "3"}:
    order_2 = durable_task(name="upgrade.order", version=2, queue="upgrade-v2")(release_3)
V1, V2 = "upgrade,upgrade-v1", "upgrade,upgrade-v2"


def main() -> None:
    from stage import Stage, wait_until

    with Stage(app, "upgrade") as stage:
        print("release 1 is deployed, an order comes in")
        worker = stage.start_worker("release-1", queues=V1, RELEASE="1")
        on_its_way = order.delay("old")
        wait_until(lambda: "packed" in on_its_way.describe().waiting, "the order to wait")
        worker.stop()

        print("release 2 swaps two steps, carelessly; the order goes on")
        worker = stage.start_worker("release-2", queues=V1, RELEASE="2-careless")
        on_its_way.signal("packed")
        wait_until(lambda: on_its_way.state == "BLOCKED", "the run to be parked")
        print(f"\nthe order is {on_its_way.state}:\n{on_its_way.describe().reason}\n")
        try:
            on_its_way.get(timeout=0.5)
        except CeleryTimeoutError as error:
            print(f"who waits for it is told:\n{error}\n")
        worker.stop()

        print("the fixed release 2 is deployed")
        worker = stage.start_worker("release-2-patched", queues=V1, RELEASE="2-patched")
        print("the old order goes on:   ", on_its_way.get(timeout=60))
        new = order.delay("new")
        new.signal("packed")
        print("a new order, the new way:", new.get(timeout=60))

        print("\nrelease 3 is version 2 of the workflow, on workers of its own; an order is on its way")
        last = order.delay("last")
        wait_until(lambda: "packed" in last.describe().waiting, "the order to wait")
        stage.start_worker("release-3", queues=V2, RELEASE="3")
        print("a new order:             ", order_2.delay("first").get(timeout=60))
        last.signal("packed")
        print("the last order of before:", last.get(timeout=60))
        worker.stop()
        print("the worker of version 1 had nothing left to do, and is gone")


if __name__ == "__main__":
    main()
