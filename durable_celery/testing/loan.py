"""A user's Celery app, borrowed for a test: no broker, no result store, its tasks ready to be executed here.

What is changed on the app and on its tasks is changed on these objects, and put back when the loan ends, in whatever
state a worker or another test had left them. The tasks themselves run in Celery's own tracer, with its signals, its
retries and the wrapping that they have in a worker.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from celery import _state
from celery.app import trace
from celery.app.task import Task as BaseTask
from celery.result import denied_join_result

from durable_celery.app import bound
from durable_celery.errors import UnknownTaskError
from durable_celery.steps import wrap_task
from durable_celery.testing.broker import LocalPool
from durable_celery.waits import spare_tracebacks

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from celery import Celery

    from durable_celery.app import Binding
    from durable_celery.testing.broker import Broker, Message
    from durable_celery.testing.calls import Calls

__all__ = ["Loan"]

_MISSING = object()
#: Apps whose task modules were imported already, as a worker does once.
_loaded: WeakSet[Any] = WeakSet()


class Loan:
    """One app, changed for as long as :meth:`end` is not called."""

    def __init__(
        self,
        binding: Binding,
        *,
        backend: Any,
        calls: Calls,
        now: Callable[[], datetime],
    ) -> None:
        """Borrow the app of a binding.

        Args:
            binding: what the app is bound to meanwhile.
            backend: keeps the results of tasks, where the app keeps any.
            calls: stands between each message and the function of its task.
            now: the test's clock.
        """
        self.app, self.binding, self._calls = binding.app, binding, calls
        self._now, self._backend = now, backend
        self._back = ExitStack()
        self._tracers: dict[str, Any] = {}
        self.broker: Broker

    def begin(self, broker: Broker) -> None:
        """Change the app, and import its tasks as a worker does."""
        self.broker = broker
        app, pool = self.app, LocalPool(broker.producer)
        _load(app)
        self._back.enter_context(bound(self.binding))
        # Shared tasks belong to the current app; a worker makes its own app that.
        self._set(_state._tls, "current_app", app)  # noqa: SLF001 - to be put back, which Celery has no way for
        self._set(app, "_pool", pool.connections)
        self._set(app.amqp, "_producer_pool", pool.producers)
        self._set(app, "now", lambda: self._now().astimezone(app.timezone))
        if app.conf.result_backend:
            self._set(app, "_backend_cache", self._backend)
        self._set_setting("task_always_eager", value=False)
        self._protect_stack()

    def end(self) -> None:
        """Put everything back."""
        self._tracers.clear()
        self._back.close()

    def execute(self, message: Message) -> None:
        """Do what a worker process does with a message.

        Raises:
            UnknownTaskError: the app has no such task.
        """
        task: Any = self.app.tasks.get(message.task)
        if task is None and message.task in self._calls.scripts:
            task = self._invent(message.task)
        if task is None:
            raise UnknownTaskError(
                f"{message.task!r} was called, which this app does not have. Import its module before, or, if another "
                f"service has it, say what it does: steps={{remote({message.task!r}): ...}}"
            )
        request = message.request(self.app.conf.accept_content)
        tracer = self._tracers.get(message.task) or self._prepare(task)
        with denied_join_result():
            tracer(message.id, request["args"], request["kwargs"], request)

    def _prepare(self, task: Any) -> Any:
        """Return the tracer of a task, which is wrapped as in a worker when it is executed for the first time."""
        if not (getattr(task, "is_durable", False) or task.name.startswith("celery.")):
            self._unwrap(task)
            # Celery's own retries stand around what the test puts in the place of the function.
            place = "_orig_run" if "_orig_run" in vars(task) else "run"
            plain = getattr(task, place)

            @functools.wraps(plain)
            def perform(*args: Any, **kwargs: Any) -> Any:
                return self._calls.perform(task.name, plain, args, kwargs)

            self._set(task, place, perform)
            wrap_task(task, self.binding)
        tracer = self._tracers[task.name] = trace.build_tracer(task.name, task, app=self.app)
        return tracer

    def _invent(self, name: str) -> Any:
        """Make a task that another service has, and that the test stands in for."""

        def elsewhere(*_: Any, **__: Any) -> Any:
            raise UnknownTaskError(
                f"another service has {name!r}; say what it does in this test each time it is called"
            )

        self._back.callback(self.app.tasks.pop, name, None)
        return self.app.task(elsewhere, name=name, shared=False)

    def _unwrap(self, task: Any) -> None:
        """Take off what a worker in this process put around a task, and remember how it was."""
        for name in ("run", "signature_from_request", "replace"):
            before = vars(task).get(name, _MISSING)
            self._back.callback(_restore, task, name, before)
        wrapped = vars(task).get("run")
        if hasattr(wrapped, "durable_plain"):
            task.run = wrapped.durable_plain
            del task.signature_from_request, task.replace

    def _set(self, owner: Any, name: str, value: Any) -> None:
        self._back.callback(_restore, owner, name, vars(owner).get(name, _MISSING))
        setattr(owner, name, value)

    def _set_setting(self, name: str, *, value: Any) -> None:
        conf: Any = self.app.conf
        changes: dict[str, Any] = conf.changes
        before = changes.get(name, _MISSING)
        self._back.callback(lambda: changes.pop(name, None) if before is _MISSING else changes.update({name: before}))
        changes[name] = value

    def _protect_stack(self) -> None:
        """Let base classes with their own ``__call__`` work as in a worker, where Celery guards the request's stack."""
        if not getattr(BaseTask, "_stackprotected", False):
            app: Any = self.app
            fast = app.use_fast_trace_task
            trace._install_stack_protection()  # noqa: SLF001 - a worker does it at its start
            self._back.callback(setattr, app, "use_fast_trace_task", fast)
            self._back.callback(trace.reset_worker_optimizations, app)
        self._back.callback(setattr, trace, "ExceptionInfo", trace.ExceptionInfo)
        spare_tracebacks()


def _restore(owner: Any, name: str, before: Any) -> None:
    if before is not _MISSING:
        setattr(owner, name, before)
    elif name in vars(owner):
        delattr(owner, name)


def _load(app: Celery) -> None:
    """Finalize an app and import its modules, once in this process."""
    app.finalize()
    if app not in _loaded:
        app.loader.import_default_modules()
        _loaded.add(app)
