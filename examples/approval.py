"""Approval: wait for a person, for as long as it takes, and no longer.

An expense report waits for a decision: a signal with a type, which is checked where it is sent. Nobody's process waits
with it: while the manager is on holiday there is an entry in the store, and no worker holds anything. Who does not
answer is reminded; who does not answer then is passed over, and the report goes to the next in line.

    python examples/approval.py

In your project, the person's answer comes from a web view, by the workflow's id:

    approve_expense.AsyncResult(workflow_id).signal(decision, Decision(by="maria", approved=True))
"""

import os
from dataclasses import dataclass
from datetime import timedelta

from celery import Celery

from durable_celery import Signal, WorkflowContext, durable_task

app = Celery("approval", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))
app.conf.task_default_queue = "approval"
app.conf.durable_store = os.environ.get("DURABLE_STORE_URL", "")

# Two days in real life; seconds here.
PATIENCE = timedelta(seconds=float(os.environ.get("APPROVAL_SECONDS", "3")))
REMINDERS = 1


@dataclass(frozen=True)
class Decision:
    by: str
    approved: bool
    why: str = ""


decision = Signal("decision", Decision)


@app.task
def ask(person: str, report: str) -> None:
    """Send the mail with the two buttons."""


@app.task
def remind(person: str, report: str, number: int) -> None:
    """Send it again, with an apology."""


@app.task
def pay_out(report: str, amount: int) -> str:
    return f"{amount} paid out for {report}"


@durable_task(signals=[decision])
def approve_expense(ctx: WorkflowContext, report: str, amount: int) -> str:
    for person in ("manager", "director"):
        ctx.step(ask, person, report)
        for reminders in range(REMINDERS + 1):
            if reminders:
                ctx.step(remind, person, report, reminders)
            match ctx.race(answer=ctx.signal(decision), silence=ctx.timer(PATIENCE)):
                case ("answer", Decision(approved=True)):
                    return ctx.step(pay_out, report, amount)
                case ("answer", refusal):
                    return f"{report} was refused by {refusal.by}: {refusal.why}"
    return f"{report} was left unanswered"


def main() -> None:
    from stage import Stage, wait_until

    from durable_celery.errors import PayloadError
    from durable_celery.events import StepScheduled

    with Stage(app, "approval") as stage:
        stage.start_worker()

        quick = approve_expense.delay("report-1", 120)
        wait_until(lambda: "decision" in quick.describe().waiting, "the first report to wait")
        print("report-1 waits for:", quick.describe().waiting)
        try:
            quick.signal("decision", {"by": "maria", "approved": "yes"})
        except PayloadError as error:
            print("a slip is refused: ", error)
        quick.signal(decision, Decision(by="maria", approved=True))
        print("maria approves:    ", quick.get(timeout=60))

        # A signal that comes before anybody waits for it is kept.
        early = approve_expense.apply_async(("report-2", 80), countdown=1)
        early.signal(decision, Decision(by="maria", approved=False, why="no receipt"))
        print("an early answer:   ", early.get(timeout=60))

        late = approve_expense.delay("report-3", 990)
        print("nobody answers:    ", late.get(timeout=60))
        steps = [item.event.task for item in late.history() if isinstance(item.event, StepScheduled)]
        print("what was tried:    ", ", ".join(name.rpartition(".")[2] for name in steps))


if __name__ == "__main__":
    main()
