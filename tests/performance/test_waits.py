"""The message of a run that goes on waiting ends without a state, and without a traceback that nobody reads."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery
from celery.app import trace
from celery.exceptions import Ignore

from durable_celery.waits import RunWaits, spare_tracebacks


def _traced(error: type[Exception]) -> Any:
    """Return what the tracer gives to the pool for a task that raises."""
    app = Celery("waits", set_as_current=False)

    def raises() -> None:
        raise error

    # Not shared: it would join every other app of this process.
    task: Any = app.task(raises, name="waits.raises", shared=False)
    return trace.build_tracer(task.name, task, app=app)("an-id", (), {}, {"id": "an-id"})


@pytest.fixture(autouse=True)
def _spared(monkeypatch: pytest.MonkeyPatch) -> None:
    # So that it is put back after the test.
    monkeypatch.setattr(trace, "ExceptionInfo", ExceptionInfo)
    spare_tracebacks()
    spare_tracebacks()


def test_a_waiting_run_is_ignored_and_sends_less_than_a_kilobyte_to_the_main_process() -> None:
    outcome = _traced(RunWaits)

    assert outcome.info.state == "IGNORED"
    arrived = pickle.loads(pickle.dumps(outcome.retval))  # noqa: S301 - as billiard does it
    assert isinstance(arrived.exception, RunWaits)
    assert isinstance(arrived, ExceptionInfo)
    assert len(pickle.dumps(outcome.retval)) < 1000


def test_a_task_that_ignores_itself_is_traced_as_ever() -> None:
    outcome = _traced(Ignore)

    assert outcome.info.state == "IGNORED"
    assert "in raises" in outcome.retval.traceback
