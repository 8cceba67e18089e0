"""Approval: wait for a person, for as long as it takes, and no longer.

An expense report waits for a signal. Nobody's process waits with it: while the manager is on holiday there is an entry
in the store, and no worker holds anything. If no answer comes in time, the report goes to the next in line.

    python examples/approval.py

In your project, the person's answer comes from a web view, by the workflow's id:

    approve_expense.AsyncResult(workflow_id).signal("decision", {"by": "maria", "approved": True})
"""

import os
from datetime import timedelta

from celery import Celery

from durable_celery import WaitTimeoutError, WorkflowContext, durable_task

app = Celery("approval", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))
app.conf.task_default_queue = "approval"
app.conf.durable_store = os.environ.get("DURABLE_STORE_URL", "")

# Two days in real life; seconds here.
PATIENCE = timedelta(seconds=float(os.environ.get("APPROVAL_SECONDS", "3")))


@app.task
def ask(person: str, report: str) -> None:
    """Send the mail with the two buttons."""


@app.task
def pay_out(report: str, amount: int) -> str:
    return f"{amount} paid out for {report}"


@durable_task
def approve_expense(ctx: WorkflowContext, report: str, amount: int) -> str:
    for person in ("manager", "director"):
        ctx.step(ask, person, report)
        try:
            decision = ctx.wait_signal("decision", timeout=PATIENCE)
        except WaitTimeoutError:
            ctx.logger.info("the %s did not answer", person)
            continue
        if not decision["approved"]:
            return f"{report} was refused by {decision['by']}"
        return ctx.step(pay_out, report, amount)
    return f"{report} was left unanswered"


def main() -> None:
    from stage import Stage, wait_until

    with Stage(app, "approval") as stage:
        stage.start_worker()

        quick = approve_expense.delay("report-1", 120)
        wait_until(lambda: "decision" in quick.describe().waiting, "the first report to wait")
        print("report-1 waits for:", quick.describe().waiting)
        quick.signal("decision", {"by": "maria", "approved": True})
        print("maria approves:    ", quick.get(timeout=60))

        # A signal that comes before anybody waits for it is kept.
        early = approve_expense.apply_async(("report-2", 80), countdown=1)
        early.signal("decision", {"by": "maria", "approved": False})
        print("an early answer:   ", early.get(timeout=60))

        late = approve_expense.delay("report-3", 990)
        print("nobody answers:    ", late.get(timeout=60))


if __name__ == "__main__":
    main()
