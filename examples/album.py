"""Album: a canvas that exists becomes durable by one changed line, and is a step of a workflow with a time limit.

The chord shrinks some pictures and makes an album of them. It is run as a workflow of its own with `durable(...)`, then
as a step. One album is approved in time; the wait for the other one is given up.

    python examples/album.py
"""

import os

from celery import Celery, Signature, chord

from durable_celery import WaitTimeoutError, WorkflowContext, durable, durable_task

app = Celery("album", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))
app.conf.task_default_queue = "album"
app.conf.durable_store = os.environ.get("DURABLE_STORE_URL", "")


@app.task
def shrink(picture: str) -> str:
    return f"small {picture}"


@app.task
def bind(pictures: list[str], title: str) -> str:
    return f"{title}: {', '.join(pictures)}"


def album(title: str, pictures: list[str]) -> Signature:
    return chord([shrink.s(picture) for picture in pictures], bind.s(title))


@durable_task
def publish(ctx: WorkflowContext, title: str, pictures: list[str]) -> str:
    bound = ctx.step(album(title, pictures))
    try:
        with ctx.timeout(1):
            ctx.wait_signal("approved")
    except WaitTimeoutError:
        return f"{bound} (not published)"
    return f"{bound} (published)"


def main() -> None:
    from stage import Stage

    with Stage(app, "album") as stage:
        stage.start_worker()

        print(durable(album("Alps", ["peak", "lake", "hut"])).delay().get(timeout=60))

        approved = publish.delay("Rome", ["forum"])
        approved.signal("approved")
        print(approved.get(timeout=60))

        print(publish.delay("Oslo", ["opera", "fjord"]).get(timeout=60))


if __name__ == "__main__":
    main()
