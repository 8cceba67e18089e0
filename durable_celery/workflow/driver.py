"""Greenlets: how workflow code is entered, how it blocks, and how it asks for something outside of itself.

``feed`` runs in the *driver*, an ordinary greenlet of the worker. It enters the event loop in a
:class:`WorkflowGreenlet` that lives as long as the feed, so an execution whose code is ``async def`` may go on in any
thread. ``def`` code runs in greenlets of its own: a task of the loop (:meth:`Driver.run_blocking`) waits for whatever
the code blocks on and then switches back into it.

Invariant: when :meth:`Driver.enter` returns, no greenlet of the execution runs; the only suspended ones are those of
``def`` code that waits, each held by its task, and within :meth:`Driver.session` the one that is entered.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, NoReturn, Self, TypeVar

import greenlet

from durable_celery.errors import DurableError, Evicted, SideEffectError, WorkflowCancelled
from durable_celery.workflow.guard import WorkflowGreenlet
from durable_celery.workflow.loop import WorkflowLoop, WorkflowTask

__all__ = ["Driver", "run_awaitable"]

T = TypeVar("T")

_logger = logging.getLogger(__name__)

#: The code of a task.
_Suspended = Coroutine[Any, Any, Any] | Generator[Any, Any, Any]

#: What a greenlet of the loop answers when its work is done.
_AT_REST = object()
#: How often code that will not end is told to, while it is unwound.
_PATIENCE = 20
#: Greenlets of code that would not end. Kept, because collecting them would throw into them once more.
_stuck: list[WorkflowGreenlet] = []


@dataclass(frozen=True, slots=True)
class _Request:
    """Workflow code asks the driver to call something outside."""

    call: Callable[[], Any]
    caller: WorkflowGreenlet


class _Asyncio(NamedTuple):
    """What asyncio keeps for a thread, and greenlets share."""

    loop: asyncio.AbstractEventLoop | None
    first_iteration: Callable[[Any], None] | None
    finalizer: Callable[[Any], None] | None

    @classmethod
    def current(cls) -> Self:
        loop = asyncio._get_running_loop()  # noqa: SLF001 - meant for implementers of loops, and documented so
        return cls(loop, *sys.get_asyncgen_hooks())

    def put_in_place(self) -> None:
        asyncio._set_running_loop(self.loop)  # noqa: SLF001 - the same
        sys.set_asyncgen_hooks(firstiter=self.first_iteration, finalizer=self.finalizer)


class Driver:
    """Switches between the workflow code of one execution and the greenlet that feeds it."""

    def __init__(self, loop: WorkflowLoop, report: Callable[[SideEffectError], object]) -> None:
        self._own = _Asyncio(loop, None, loop.drop_generator)
        self._report = report
        self._home: greenlet.greenlet | None = None
        self._thread: int | None = None
        self._refusals = 0
        # The greenlet that is entered again and again while there is a session.
        self._worker: WorkflowGreenlet | None = None
        self._has_session = False
        #: True while suspended code is being ended.
        self.unwinding = False

    def is_inside(self) -> bool:
        """Tell whether the caller is this execution's code."""
        current = greenlet.getcurrent()
        return type(current) is WorkflowGreenlet and current.report == self._report

    def enter(self, work: Callable[[], object]) -> None:
        """Run ``work`` as workflow code until it returns, serving what it asks for outside.

        What goes wrong outside ends the code: it is unwound, and the exception leaves here untouched.
        """
        outer, own = _Asyncio.current(), self._own
        self._home = greenlet.getcurrent()
        inner = self._worker or self._greenlet(self._work)
        # One that raises has ended, and so has a session's.
        self._worker = None
        own.put_in_place()
        try:
            request = inner.switch(work)
            while isinstance(request, _Request):
                request = request.caller.switch(self._serve(request, outer, own))
        finally:
            outer.put_in_place()
            self._home = None
        if request is not _AT_REST:
            _stuck.append(inner)
        elif self._has_session:
            self._worker = inner
        else:
            inner.switch(None)

    @contextmanager
    def session(self) -> Generator[None]:
        """Enter one and the same greenlet each time, which is what entering costs."""
        self._has_session = True
        try:
            yield
        finally:
            self._has_session, worker, self._worker = False, self._worker, None
            if worker is not None:
                worker.switch(None)

    def _work(self, work: Callable[[], object] | None) -> None:
        """Do what is asked for, one thing after the other, until there is no more (a greenlet of the loop)."""
        current = greenlet.getcurrent()
        while work is not None:
            work()
            assert current.parent is not None  # noqa: S101 - it was entered from there
            work = current.parent.switch(_AT_REST)

    def _serve(self, request: _Request, outer: _Asyncio, own: _Asyncio) -> Any:
        outer.put_in_place()
        try:
            return request.call()
        except BaseException:
            self.unwinding = True
            own.put_in_place()
            request.caller.throw(Evicted())
            raise
        finally:
            own.put_in_place()

    def outside(self, call: Callable[[], T]) -> T:
        """Call a function in the driver: out of reach of the guard, with the code at a standstill (workflow code)."""
        caller = greenlet.getcurrent()
        if self._home is None or not isinstance(caller, WorkflowGreenlet):
            raise DurableError("only running workflow code can call outside")
        result: T = self._home.switch(_Request(call, caller))
        return result

    def wait(self, awaitable: Awaitable[T]) -> T:
        """Block ``def`` code until the awaitable is done; other branches go on meanwhile (workflow code)."""
        current = greenlet.getcurrent()
        if not (self.is_inside() and isinstance(current, WorkflowGreenlet) and current.may_block):
            raise DurableError(
                "this blocks, which only `def` workflow code may do; in an `async def` workflow, await it"
            )
        parent = current.parent
        assert parent is not None  # noqa: S101 - the task that runs the code is always its parent
        try:
            result: T = parent.switch(awaitable)
        except BaseException as thrown:  # noqa: BLE001 - it is raised below
            error = thrown
        else:
            return result
        try:
            # Not where it was thrown: so Python notes what the code was handling when it came.
            raise error
        finally:
            del error

    async def run_blocking(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Run ``def`` code in a greenlet, waiting here for what it blocks on.

        A cancellation reaches the code as :class:`WorkflowCancelled` where it blocks.
        """
        self._bind_thread()
        code = self._greenlet(partial(function, *args, **kwargs))
        code.may_block = True
        code.gr_context = copy_context()
        task = asyncio.current_task()
        resume: Callable[[], Any] = code.switch
        while True:
            # The loop's greenlet is another one in each turn.
            code.parent = greenlet.getcurrent()
            awaited = resume()
            if code.dead:
                result: T = awaited
                return result
            try:
                value = await awaited
            except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the code that waits
                resume = partial(code.throw, _as_cancel(error, task))
            else:
                _take_cancels(task)
                resume = partial(code.switch, value)

    def unwind(self, coroutine: _Suspended) -> None:
        """End suspended code by throwing :class:`Evicted` into it; code that will not end is left behind."""
        self.unwinding = True
        self._refusals = 0
        self.enter(partial(_throw_until_ended, coroutine))

    def refuse(self) -> NoReturn:
        """Raise :class:`Evicted` in a verb that is called by code that is being ended."""
        self._refusals += 1
        while self._refusals > _PATIENCE:
            # The code catches everything and tries again, for ever: it stays here. Without a turn it is garbage
            # collection that calls, from the parent.
            away = self._home or greenlet.getcurrent().parent
            if away is None:
                break
            _logger.warning("workflow code swallows %s in an endless loop; it is left behind", Evicted.__name__)
            away.switch()
        raise Evicted

    def check_thread(self) -> None:
        """Refuse to go on in another thread than that to which greenlets bind ``def`` code."""
        if self._thread not in {None, threading.get_native_id()}:
            raise DurableError("a `def` workflow can only be fed and evicted in the thread in which it began")

    def _bind_thread(self) -> None:
        self._thread = threading.get_native_id()

    def _greenlet(self, work: Callable[..., object]) -> WorkflowGreenlet:
        created = WorkflowGreenlet(work)
        created.report = self._report
        return created


def _take_cancels(task: asyncio.Task[Any] | None) -> bool:
    """Take off a task's requests to cancel, now that its code has been told; False if all were of its own scopes."""
    if not isinstance(task, WorkflowTask):
        return False
    asked = task.cancelling() > task.scope_cancels
    task.scope_cancels = 0
    while task.cancelling():
        task.uncancel()
    return asked


def _as_cancel(error: BaseException, task: asyncio.Task[Any] | None) -> BaseException:
    asked = _take_cancels(task)
    return WorkflowCancelled(*error.args) if asked and isinstance(error, asyncio.CancelledError) else error


def _throw_until_ended(coroutine: _Suspended) -> None:
    for _ in range(_PATIENCE):
        try:
            coroutine.throw(Evicted())
        except BaseException:  # noqa: BLE001 - it has ended, and how no longer matters
            return
    try:
        coroutine.close()
    except RuntimeError:
        _logger.warning("workflow code awaits again each time it is told to end; it is left behind: %r", coroutine)


def run_awaitable(awaitable: Awaitable[T]) -> T:
    """Run the awaitable of a local step to its end, on an event loop of its own (driver)."""

    async def run() -> T:
        return await awaitable

    outer = _Asyncio.current()
    _Asyncio(None, None, None).put_in_place()
    try:
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            return runner.run(run())
    finally:
        outer.put_in_place()
