"""An async workflow: plain asyncio, but durable.

`gather`, `TaskGroup`, `timeout` and `sleep` mean what they always mean. The difference: the loop's clock and order come
from the history, so a worker can die in the middle of `await asyncio.sleep(86400)`, and another one goes on after it.

    python examples/async_report.py
"""

import asyncio
import os
import time
from typing import Any

from celery import Celery

from durable_celery import AsyncWorkflowContext, durable_task

app = Celery("async_report", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))
app.conf.task_default_queue = "async_report"
app.conf.durable_store = os.environ.get("DURABLE_STORE_URL", "")


@app.task
def sales(region: str) -> int:
    return {"north": 120, "south": 80, "east": 45}[region]


@app.task
def slow_forecast(total: int) -> int:
    time.sleep(4)
    return total * 2


@app.task
def mail(to: str, text: str) -> str:
    return f"to {to}: {text}"


@durable_task
async def weekly_report(ctx: AsyncWorkflowContext, regions: list[str], readers: list[str]) -> dict[str, Any]:
    figures = await asyncio.gather(*(ctx.step(sales, region) for region in regions))
    total = sum(figures)

    try:
        async with asyncio.timeout(1.5):
            forecast = await ctx.step(slow_forecast, total)
    except TimeoutError:
        forecast = None

    await asyncio.sleep(0.5)  # could be a week

    async with asyncio.TaskGroup() as group:
        mails = [group.create_task(ctx.step(mail, reader, f"we sold {total}")) for reader in readers]
    return {"total": total, "forecast": forecast, "sent": [sent.result() for sent in mails]}


def main() -> None:
    from stage import Stage

    with Stage(app, "async_report") as stage:
        stage.start_worker()
        report = weekly_report.delay(["north", "south", "east"], ["maria", "tom"]).get(timeout=60)
        print("total    ", report["total"])
        print("forecast ", report["forecast"] or "left out: it took too long")
        for line in report["sent"]:
            print("sent     ", line)


if __name__ == "__main__":
    main()
