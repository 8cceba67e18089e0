"""Render: an outside service is asked now and then whether it is done, for as long as it takes.

The service takes a job and gives a number; nobody calls back. Between two questions no process waits. The job that
never ends is given up in time, and taken back.

    python examples/render.py
"""

import os

from celery import Celery

from durable_celery import WaitTimeoutError, WorkflowContext, current_step, durable_task

app = Celery("render", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))
app.conf.task_default_queue = "render"
app.conf.durable_store = os.environ.get("DURABLE_STORE_URL", "")

FRAMES = 60


@app.task
def submit(film: str) -> str:
    return f"job of {film}"


@app.task
def look(job: str) -> dict[str, object]:
    """Ask the service; this one is done at the third question, or never."""
    step = current_step()
    frames = step.step * 10 if step and "endless" not in job else 0
    return {"done": frames >= FRAMES, "frames": frames}


@app.task
def withdraw(job: str) -> str:
    return f"{job} withdrawn"


@durable_task
def render(ctx: WorkflowContext, film: str) -> str:
    job = ctx.step(submit, film)
    try:
        status = ctx.poll(look, job, every=0.3, until=lambda status: status["done"], timeout=2)
    except WaitTimeoutError:
        return ctx.step(withdraw, job)
    return f"{film} is done, {status['frames']} frames"


def main() -> None:
    from stage import Stage

    with Stage(app, "render") as stage:
        stage.start_worker()
        print(render.delay("sunrise").get(timeout=60))
        print(render.delay("endless").get(timeout=60))


if __name__ == "__main__":
    main()
