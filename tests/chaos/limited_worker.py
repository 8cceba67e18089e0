"""The app of `tests.flow_worker` on a quorum queue that gives up a message after its first redelivery."""

from __future__ import annotations

import os
from typing import Any

from kombu.entity import Queue

__all__ = ["app", "limit_deliveries"]


def limit_deliveries(app: Any) -> None:
    """Give an app such a queue in place of its default one."""
    name = app.conf.task_default_queue
    app.conf.task_queues = [
        Queue(name, routing_key=name, queue_arguments={"x-queue-type": "quorum", "x-delivery-limit": 1})
    ]


if "DURABLE_TEST_CONFIG" in os.environ:
    from tests.flow_worker import app

    limit_deliveries(app)
