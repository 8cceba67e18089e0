"""Workflows on pytest-celery's own setup: process nodes here, containers where `DURABLE_TEST_CONTAINERS` is set."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from pytest_celery import CeleryTestSetup

from durable_celery import WorkflowHandle
from durable_celery.events import StepCompleted, StepScheduled
from durable_celery.store.protocol import StepState
from tests.integration import orders
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

END = 40.0


@pytest.fixture
def default_worker_tasks(default_worker_tasks: set[ModuleType]) -> set[ModuleType]:
    return {*default_worker_tasks, orders}


def start(setup: CeleryTestSetup, workflow: Any, *args: Any) -> WorkflowHandle[Any]:
    handle: WorkflowHandle[Any] = setup.app.tasks[workflow.name].apply_async(args)
    return handle


def test_a_workflow_of_several_steps_completes(celery_setup: CeleryTestSetup) -> None:
    handle = start(celery_setup, orders.checkout, "o-1", 1200)

    assert handle.get(timeout=END) == "o-1: payment of 1200 for o-1"
    # The result backend has it as well, for those who know nothing of durable_celery.
    assert celery_setup.app.AsyncResult(handle.id).get(timeout=END) == "o-1: payment of 1200 for o-1"


def test_a_worker_killed_in_mid_step_comes_back_and_each_outcome_is_recorded_once(
    celery_setup: CeleryTestSetup,
) -> None:
    handle = start(celery_setup, orders.delivery, "o-2")
    wait_until(lambda: [(step.number, step.state) for step in handle.describe().steps] == [(2, StepState.CLAIMED)], END)

    worker: Any = celery_setup.worker
    worker.kill()
    assert worker.container.status == "exited"
    worker.restart()

    assert handle.get(timeout=END) == ["payment of 1 for o-2", 2, "o-2: shipped"]
    events = [item.event for item in handle.history()]
    assert [event.number for event in events if isinstance(event, StepScheduled)] == [1, 2, 3]
    assert [event.number for event in events if isinstance(event, StepCompleted)] == [1, 2, 3]


def test_a_workflow_sleeps_and_waits_for_a_signal(celery_setup: CeleryTestSetup) -> None:
    handle = start(celery_setup, orders.approval, "o-3")

    # Before the workflow waits for it: it is kept.
    handle.signal("approve", "by Ada")

    text, slept = handle.get(timeout=END)
    assert text == "o-3: by Ada"
    assert slept >= 0.5
