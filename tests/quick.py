"""Lets steps run ahead of which a worker does not know yet how long they take."""

from __future__ import annotations

from typing import Any

from celery import Celery, signals

from durable_celery.app import binding_of


def take_all_for_quick(app: Celery) -> None:
    """Let each process of an app's workers begin as one that has executed all its tasks, in no time."""

    def learn(**_: Any) -> None:
        if (pace := binding_of(app).pace) is not None:
            for name in app.tasks:
                pace.note(name, 0.0)

    signals.worker_process_init.connect(learn, weak=False)
    # Pools whose workers are threads have no process of their own.
    signals.worker_ready.connect(learn, weak=False)
