"""A real worker on a real Redis, killed in the middle of an order."""

from shop import models
from shop.workflows import large_order

from durable_celery.testing.nodes import DurableWorker


def test_an_order_survives_a_killed_worker(durable_worker: DurableWorker) -> None:
    handle = large_order.delay("o-1", 9000)
    durable_worker.wait_for_run(handle, until="signal approved")

    durable_worker.kill()
    handle.signal("approved", True)
    durable_worker.restart()

    assert handle.get(timeout=60) == "parcel-o-1"
    assert [row[1:] for row in models.rows("payments")] == [("o-1", 9000, 0)]
