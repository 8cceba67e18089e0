"""A small app whose unsafe settings come from the environment, as JSON."""

from __future__ import annotations

import json
import os

from celery import Celery

from durable_celery import WorkflowContext, durable_task

app = Celery("plain", broker=os.environ["PLAIN_BROKER"], set_as_current=False)
app.conf.update(broker_connection_retry_on_startup=True, task_ignore_result=True)
app.conf.update(json.loads(os.environ.get("PLAIN_SETTINGS", "{}")))


@durable_task(app=app, name="plain.nap")
def nap(ctx: WorkflowContext, *naps: float) -> None:
    for seconds in naps:
        ctx.sleep(seconds)
