"""The deterministic event loop: plain asyncio in workflow code becomes durable on it.

First in, first out; no sockets, no threads, no clock of its own. ``time()`` is the workflow's time, ``call_later`` a
durable timer. Both forms of workflows run on it: an ``async def`` directly, a ``def`` in greenlets that tasks of this
loop wait for.

Invariant: what runs in which order follows from what was scheduled in which order. asyncio keeps tasks and futures in
sets, whose order follows from hashes; so theirs are counted, not addresses.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from hashlib import blake2b
from typing import Any, NoReturn, Protocol, TypeVar, TypeVarTuple

from durable_celery.errors import DurableError, Evicted, SideEffectError, WorkflowCodeError
from durable_celery.workflow.interrupts import is_interrupt
from durable_celery.workflow.repairs import argument_of_as_completed, repair_task_group, repair_timeout

__all__ = ["Clockwork", "WorkflowFuture", "WorkflowLoop", "WorkflowTask", "make_loop"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: Callbacks that one input may cause; more is a loop that never waits for anything.
_BUSY = 5_000_000


class Clockwork(Protocol):
    """What the loop needs of the run that it belongs to."""

    #: Workflow time, milliseconds since 1970.
    now: int

    @property
    def at_rest(self) -> bool:
        """Whether no code may run any more: the run has ended, or is being unwound."""
        ...

    def start_timer(self, due_at: int, fire: Callable[[], object]) -> int:
        """Issue a timer; ``fire`` is called when it fires."""
        ...

    def cancel_timer(self, number: int) -> None:
        """Issue the cancellation of a timer, if it is still open."""
        ...

    def wake(self) -> bool:
        """Make something ready, now that all code waits, if what it waits for has become true; tell whether."""
        ...

    def refuse(self, error: SideEffectError) -> NoReturn:
        """Remember a side effect and raise it."""
        ...

    def silence(self, work: Callable[[], object]) -> None:
        """Call something during which no verb does anything."""
        ...

    def complain(self, message: str, error: BaseException | None) -> None:
        """Log what asyncio found wrong and nobody else will hear of."""
        ...


class Scoped(Protocol):
    """A block of code that may be told to end."""

    @property
    def cancelled(self) -> bool:
        """Whether it was told to."""
        ...


class WorkflowFuture(asyncio.Future[T]):
    """A future whose place in a set does not depend on its address."""

    def __init__(self, loop: WorkflowLoop) -> None:
        self._order = loop.next_order()
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._order


class WorkflowTask(asyncio.Task[T]):
    """A task whose place in a set, and whose name, do not depend on the process."""

    def __init__(
        self, coro: Coroutine[Any, Any, T], loop: WorkflowLoop, name: str | None, context: Context | None
    ) -> None:
        self._order = loop.next_order()
        super().__init__(coro, loop=loop, name=name or f"Task-{loop.count}", context=context)
        # An evicted execution leaves its tasks pending, and that is no mistake of the user.
        self._log_destroy_pending = False
        #: The scopes that its code is in, the outermost first; and how many of the requests to cancel it are theirs.
        self.scopes: list[Scoped] = []
        self.scope_cancels = 0

    def __hash__(self) -> int:
        return self._order


class _Closing:
    """Runs an async generator's clean-up as far as it gets without waiting."""

    def __init__(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._steps = generator.aclose().__await__()

    def __call__(self) -> None:
        with suppress(StopIteration, RuntimeError, DurableError, asyncio.CancelledError, Evicted):
            self._steps.send(None)
            self._steps.close()


class DurableTimer(asyncio.TimerHandle):
    """What ``call_at`` returns: cancelling it cancels the timer command."""

    number: int = 0


def make_loop(clockwork: Clockwork, salt: str) -> WorkflowLoop:
    """Return the loop of a run; ``salt`` tells runs apart."""
    return WorkflowLoop(clockwork, salt)  # type: ignore[abstract]  # what is missing is added by name, at the end


class WorkflowLoop(asyncio.AbstractEventLoop):
    """The event loop of one execution."""

    def __init__(self, clockwork: Clockwork, salt: str) -> None:
        self._clockwork = clockwork
        self._ready: deque[asyncio.Handle] = deque()
        # Held while they run: one that only a forgotten future refers to would be collected, and unwound, at any time.
        self._tasks: dict[int, WorkflowTask[Any]] = {}
        # Tasks that were created before they were asked for, by the id of their coroutine.
        self._early: dict[int, WorkflowTask[Any]] = {}
        repair_task_group()
        repair_timeout()
        #: How many tasks and futures were created.
        self.count = 0
        # Hashes are consecutive, so a set keeps a fixed order. They start elsewhere for each run: asyncio also holds
        # all tasks of the process in one set, where equal hashes would be slow.
        self._salt = int.from_bytes(blake2b(salt.encode(), digest_size=5).digest()) << 20

    def next_order(self) -> int:
        """Return the hash of the next task or future."""
        self.count += 1
        return self._salt + self.count

    def run_ready(self) -> None:
        """Run what is ready, and what that makes ready, until the code waits for an input.

        Raises:
            WorkflowCodeError: the code never comes to rest.
        """
        for _ in range(_BUSY):
            if self._clockwork.at_rest:
                return
            if not self._ready:
                if not self._clockwork.wake():
                    return
                continue
            handle = self._ready.popleft()
            if not handle.cancelled():
                self._run(handle)
        msg = f"the workflow code ran {_BUSY} callbacks on one event and still waits for nothing: is there a busy loop?"
        raise WorkflowCodeError(msg)

    @staticmethod
    def _run(handle: asyncio.Handle) -> None:
        try:
            handle._run()  # noqa: SLF001 - as each event loop does
        except SystemExit as error:
            # asyncio lets it end the process, after it became the task's outcome. Of user code it is only that.
            if is_interrupt(error):
                raise

    def take_tasks(self) -> list[WorkflowTask[Any]]:
        """Return the tasks that have not ended, in the order of their creation, and forget them."""
        tasks, self._tasks = [task for task in self._tasks.values() if not task.done()], {}
        self._ready.clear()
        return tasks

    # What asyncio asks of a loop.

    def time(self) -> float:
        """Return the workflow's time in seconds since 1970."""
        return self._clockwork.now / 1000

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Queue a callback behind those that are ready."""
        handle = asyncio.Handle(callback, args, self, context)
        if not self._clockwork.at_rest:
            self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Queue a callback for when a durable timer of ``delay`` seconds fires."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Queue a callback for when a durable timer fires; an instant that is past needs none."""
        timer = DurableTimer(when, callback, args, self, context)
        due_at = round(when * 1000)
        if self._clockwork.at_rest:
            return timer
        if due_at <= self._clockwork.now:
            self._ready.append(timer)
        else:
            timer.number = self._clockwork.start_timer(due_at, lambda: self._ready.append(timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if isinstance(handle, DurableTimer) and handle.number:
            self._clockwork.cancel_timer(handle.number)

    def create_future(self) -> WorkflowFuture[Any]:
        """Return a future of this loop."""
        return WorkflowFuture(self)

    def create_task(
        self, coro: Any, *, name: object = None, context: Context | None = None, **_options: object
    ) -> WorkflowTask[Any]:
        """Start a task of this loop."""
        if not self._early:
            self._create_in_order(argument_of_as_completed(sys._getframe(1)))  # noqa: SLF001 - public but for its name
        early = self._early.pop(id(coro), None)
        return early or self._create_task(coro, None if name is None else str(name), context)

    def _create_task(self, coro: Any, name: str | None = None, context: Context | None = None) -> WorkflowTask[Any]:
        task: WorkflowTask[Any] = WorkflowTask(coro, self, name, context)
        self._tasks[hash(task)] = task
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(hash(task), None)

    def _create_in_order(self, given: Any) -> None:
        """Create the tasks of ``asyncio.as_completed`` in the order of its argument, when it asks for the first one."""
        if isinstance(given, list | tuple):
            coroutines = {id(awaitable): awaitable for awaitable in given if asyncio.iscoroutine(awaitable)}
            self._early = {key: self._create_task(coroutine) for key, coroutine in coroutines.items()}
        elif given is not None:
            problem = "asyncio.as_completed() takes coroutines in the order of a set, which is not replayed"
            self._clockwork.refuse(SideEffectError(f"{problem}: give it a list"))

    def get_debug(self) -> bool:
        """Tell that nothing is checked twice."""
        return False

    def is_running(self) -> bool:
        """Tell that code on this loop runs."""
        return True

    def is_closed(self) -> bool:
        """Tell that the loop takes more."""
        return False

    def get_task_factory(self) -> None:
        """Tell that tasks are those of this loop."""
        return

    def get_exception_handler(self) -> None:
        """Tell that errors are handled by this loop."""
        return

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Log an error that asyncio could give to nobody."""
        self._clockwork.complain(context["message"], context.get("exception"))

    default_exception_handler = call_exception_handler

    def drop_generator(self, generator: Any) -> None:
        """Close an async generator that nobody holds any more, at once, while no verb does anything.

        asyncio would run its clean-up in a task, at a moment that garbage collection chooses.
        """
        self._clockwork.silence(_Closing(generator))

    def _refuse(self, verb: str, advice: str) -> NoReturn:
        self._clockwork.refuse(SideEffectError(f"workflow code may not use the event loop's {verb}(); {advice}"))


_STEP = "do it in a step: `ctx.step(task, ...)`, or `ctx.run(function, ...)` for a short one"
_OUTSIDE = """
    getaddrinfo getnameinfo create_connection create_server create_unix_connection create_unix_server
    create_datagram_endpoint connect_accepted_socket start_tls sendfile connect_read_pipe connect_write_pipe
    subprocess_shell subprocess_exec add_reader remove_reader add_writer remove_writer sock_recv sock_recv_into
    sock_recvfrom sock_recvfrom_into sock_sendall sock_sendto sock_connect sock_accept sock_sendfile
"""
_OWNED = """
    add_signal_handler remove_signal_handler run_forever run_until_complete stop close set_debug set_task_factory
    set_exception_handler set_default_executor shutdown_default_executor shutdown_asyncgens
"""
#: What a workflow's loop does not do, and what to do instead.
_REFUSED = {
    "run_in_executor": f"threads are not replayed; {_STEP}",
    "call_soon_threadsafe": "other threads reach a workflow with a signal",
    **dict.fromkeys(_OUTSIDE.split(), _STEP),
    **dict.fromkeys(_OWNED.split(), "the loop of a workflow belongs to its run"),
}


def _refusal(verb: str, advice: str) -> Callable[..., NoReturn]:
    def refuse(self: WorkflowLoop, *_args: object, **_kwargs: object) -> NoReturn:
        self._refuse(verb, advice)

    return refuse


for _verb, _advice in _REFUSED.items():
    setattr(WorkflowLoop, _verb, _refusal(_verb, _advice))
