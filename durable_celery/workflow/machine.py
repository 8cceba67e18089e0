"""The machine under the verbs: what one run has open, the primitive commands, and what inputs do to them.

Nothing here waits. Verbs that wait are composed of these in :mod:`durable_celery.workflow.verbs`.

Invariant: after a mismatch with the history, or a side effect, no command is issued and no code goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from datetime import datetime
from functools import cached_property, partial
from itertools import chain, islice
from random import Random
from typing import Any, NamedTuple, NoReturn, TypeVar
from uuid import UUID

from durable_celery.codec import Codec, Place, failure_of, place_of, rebuild
from durable_celery.errors import DurableError, NonDeterminismError, SideEffectError
from durable_celery.events import (
    CommandCancelled,
    LocalStepCompleted,
    LocalStepFailed,
    Output,
    RunCancelled,
    RunContinued,
    SignalReceived,
    StepCompleted,
    StepFailed,
    StepScheduled,
    TerminalEvent,
    TimerFired,
    TimerStarted,
)
from durable_celery.workflow.conditions import Conditions
from durable_celery.workflow.continuation import Continuation
from durable_celery.workflow.driver import Driver
from durable_celery.workflow.handlers import State
from durable_celery.workflow.handles import Handle, StepHandle
from durable_celery.workflow.interrupts import is_interrupt
from durable_celery.workflow.journal import Journal
from durable_celery.workflow.loop import make_loop
from durable_celery.workflow.signals import SignalHandle, Signals
from durable_celery.workflow.size import HistorySize
from durable_celery.workflow.story import instant
from durable_celery.workflow.tasks import CallOptions, ParentClose, check_arguments, options_of_call, resolve
from durable_celery.workflow.typed_signal import Signal
from durable_celery.workflow.updates import Updates, is_update

__all__ = ["Machine"]

T = TypeVar("T")

#: How many waits are named to people.
_SHOWN = 5


class _Timer(NamedTuple):
    due_at: int
    fire: Callable[[], object]


class Machine:
    """The state of one run, as its code sees and changes it."""

    def __init__(self, workflow_id: str, run: int, name: str, codec: Codec) -> None:
        self.workflow_id, self.run, self.name, self.codec = workflow_id, run, name, codec
        self.journal = Journal(workflow_id, run, codec)
        self.loop = make_loop(self, f"{workflow_id}/{run}")
        self.driver = Driver(self.loop, self.remember)
        self.signals = Signals()
        self.conditions = Conditions()
        self.updates = Updates(self)
        #: What the run shows of itself to queries.
        self.state = State()
        self.continuation = Continuation()
        self.size = HistorySize()
        self.logger = logging.getLogger(f"durable_celery.workflow.{name}")
        #: Workflow time: when the input that is being applied was recorded, in milliseconds since 1970.
        self.now = 0
        #: Seq of the input that is being applied.
        self.cause = 0
        #: Whether an earlier turn applied it already.
        self.is_replaying = False
        #: Whether the run has ended.
        self.closed = False
        #: Why the execution cannot go on, if it cannot.
        self.fault: BaseException | None = None
        #: What the engine does before a local step runs.
        self.before_local: Callable[[], None] | None = None
        self._steps: dict[int, StepHandle[Any]] = {}
        self._timers: dict[int, _Timer] = {}
        self._patches: dict[str, bool] = {}
        #: Callbacks that have no outcome, by number; in order.
        self.callbacks: dict[int, Handle[Any]] = {}

    @cached_property
    def random(self) -> Random:
        """Random numbers of the run, made when first asked for."""
        return Random(f"{self.workflow_id}/{self.run}")  # noqa: S311 - to be repeated, not to be secret

    @cached_property
    def ids(self) -> Random:
        """Ids have a source of their own, so that a new call of ``random`` does not change them."""
        return Random(f"{self.workflow_id}/{self.run}/ids")  # noqa: S311 - the same

    # Who may do what.

    @property
    def at_rest(self) -> bool:
        """Whether no code may run any more."""
        return self.closed or self.driver.unwinding

    def check(self) -> None:
        """Refuse a verb that is not called by running workflow code.

        Raises:
            DurableError: it is called by somebody else.
            Evicted: the run has ended, or the code is being unwound.
        """
        if not self.driver.is_inside():
            raise DurableError(
                f"workflow {self.workflow_id!r}: a verb of the context was called from outside its workflow code: "
                "from a local step, another thread, or after the run had ended"
            )
        if self.at_rest:
            self.driver.refuse()

    def remember(self, error: SideEffectError) -> None:
        """Stop the execution for a side effect once the code comes to rest, even if the code swallows the error."""
        if not self.driver.unwinding:
            self.fault = self.fault or error

    def refuse(self, error: SideEffectError) -> NoReturn:
        """Remember a side effect and raise it."""
        if self.driver.is_inside():
            self.remember(error)
        raise error

    def silence(self, work: Callable[[], object]) -> None:
        """Call something during which no verb does anything."""
        before, self.driver.unwinding = self.driver.unwinding, True
        try:
            work()
        finally:
            self.driver.unwinding = before

    def stop(self, fault: BaseException) -> NoReturn:
        """End the execution: no code goes on from here."""
        self.fault = fault
        self.driver.unwinding = True
        self.driver.refuse()

    def wait(self, awaitable: Awaitable[T]) -> T:
        """Block the calling ``def`` code until the awaitable is done."""
        try:
            self.check()
            return self.driver.wait(awaitable)
        except BaseException:
            if isinstance(awaitable, Coroutine):
                # It may not have begun, and Python would warn of that.
                awaitable.close()
            raise

    # Commands.

    def issue(self, command: Output) -> Output:
        """Issue a command; return its record, or the command itself where it is new."""
        try:
            return self.journal.issue(command)
        except NonDeterminismError as mismatch:
            self.stop(mismatch)

    def start_step(
        self, task: object, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions
    ) -> StepHandle[Any]:
        """Schedule a step."""
        self.check()
        name, kind = resolve(task)
        options.check_kind(name, kind)
        text = self.codec.dumps([list(args), kwargs], f"the arguments of step {name}")
        number = self.journal.next
        place = self.place("call", number)
        command = StepScheduled(
            number=number,
            cause=self.cause,
            task=name,
            digest=self._digest(text, place),
            kind=kind,
            options=options_of_call(task, options),
            payload=self._sealed(text, place),
        )
        if not self.journal.holds(command):
            # A recorded call stays good when a deploy changes the task's signature.
            check_arguments(task, args, kwargs)
            if kind == "workflow":
                options.check_child()
        self.issue(command)
        key = f"{self.workflow_id}/{self.run}.{number}"
        handle: StepHandle[Any] = StepHandle(
            self, partial(self._cancel, self._steps, number), number=number, key=key, task=name
        )
        handle.label, handle.parent_close = options.name or name, options.parent_close
        handle.workflow_id = (options.workflow_id or key) if kind == "workflow" else None
        self._steps[number] = handle
        return handle

    def start_timer(self, due_at: int, fire: Callable[[], object]) -> int:
        """Start a timer; its record, if there is one, says when it is really due."""
        self.check()
        number = self.journal.next
        record = self.issue(TimerStarted(number=number, cause=self.cause, due_at=due_at))
        self._timers[number] = _Timer(record.due_at if isinstance(record, TimerStarted) else due_at, fire)
        return number

    def cancel_timer(self, number: int) -> None:
        """Cancel a timer that has not fired."""
        if number in self._timers and not self.at_rest:
            self.check()
            self._cancel(self._timers, number)

    def timer(self, due_at: int) -> Handle[None]:
        """Return a handle that is done at an instant; one that is past needs no command."""
        self.check()
        if due_at <= self.now:
            done: Handle[None] = Handle(self)
            done.set_result(None)
            return done
        number = self.journal.next
        handle: Handle[None] = Handle(self, partial(self._cancel, self._timers, number))
        self.start_timer(due_at, lambda: handle.set_result(None))
        return handle

    def _cancel(self, open_commands: dict[int, Any], number: int) -> bool:
        del open_commands[number]
        self.issue(CommandCancelled(number=self.journal.next, cause=self.cause, target=number))
        return True

    def signal(self, signal: Signal[T] | str) -> SignalHandle[T]:
        """Return a handle for the next signal of a name."""
        self.check()
        return SignalHandle(self, self.signals, signal)

    def until(self, predicate: Callable[[], object]) -> Handle[None]:
        """Return a handle that is done when a predicate over the code's state is true."""
        self.check()
        handle: Handle[None] = Handle(self)
        handle.withdraw = partial(self.conditions.leave, handle)
        self.conditions.wait(predicate, handle)
        return handle

    def wake(self) -> bool:
        """Make something ready, now that all code waits: a condition that has become true, an update (loop)."""
        return self.conditions.meet() or self.updates.begin_next()

    def patched(self, patch_id: str, *, is_deprecated: bool = False) -> bool:
        """Decide, once, whether the code takes the new side of a change."""
        self.check()
        if patch_id not in self._patches:
            try:
                self._patches[patch_id] = self.journal.patch(patch_id, self.cause, is_deprecated=is_deprecated)
            except NonDeterminismError as mismatch:
                self.stop(mismatch)
        return self._patches[patch_id]

    def uuid4(self) -> UUID:
        """Return the run's next random id."""
        self.check()
        return UUID(int=self.ids.getrandbits(128), version=4)

    def local_step(self, name: str, text: str, perform: Callable[[], Any]) -> Any:
        """Run a function outside, unless its outcome is recorded; return its result or raise its failure."""
        self.check()
        if self.fault:
            self.stop(self.fault)
        number = self.journal.next
        digest = self._digest(text, self.place("local", number))
        probe = LocalStepCompleted(number=number, cause=self.cause, name=name, digest=digest)
        try:
            outcome = self.journal.recorded(probe)
        except NonDeterminismError as mismatch:
            self.stop(mismatch)
        if outcome is None:
            outcome = self.driver.outside(partial(self._perform, probe, perform))
        self.issue(outcome)
        place = self.place("outcome", number)
        if isinstance(outcome, LocalStepFailed):
            error = self._outside(partial(rebuild, outcome.payload, self.codec, place))
            error.add_note(f"in local step {name} ({self.workflow_id}/{self.run}.{number})")
            raise error
        return self._outside(partial(self.codec.decode, outcome.payload, place))

    def _perform(self, probe: LocalStepCompleted, perform: Callable[[], Any]) -> LocalStepCompleted | LocalStepFailed:
        """Run a local step's function (driver)."""
        if self.before_local is not None:
            self.before_local()
        record: dict[str, Any] = {
            "number": probe.number,
            "cause": probe.cause,
            "name": probe.name,
            "digest": probe.digest,
        }
        place = self.place("outcome", probe.number)
        try:
            text = self.codec.dumps(perform(), f"the result of local step {probe.name}")
        except Exception as error:  # noqa: BLE001 - whatever a step raises is its outcome, and is recorded
            return LocalStepFailed(**record, payload=failure_of(error, self.codec, place))
        return LocalStepCompleted(**record, payload=self.codec.seal(text, place))

    def record(self, kind: type[LocalStepCompleted | LocalStepFailed], name: str, text: str, outcome: str) -> None:
        """Record what the code has worked out by itself: a text that a replay must repeat, and its JSON outcome."""
        number = self.journal.next
        digest = self._digest(text, self.place("local", number))
        payload = self._sealed(outcome, self.place("outcome", number))
        self.issue(kind(number=number, cause=self.cause, name=name, digest=digest, payload=payload))

    async def children_end(self) -> None:
        """Wait for the child runs that the run's end has to wait for."""
        if children := [step for step in self._steps.values() if step.parent_close is ParentClose.WAIT]:
            await asyncio.wait(children)

    def close(self, kind: type[TerminalEvent | RunContinued], text: str) -> None:
        """Issue the run's end, with its JSON text. Open steps go along with a cancel, if nothing else was asked for."""
        for number, handle in sorted(self._steps.items()):
            policy = handle.parent_close
            if policy is ParentClose.CANCEL or (kind is RunCancelled and policy is not ParentClose.ABANDON):
                self._cancel(self._steps, number)
        # Those that have not begun go along to the next run.
        undone = self.updates.begun if kind is RunContinued else self.updates.open
        if undone and not self.is_replaying:
            story = "workflow %s ended before %s of its updates were done; it could wait until not ctx.open_updates"
            self.logger.warning(story, self.workflow_id, undone)
        end = kind(number=self.journal.next, cause=self.cause)
        self.issue(replace(end, payload=self._sealed(text, place_of(end, self.workflow_id, self.run))))
        self.closed = True

    # Payloads.

    def place(self, kind: str, number: int = 0) -> Place:
        """Return a place of this run, to which a payload is bound."""
        return Place(self.workflow_id, kind, number, self.run)

    def _outside(self, work: Callable[[], T]) -> T:
        """Open or seal a payload: out of reach of the guard, for a codec may do I/O. If that fails, the code ends."""
        return work() if self.codec.is_plain or not self.driver.is_inside() else self.driver.outside(work)

    def _digest(self, text: str, place: Place) -> str:
        """Return the digest of the next command's arguments, under the key of its record if it has one."""
        return self._outside(partial(self.codec.digest, text, place, self.journal.next_digest))

    def _sealed(self, text: str, place: Place) -> str:
        """Return the stored form of the next command's payload; one that is recorded needs none."""
        if self.codec.is_plain or self.journal.holds_next:
            return text
        return self._outside(partial(self.codec.seal, text, place))

    # Inputs. What nobody waits for any more is ignored.

    def complete_step(self, event: StepCompleted) -> None:
        """Give a step's result to its handle."""
        handle = self._steps.pop(event.number, None)
        if handle is not None:
            handle.set_result(self.codec.decode(event.payload, self.place("outcome", event.number)))

    def fail_step(self, event: StepFailed) -> None:
        """Give a step's failure to its handle."""
        handle = self._steps.pop(event.number, None)
        if handle is not None:
            error = rebuild(event.payload, self.codec, self.place("outcome", event.number))
            told = f"attempt {event.attempt}" if event.attempt else "told from outside"
            error.add_note(f"in step {handle.task} ({handle.key}), {told}")
            handle.fail(error)

    def fire_timer(self, event: TimerFired) -> None:
        """Let a timer do what it was started for."""
        timer = self._timers.pop(event.number, None)
        if timer is not None:
            timer.fire()

    def receive_signal(self, event: SignalReceived) -> None:
        """Give a signal to who waits for it, or keep it; or begin what it asks for."""
        if is_update(event):
            self.updates.receive(event, self.cause)
            return
        value = self.codec.decode(event.payload, place_of(event, self.workflow_id))
        self.signals.receive(event.name, value, self.cause)

    @property
    def open_steps(self) -> int:
        """How many steps are waited for, or could be."""
        return len(self._steps)

    def is_only_step(self, number: int) -> bool:
        """Tell whether a step is the only one that is waited for, or could be."""
        return len(self._steps) == 1 and number in self._steps

    # For people.

    def waiting(self) -> str:
        """Say what the run waits for, in a few words."""
        steps = (f"step {handle.label} ({number})" for number, handle in self._steps.items())
        names = (f"signal {name}" for name in self.signals.names())
        timers = (
            f"timer ({number}) until {instant(timer.due_at):%Y-%m-%d %H:%M:%S}"
            for number, timer in self._timers.items()
        )
        callbacks = (f"callback ({number})" for number in self.callbacks)
        conditions = (f"condition {name}" for name in self.conditions.names())
        shown = list(islice(chain(steps, names, callbacks, conditions, timers), _SHOWN + 1))
        return ", ".join([*shown[:_SHOWN], *(["..."] if len(shown) > _SHOWN else [])])

    def now_as_datetime(self) -> datetime:
        """Return the workflow's time as an aware datetime in UTC."""
        self.check()
        return instant(self.now)

    def complain(self, message: str, error: BaseException | None) -> None:
        """Log what asyncio found wrong and nobody else will hear of."""
        if error is not None and not self.at_rest and is_interrupt(error):
            # asyncio caught what a signal threw into one of its callbacks: the state can no longer be trusted.
            self.fault = error
        elif not (self.is_replaying or self.at_rest):
            self.logger.error("workflow %s: %s", self.workflow_id, message, exc_info=error)
