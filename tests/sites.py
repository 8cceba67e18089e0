"""A site: a broker, a store, a directory, and the workers of one app on them; what survival is proved on.

Plain classes without pytest. A site ends only the workers that it started.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import redis
from celery import Celery

from durable_celery import WorkflowHandle
from durable_celery.app import binding_of
from durable_celery.events import StepCompleted, StepFailed, StepScheduled
from durable_celery.store.protocol import RunRecord, RunStatus
from tests.waiting import wait_until
from tests.workers import CeleryWorker

#: Carries the app's configuration to a worker, as JSON.
CONFIG_VARIABLE = "DURABLE_TEST_CONFIG"
#: Lines of each worker's log that a failing test shows.
LOG_TAIL = 60


class Site:
    """One app on one broker and one store.

    Args:
        directory: Where tasks leave their lines and workers their logs.
        broker: URL of the broker.
        store: URL of the store.
        settings: More Celery settings, such as those that keep this site apart on a shared broker.
    """

    def __init__(self, directory: Path, *, broker: str, store: str, **settings: Any) -> None:
        self.directory = directory
        self.config: dict[str, Any] = {
            "broker_url": broker,
            "durable_store": store,
            "broker_connection_retry_on_startup": True,
            **settings,
        }
        self.workers: list[CeleryWorker] = []
        directory.mkdir(parents=True, exist_ok=True)

    @cached_property
    def app(self) -> Celery:
        """The app as a client sees it."""
        from tests.flows import make_app

        return make_app(self.config)

    @property
    def queue(self) -> str:
        """The queue that all messages go through."""
        return str(self.app.conf.task_default_queue)

    def worker(
        self, *, app: str = "tests.flow_worker", wait: bool = True, prefix: Iterable[str] = (), **options: Any
    ) -> CeleryWorker:
        """Start a worker; takes the keyword arguments of `CeleryWorker`. A prefix is a command that runs it."""
        env = {CONFIG_VARIABLE: json.dumps(self.config), **options.pop("env", {})}
        worker = CeleryWorker(app, self.directory, env=env, **options)
        worker.command[:0] = prefix
        self.workers.append(worker)
        return worker.start(wait=wait)

    def start(self, workflow: str, *args: Any, task_id: str | None = None, **options: Any) -> WorkflowHandle[Any]:
        """Start a run."""
        handle: WorkflowHandle[Any] = self.app.tasks[workflow].apply_async(args, task_id=task_id, **options)
        return handle

    def describe(self, workflow_id: str) -> RunRecord:
        """Return a run's record with its open steps."""
        return binding_of(self.app).client.describe(workflow_id)

    def owner_ends_in(self, owner: str) -> float:
        """Return for how many more seconds a process is known to live; -infinity for one that the store forgot.

        Args:
            owner: `<process>` or `<process>#<call>`, as records have it.
        """
        client: Any = redis.Redis.from_url(self.config["durable_store"])
        with client:
            end = client.zscore("durable:{0}:owners", owner.partition("#")[0])
            seconds, micros = client.time()
        return float("-inf") if end is None else float(end) / 1000 - seconds - micros / 1e6

    # -- what tasks left ---------------------------------------------------------------------------------------------

    def notes(self, name: str) -> list[tuple[str, int, int]]:
        """Return the lines of a file as (idempotency key, attempt, pid)."""
        path = self.directory / name
        lines = path.read_text().splitlines() if path.exists() else []
        return [(key, int(attempt), int(pid)) for key, attempt, pid in map(str.split, lines)]

    def wait_for_notes(self, name: str, count: int, timeout: float = 40.0) -> list[tuple[str, int, int]]:
        """Wait until a file has so many lines, and return them."""
        wait_until(lambda: len(self.notes(name)) >= count, timeout, lambda: f"{count} x {name}{self.story()}")
        return self.notes(name)

    def release(self, name: str) -> None:
        """Let all tasks that hold under a name go on."""
        (self.directory / f"{name}.release").touch()

    # -- the end of runs ---------------------------------------------------------------------------------------------

    def wait_all(
        self, handles: Iterable[WorkflowHandle[Any]], timeout: float, tend: Callable[[], object] = lambda: None
    ) -> None:
        """Wait until all runs have completed; ``tend`` is called all the while, as a supervisor would be."""
        waiting = {str(handle.id) for handle in handles}

        def are_done() -> bool:
            tend()
            # The set shrinks, so that each look costs what is still open.
            waiting.difference_update([name for name in waiting if self.describe(name).status.is_closed])
            return not waiting

        wait_until(are_done, timeout, lambda: f"{len(waiting)} runs to end{self.story(*sorted(waiting)[:5])}")

    def supervise(self) -> int:
        """Start again the workers that ended by themselves; return how many."""
        dead = [worker for worker in self.workers if not worker.is_running]
        for worker in dead:
            worker.kill()
            worker.start(wait=False)
        return len(dead)

    def story(self, *workflow_ids: str) -> str:
        """Return the records of some runs and the tails of all logs, for the message of a failing wait."""
        lines = [repr(self.describe(name)) for name in workflow_ids]
        for worker in self.workers:
            lines += [f"--- log of {worker.name}", *worker.log.splitlines()[-LOG_TAIL:]]
        return "\n".join(["", *lines])

    def close(self) -> None:
        """End the workers, without grace: a warm shutdown that meets a new message may take Celery long."""
        for worker in self.workers:
            worker.kill()
        print(self.story())  # noqa: T201 - captured by pytest: seen only when the test fails

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def check_history(handle: WorkflowHandle[Any]) -> None:
    """Assert what no crash may break: the run completed, and each step has one outcome."""
    events = [item.event for item in handle.history()]
    assert handle.describe().status is RunStatus.COMPLETED, (handle.id, events[-1])
    scheduled = [event.number for event in events if isinstance(event, StepScheduled)]
    outcomes = [event.number for event in events if isinstance(event, StepCompleted | StepFailed)]
    assert sorted(outcomes) == sorted(set(outcomes)) == sorted(scheduled), (handle.id, outcomes, scheduled)
    assert len(scheduled) == len(set(scheduled))


def repeats(notes: Iterable[tuple[str, int, int]]) -> dict[str, int]:
    """Return how often each idempotency key ran, where it was more than once."""
    return {key: count for key, count in Counter(key for key, _, _ in notes).items() if count > 1}
