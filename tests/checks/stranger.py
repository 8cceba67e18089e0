"""An app that does not use this library, in an environment where it is installed."""

from __future__ import annotations

import os

from celery import Celery

app = Celery("stranger", broker=os.environ["STRANGER_BROKER"], set_as_current=False)
app.conf.update(broker_connection_retry_on_startup=True, task_ignore_result=True)
