"""The environment in which a user's workflows are tested: the verbs of the ``durable`` fixture."""

from __future__ import annotations

import inspect
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, overload
from unittest.mock import call

from celery import _state

from durable_celery.errors import DurableError, InvalidRequestError
from durable_celery.handle import WorkflowHandle
from durable_celery.named_events import publish_event
from durable_celery.policy import seconds as in_seconds
from durable_celery.testing.stubs import read_steps
from durable_celery.testing.system import System, plain_app

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from unittest.mock import _Call

    from celery import Celery

    from durable_celery.task import DurableTask
    from durable_celery.testing.calls import Execution
    from durable_celery.workflow import Signal

__all__ = ["Environment"]

P = ParamSpec("P")
R = TypeVar("R")


class Environment:
    """Runs the workflows of one Celery app in this process: no server, no worker, no waiting.

    While it is open, messages of the app go to a list in memory and are executed here when a verb lets the system run.
    Time stands still, and moves when :meth:`skip` says so or when a verb waits for a run and nothing else can happen.
    Each turn replays the run's history from its start, so that code that is not deterministic is caught at once.

    It is a context manager; the ``durable`` fixture is one that is open. Its verbs are for test code, in one thread.
    """

    def __init__(self, app: Celery | None = None, *, now: datetime | None = None, cold: bool = True) -> None:
        """Set up an environment.

        Args:
            app: the app under test; default is the process's current app, or that of the first task that is run.
            now: where the clock begins, aware; default is the present.
            cold: replay from the start at each turn; without it a run goes on as in a worker that lives long.
        """
        self._now, self._cold = now, cold
        self._system: System | None = None
        self._is_certain = app is not None
        self._app = app
        self._is_open = False

    def __enter__(self) -> Self:
        self._is_open = True
        app = self._app or _current_app()
        if app is not None:
            self._bind(app)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_open = False
        if self._system is not None:
            self._system.close()

    # -- running -----------------------------------------------------------------------------------------------------

    @overload
    def run(self, task: DurableTask[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def run(self, task: DurableTask[..., R], /, *args: Any, steps: Mapping[Any, Any], **kwargs: Any) -> R: ...
    def run(self, task: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Run a workflow to its end and return its result. Time is skipped wherever it waits for time alone.

        Args:
            task: the durable task.
            *args: its arguments.
            **kwargs: its keyword arguments, and ``steps``: what tasks do instead of what they do, from now on; see
                :meth:`override`, which is also the way where the workflow has a parameter of this name.

        Raises:
            Exception: what the workflow raised, as :meth:`WorkflowHandle.get` raises it.
            NothingLeftError: it waits for something that will not happen, such as a signal.
            NonDeterminismError, SideEffectError: its code may not do what it does.
        """
        __tracebackhide__ = True
        handle = self.start(task, *args, **kwargs)
        try:
            return handle.get()
        except Exception as error:
            # The way through the library says nothing to the reader of a test; the remote traceback is the cause.
            error.__traceback__ = None
            raise

    @overload
    def start(self, task: DurableTask[P, R], /, *args: P.args, **kwargs: P.kwargs) -> WorkflowHandle[R]: ...
    @overload
    def start(
        self, task: DurableTask[..., R], /, *args: Any, steps: Mapping[Any, Any], **kwargs: Any
    ) -> WorkflowHandle[R]: ...
    def start(self, task: Any, /, *args: Any, **kwargs: Any) -> WorkflowHandle[Any]:
        """Start a workflow, let everything happen that needs no time to pass, and return its handle.

        The handle is the one that ``task.delay()`` returns, and its ``get()`` lets the system run. For a ``task_id`` or
        a ``countdown`` use ``task.apply_async`` itself.
        """
        __tracebackhide__ = True
        system = self._system_of(task)
        if not getattr(task, "is_durable", False):
            raise InvalidRequestError(f"{task.name} is no durable task: start it with {task.name}.delay(...)")
        if "steps" in kwargs and "steps" not in inspect.signature(task.definition.function).parameters:
            self.override(kwargs.pop("steps"))
        handle: WorkflowHandle[Any] = task.apply_async(args, kwargs)
        system.settle()
        return handle

    def settle(self) -> None:
        """Let everything happen that needs no time to pass."""
        __tracebackhide__ = True
        self._bound.settle()

    def skip(self, duration: timedelta | float | None = None, **units: float) -> None:
        """Let time pass, and everything happen that falls due, each thing at its own time.

        Args:
            duration: seconds, or a timedelta.
            **units: instead of it, as ``timedelta`` takes them: ``skip(hours=1)``.
        """
        __tracebackhide__ = True
        if (duration is None) is (not units):
            raise InvalidRequestError("skip takes seconds, a timedelta, or units such as hours=1")
        self._bound.run_until(lambda: False, in_seconds(timedelta(**units) if duration is None else duration))

    def freeze(self, instant: datetime) -> None:
        """Set the clock; also back, as long as nothing was started. Nothing happens by that.

        Args:
            instant: an aware datetime.
        """
        if instant.utcoffset() is None:
            raise InvalidRequestError(f"{instant!r} names no instant: give it a time zone")
        self._now, system = instant, self._system
        if system is None:
            return
        if instant < system.now and system.store.run_table:
            raise InvalidRequestError(f"the clock stands at {system.now}, and runs were started: it cannot go back")
        system.clock.now = round(instant.timestamp() * 1000)

    @property
    def now(self) -> datetime:
        """The time of the test; aware, UTC."""
        return self._system.now if self._system else self._now or datetime.now(UTC)

    def signal(self, run: WorkflowHandle[Any] | str, name: Signal[Any] | str, value: object = None) -> None:
        """Send a signal (a ``Signal`` or its name) to a run (its handle or id), and let happen what follows at once."""
        self._bound.binding.client.signal(_id_of(run), name, value)
        self.settle()

    def cancel(self, run: WorkflowHandle[Any] | str, reason: str = "") -> None:
        """Cancel a run, and let happen what follows at once."""
        self._bound.binding.client.cancel(_id_of(run), reason)
        self.settle()

    def publish_event(self, name: str, value: object = None) -> bool:
        """Publish a named event, and let happen what follows at once; see :func:`durable_celery.publish_event`."""
        is_new = publish_event(name, value, app=self._bound.binding.app)
        self.settle()
        return is_new

    def complete_step(self, token: str, result: object = None) -> None:
        """Give the result of a step that leaves its outcome to others, and let happen what follows at once.

        Args:
            token: its key: ``current_step().key``, or ``durable.executed(task)[0].key``.
            result: what it returns to its workflow.
        """
        self._bound.binding.client.complete_step(token, result)
        self.settle()

    def fail_step(self, token: str, error: BaseException | str) -> None:
        """Let a step fail that leaves its outcome to others, and let happen what follows at once."""
        self._bound.binding.client.fail_step(token, error)
        self.settle()

    # -- in the place of tasks ---------------------------------------------------------------------------------------

    def override(self, steps: Mapping[Any, Any]) -> None:
        """Say what tasks do in this test instead of what they do, from now on.

        Args:
            steps: from a task (or its name) to a value that it returns, a function that is called in its place, or a
                script: ``fails(2).then("ok")``, ``raises(error)``, ``returns(value)``. A durable task stands for the
                child runs that it makes. A task that another service has is named with ``remote(name)``.

        Raises:
            InvalidRequestError: there is no such task, or the function does not take its arguments.
        """
        for task in steps:
            if hasattr(task, "app") and self._system is None:
                self._system_of(task)
        self._bound.calls.override(read_steps(steps, self._bound.binding.app.tasks))

    # -- looking -----------------------------------------------------------------------------------------------------

    def history(self, run: WorkflowHandle[Any] | str) -> str:
        """Return a run's history as people read it; for the events themselves there is ``handle.history()``."""
        return self._bound.story(_id_of(run))

    def executed(self, task: Any) -> list[Execution]:
        """Return each time that a task (or its name) was executed, with key, attempt, result and error."""
        name = task if isinstance(task, str) else task.name
        return [one for one in self._bound.calls.log if one.task == name]

    def calls(self, task: Any) -> list[_Call]:
        """Return with what a task (or its name) was executed: ``[unittest.mock.call("o-1", 1200)]``."""
        return [call(*one.args, **one.kwargs) for one in self.executed(task)]

    @property
    def executions(self) -> Counter[str]:
        """How often each task was executed, by name."""
        return Counter(one.task for one in self._bound.calls.log)

    # -- the app -----------------------------------------------------------------------------------------------------

    @property
    def system(self) -> System:
        """The parts below: clock, store, broker and engine."""
        return self._bound

    @property
    def _bound(self) -> System:
        if not self._is_open:
            raise DurableError("this environment is closed")
        if self._system is None:
            raise DurableError(
                "this environment has no app yet: run a workflow first, or name the app (the fixture durable_app, the "
                "setting durable_app of pytest, or Environment(app))"
            )
        return self._system

    def _system_of(self, task: Any) -> System:
        """Return the system, bound to the app of this task."""
        if not self._is_open:
            raise DurableError("this environment is closed: use it in a with statement, or the durable fixture")
        app = plain_app(task)
        system = self._system
        if system is not None and system.binding.app is not app:
            if self._is_certain or system.store.run_table or system.calls.log:
                raise DurableError(
                    f"{task.name} belongs to {app!r}, this environment to {system.binding.app!r}: tell it which app is "
                    "under test (the fixture durable_app, the setting durable_app of pytest, or Environment(app))"
                )
            # The process's current app was only a guess.
            system.close()
            system = None
        if system is None:
            system = self._bind(app)
        return system

    def _bind(self, app: Celery) -> System:
        self._system = System(app, now=self._now, cold=self._cold)
        return self._system


def _current_app() -> Celery | None:
    """Return the app that the process has made its current one, without making one."""
    app: Celery | None = getattr(_state._tls, "current_app", None) or _state.default_app  # noqa: SLF001 - asks without making one
    return None if app is None or app.main == "default" else app


def _id_of(run: WorkflowHandle[Any] | str) -> str:
    return run if isinstance(run, str) else str(run.id)
