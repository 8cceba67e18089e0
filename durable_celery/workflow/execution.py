"""One execution: a suspended run of workflow code, fed with events, giving commands.

State = f(inputs in their order). Inputs are applied one at a time, the code runs until it waits again, and only then
comes the next one. What was recorded of the commands is held against what the code does; see
:mod:`durable_celery.workflow.journal`. No store, no clock, no Celery: what is not in the events does not exist here.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from durable_celery.codec import Codec, failure_text, place_of
from durable_celery.errors import DurableError, Evicted, WorkflowCancelled, WorkflowCodeError
from durable_celery.events import (
    CARRIED,
    CancelRequested,
    Event,
    Output,
    Recorded,
    RunCancelled,
    RunCompleted,
    RunContinued,
    RunFailed,
    RunStarted,
    SignalReceived,
    StepCompleted,
    StepFailed,
    TerminalEvent,
    TimerFired,
)
from durable_celery.workflow import guard
from durable_celery.workflow.awaited import AsyncWorkflowContext
from durable_celery.workflow.blocking import WorkflowContext
from durable_celery.workflow.continuation import leaves
from durable_celery.workflow.definition import Definition
from durable_celery.workflow.frames import without_own_frames
from durable_celery.workflow.handlers import State
from durable_celery.workflow.interrupts import is_interrupt
from durable_celery.workflow.machine import Machine
from durable_celery.workflow.story import instant

__all__ = ["Execution", "replay"]

#: How many generations of tasks that are started while the code is being ended are ended too.
_PATIENCE = 20


class Execution:
    """The run of a workflow as far as it was fed.

    An ``async def`` workflow may be fed in any thread, one at a time; a ``def`` workflow only in the thread in which
    it began. After an exception left :meth:`feed`, its code has been unwound and it can only be dropped.
    """

    def __init__(self, definition: Definition, workflow_id: str, *, run: int = 1, codec: Codec) -> None:
        guard.install()
        self.definition = definition
        self.workflow_id = workflow_id
        self.run = run
        #: The first event, once it was seen.
        self.started: RunStarted | None = None
        self._machine = Machine(workflow_id, run, definition.name, codec)
        self._position = 0
        #: The extent that was held against the engine's limits last, here or in an earlier turn elsewhere.
        self.checked = (0, 0)
        self._begun = False
        self._main: asyncio.Task[None] | None = None
        self._cancel: CancelRequested | None = None
        # A cancel that was asked for and has not reached the code yet.
        self._cancelling = False

    @property
    def position(self) -> int:
        """Seq of the last event seen. To set it says that all outputs taken so far stand at or before it."""
        return self._position

    @position.setter
    def position(self, seq: int) -> None:
        self._position = seq
        self._machine.journal.confirm()
        self._machine.size.confirm(seq)

    @property
    def extent(self) -> tuple[int, int]:
        """How many events and bytes the history has with the commands that are not recorded yet."""
        return self._machine.size.with_outputs(self._machine.journal.pending)

    @property
    def gated(self) -> bool:
        """Whether the run is started, but its code may not begin yet."""
        return self.started is not None and not self._begun and not self.closed

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked the run to stop."""
        return self._cancel is not None

    @property
    def closed(self) -> bool:
        """Whether the code has ended."""
        return self._machine.closed

    @property
    def state(self) -> State:
        """What the code shows of itself at :attr:`position`."""
        return self._machine.state

    @property
    def open_steps(self) -> int:
        """How many steps had no outcome yet at :attr:`position`."""
        return self._machine.open_steps

    def is_only_step(self, number: int) -> bool:
        """Tell whether a step was the only one that had no outcome yet at :attr:`position`."""
        return self._machine.is_only_step(number)

    @property
    def old_sides(self) -> Sequence[tuple[int, int]]:
        """Where ``patched`` gave the old side: seq of the input, number of the command that came next.

        That the history goes on without the mark is what decided it, so it has to be fed at least up to that command.
        """
        return self._machine.journal.old_sides

    @property
    def waiting(self) -> str:
        """What the run waits for, in a few words, for people."""
        if self.closed:
            return ""
        if self.gated and self.started is not None and self.started.start_at is not None:
            return f"start at {instant(self.started.start_at):%Y-%m-%d %H:%M:%S}"
        return "start" if self.gated else self._machine.waiting()

    def feed(
        self,
        events: Sequence[Recorded],
        *,
        fresh_after: int = 0,
        before_local: Callable[[], None] | None = None,
        keep: bool = False,
    ) -> None:
        """Apply the events that follow :attr:`position`, up to the end of the history as far as it is known.

        The end matters: a command whose record is left out is taken for a new one, and a local step would run again.

        Args:
            events: consecutive events, inputs and outputs.
            fresh_after: inputs up to this seq were applied by an earlier turn; the code's logger is silent for them.
            before_local: called before a new local step runs; what it raises comes out of here untouched.
            keep: leave what goes on when the code has ended as it is, for somebody to look at; else it is evicted.

        Raises:
            NonDeterminismError: the code does not do what the history says.
            SideEffectError: the code reached for the outside world, even if it swallowed this error itself.
            WorkflowCodeError: the function does not take the recorded arguments, or never comes to rest.
        """
        machine = self._machine
        if machine.fault or (machine.driver.unwinding and not machine.closed):
            raise DurableError(
                f"this execution of workflow {self.workflow_id!r} has been ended; replay it in a new one"
            )
        machine.driver.check_thread()
        machine.before_local = before_local
        try:
            machine.journal.index(events)
            with machine.driver.session():
                for recorded in events:
                    self._see(recorded, fresh_after)
        except BaseException:
            self.evict()
            raise
        if self.closed and not keep:
            self._unwind()

    def take_outputs(self) -> tuple[Event, ...]:
        """Return the commands that have no record yet, in order; from now on they count as recorded."""
        outputs = () if self._machine.fault else self._machine.journal.take()
        self._machine.size.issue(outputs)
        return tuple(self._with_kept(event) if isinstance(event, RunContinued) else event for event in outputs)

    def _with_kept(self, event: RunContinued) -> RunContinued:
        """Name the inputs that go along to the next run; the store adds those that nobody here has seen."""
        machine = self._machine
        untaken = [*machine.signals.untaken(), *machine.updates.unbegun(), *machine.continuation.late]
        return replace(event, kept=sorted(untaken), version=self.definition.version)

    def evict(self) -> None:
        """End the suspended code: its ``finally`` blocks run, and no verb in them does anything. May be repeated."""
        self._machine.driver.check_thread()
        self._unwind()

    def _unwind(self) -> None:
        driver, loop = self._machine.driver, self._machine.loop
        driver.unwinding = True
        # Code that is being ended may start tasks, which have to be ended too; if it never stops, that is its affair.
        for _ in range(_PATIENCE):
            tasks = loop.take_tasks()
            if not tasks:
                break
            # Those that were started last are waited for by those that were started before.
            for task in reversed(tasks):
                driver.unwind(task.get_coro())

    # One event.

    def _see(self, recorded: Recorded, fresh_after: int) -> None:
        if recorded.seq != self._position + 1:
            raise DurableError(
                f"event {recorded.seq} was fed after event {self._position}: events are fed in order, without gaps"
            )
        machine = self._machine
        machine.size.see(recorded)
        if recorded.seq <= fresh_after:
            self.checked = (recorded.seq, machine.size.bytes)
        if not isinstance(recorded.event, Output):
            machine.cause = recorded.seq
            machine.now = max(machine.now, recorded.at)
            machine.is_replaying = recorded.seq <= fresh_after
            if not self.closed:
                self._apply(recorded.event)
                self._come_to_rest()
            elif isinstance(recorded.event, CARRIED):
                machine.continuation.late.append(recorded.seq)
            machine.journal.settle(recorded.seq)
        self._position = recorded.seq

    def _apply(self, event: Event) -> None:
        """Let one input change the state; the code runs later."""
        match event:
            case StepCompleted():
                self._machine.complete_step(event)
            case RunStarted():
                self.started = event
                if event.start_at is None and event.expires_at is None:
                    self._begin()
            case TimerFired(number=0):
                if self.gated:
                    self._open_gate()
            case TimerFired():
                self._machine.fire_timer(event)
            case StepFailed():
                self._machine.fail_step(event)
            case SignalReceived():
                self._machine.receive_signal(event)
            case CancelRequested():
                reason = self._machine.codec.legible(event.reason, place_of(event, self.workflow_id))
                self._request_cancel(CancelRequested(reason=reason))
            case _:
                raise DurableError(f"{type(event).__name__} is no input")

    def _come_to_rest(self) -> None:
        """Run the code until it waits again."""
        machine = self._machine
        machine.driver.enter(machine.loop.run_ready)
        if machine.fault is not None:
            raise machine.fault

    # The code.

    def _open_gate(self) -> None:
        """Begin, or end a run that came too late; which of the two follows from when the gate's timer was recorded."""
        expires_at = self.started.expires_at if self.started is not None else None
        if expires_at is not None and self._machine.now >= expires_at:
            self._request_cancel(CancelRequested(reason="expired before it began"))
        else:
            self._begin()

    def _begin(self) -> None:
        assert self.started is not None  # noqa: S101 - only its event leads here
        place = self._machine.place("start")
        args, kwargs = self._machine.codec.decode(self.started.payload, place) or ((), {})
        kind = AsyncWorkflowContext if self.definition.is_async else WorkflowContext
        context = kind(self._machine, started_at=instant(self._machine.now), parent=self.started.parent)
        function = self.definition.function
        if misfit := _misfit(function, 1 + len(args), tuple(kwargs)):
            raise WorkflowCodeError(
                f"workflow {self.workflow_id!r}: {self.definition.name} does not take the arguments it was started "
                f"with: {misfit}. Deploy code that does; the run goes on by itself then"
            )
        self._begun = True
        code = partial(function, context, *args, **kwargs)
        self._main = self._machine.loop.create_task(self._run(code))
        self._machine.updates.begin(context, self.definition.handlers)
        self._machine.continuation.main = self._main
        self._machine.continuation.check = partial(_check_fit, function)

    async def _run(self, code: Callable[[], Any]) -> None:
        """Run the workflow function and issue its end."""
        machine = self._machine
        try:
            value = await self._call(code)
            kind: type[TerminalEvent | RunContinued] = RunContinued
            text = machine.continuation.text
            if text is None:
                kind, text = RunCompleted, machine.codec.dumps(value, f"the result of workflow {machine.name}")
        except Evicted:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever user code raises is the run's outcome
            if is_interrupt(error):
                machine.stop(error)
            kind, text = self._end_of(error), failure_text(without_own_frames(error), machine.codec)
        if not (machine.fault or machine.driver.unwinding):
            machine.close(kind, text)

    async def _call(self, code: Callable[[], Any]) -> Any:
        machine = self._machine
        running = _Main(code(), self._take_cancel) if self.definition.is_async else machine.driver.run_blocking(code)
        try:
            value = await running
        except BaseException as error:
            value = None
            if not leaves(error):
                if isinstance(error, Exception) and not is_interrupt(error):
                    await machine.children_end()
                raise
        await machine.children_end()
        return value

    def _end_of(self, error: BaseException) -> type[TerminalEvent]:
        by_cancel = isinstance(error, WorkflowCancelled) or (
            self._cancel is not None and isinstance(error, asyncio.CancelledError)
        )
        return RunCancelled if by_cancel else RunFailed

    def _request_cancel(self, event: CancelRequested) -> None:
        if self._cancel is not None:
            return
        self._cancel = event
        self._machine.continuation.cancel = event.reason
        if self._main is None:
            failure = failure_text(self._cancelled(), self._machine.codec)
            self._machine.loop.call_soon(self._machine.close, RunCancelled, failure)
        else:
            self._cancelling = True
            self._machine.loop.call_soon(self._machine.updates.cancel)
            self._machine.loop.call_soon(self._main.cancel, event.reason or None)

    def _cancelled(self) -> WorkflowCancelled:
        reason = self._cancel.reason if self._cancel is not None else ""
        return WorkflowCancelled(reason) if reason else WorkflowCancelled()

    def _take_cancel(self) -> WorkflowCancelled | None:
        """Return what the code gets in place of the one cancellation that the run's cancel caused (``async def`` code).

        A branch may swallow the cancellation on its way; it is taken off all the same when the code goes on.
        """
        asked, self._cancelling = self._cancelling, False
        if not asked or self._main is None:
            return None
        # From here on only what the code itself cancels counts; asyncio.timeout looks at this number.
        self._main.uncancel()
        return self._cancelled()


@lru_cache(maxsize=256)
def _misfit(function: Callable[..., Any], count: int, names: tuple[str, ...]) -> str:
    """Say why a function cannot be called with so many positional arguments and these names; nothing if it can.

    To work it out takes as long as a short turn.
    """
    try:
        inspect.signature(function).bind(*[None] * count, **dict.fromkeys(names))
    except TypeError as error:
        return str(error)
    return ""


def _check_fit(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Hold arguments against a workflow's signature, whose first parameter is the context."""
    if misfit := _misfit(function, 1 + len(args), tuple(kwargs)):
        raise TypeError(misfit)


class _Main(Coroutine[Any, Any, Any]):
    """The user's coroutine, with an ear on what is thrown into it."""

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], take_cancel: Callable[[], WorkflowCancelled | None]
    ) -> None:
        self._coroutine = coroutine
        self._take_cancel = take_cancel

    def send(self, value: Any) -> Any:
        self._take_cancel()
        return self._coroutine.send(value)

    def throw(self, kind: Any, value: Any = None, _traceback: Any = None) -> Any:
        error = value if isinstance(value, BaseException) else kind
        cancel = self._take_cancel()
        is_cancel = isinstance(error, asyncio.CancelledError) or error is asyncio.CancelledError
        return self._coroutine.throw(cancel if cancel is not None and is_cancel else error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return self.send(None)


def replay(
    definition: Definition, workflow_id: str, history: Iterable[Recorded], codec: Codec, *, run: int = 1
) -> Execution:
    """Replay a whole history from its start; return where it stands. The caller evicts it.

    Raises:
        NonDeterminismError: the code does not do what the history says.
    """
    execution = Execution(definition, workflow_id, run=run, codec=codec)
    events = list(history)
    execution.feed(events, fresh_after=len(events))
    return execution
