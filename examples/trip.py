"""Trip: a saga over three services, undone in reverse order when one of them says no.

Each thing that is booked notes how it is undone. When the car rental has nothing left, the hotel and then the flight
are given back, and that also when the customer cancels in the middle. A compensation is tried until it is done: the
airline's first answer here is an error.

    python examples/trip.py
"""

import json
import os

from celery import Celery

from durable_celery import WorkflowContext, WorkflowHandle, current_step, durable_task

app = Celery("trip", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))
app.conf.task_default_queue = "trip"
app.conf.durable_store = os.environ.get("DURABLE_STORE_URL", "")


class NothingLeftError(Exception):
    pass


@app.task
def book(what: str, trip: str) -> str:
    if trip == "trip-2" and what == "car":
        raise NothingLeftError("no car is left")
    return f"{what} of {trip}"


@app.task
def give_back(booking: str) -> None:
    step = current_step()
    if booking.startswith("flight") and step and step.attempt == 1:
        raise ConnectionError("the airline does not answer")


@durable_task
def book_trip(ctx: WorkflowContext, trip: str) -> list[str]:
    booked = []
    with ctx.saga() as saga:
        for what in ("flight", "hotel", "car"):
            booking = ctx.step(book, what, trip)
            saga.compensate(give_back, booking)
            booked.append(booking)
        if trip == "trip-3":
            # The customer may still cancel.
            ctx.wait_signal("confirmed")
    return booked


def main() -> None:
    from stage import Stage, wait_until

    with Stage(app, "trip") as stage:
        stage.start_worker()

        print("trip-1:", ", ".join(book_trip.delay("trip-1").get(timeout=60)))

        failed = book_trip.delay("trip-2")
        print("trip-2:", failed.get(timeout=60, propagate=False))
        show(failed)

        cancelled = book_trip.delay("trip-3")
        wait_until(lambda: "confirmed" in cancelled.describe().waiting, "the trip to be booked")
        cancelled.cancel("the customer changed plans")
        wait_until(lambda: cancelled.state == "REVOKED", "everything to be given back")
        print("trip-3:", cancelled.state)
        show(cancelled)


def show(handle: WorkflowHandle) -> None:
    from durable_celery.events import StepCompleted, StepScheduled

    events = [item.event for item in handle.history()]
    done = {event.number: event.attempt for event in events if isinstance(event, StepCompleted)}
    for event in events:
        if isinstance(event, StepScheduled) and event.task.endswith("give_back"):
            [booking], _ = json.loads(event.payload)
            print(f"  gave back {booking}, attempt {done[event.number]}")


if __name__ == "__main__":
    main()
