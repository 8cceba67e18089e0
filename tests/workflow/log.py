"""A history in a list, and the execution that is fed from it: an engine without store, clock and leases."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from durable_celery.codec import Codec, failure_of, rebuild
from durable_celery.events import (
    CancelRequested,
    CommandCancelled,
    Event,
    LocalStepFailed,
    Output,
    Recorded,
    RunStarted,
    SignalReceived,
    StepCompleted,
    StepFailed,
    StepScheduled,
    TimerFired,
    TimerStarted,
)
from durable_celery.workflow import UPDATE, Definition, Execution, Handlers, Note, read_note

CODEC = Codec()
#: 2026-11-22T16:00:00Z
EPOCH_MS = 1795363200000


#: Executions that a test made; they are evicted after it.
alive: list[Execution] = []


class Task:
    """Looks like a Celery task to a workflow."""

    def __init__(self, name: str, *, is_durable: bool = False) -> None:
        self.name = name
        self.is_durable = is_durable

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"{self.name} was called as a function: {args} {kwargs}")


charge, refund, notify = Task("shop.charge"), Task("shop.refund"), Task("shop.notify")
child = Task("shop.child", is_durable=True)


def handlers_of(function: Callable[..., Any]) -> Handlers:
    """Return what a function of a test answers; to be added to by its decorators."""
    if not hasattr(function, "handlers"):
        function.handlers = Handlers(is_async=inspect.iscoroutinefunction(function))  # type: ignore[attr-defined] # a test's mark
    handlers: Handlers = function.handlers  # type: ignore[attr-defined] # as above
    return handlers


def request(name: str, *args: Any, key: str = "k", **kwargs: Any) -> SignalReceived:
    """Return the request of an update."""
    return SignalReceived(name=UPDATE + name, payload=CODEC.encode([key, list(args), kwargs], "request"))


class Run:
    """One run: ``events`` is its log; each verb appends an input and lets the execution react to it."""

    def __init__(self, function: Callable[..., Any], *, workflow_id: str = "w-1") -> None:
        self.definition = Definition(name="test", function=function, handlers=handlers_of(function))
        self.workflow_id = workflow_id
        self.events: list[Recorded] = []
        self.now = EPOCH_MS
        #: Whether the execution is shown its own outputs again.
        self.echo = False
        #: Whether the execution is evicted after each turn, so that each turn begins with a replay.
        self.cold = False
        self.execution = self.new_execution()

    def new_execution(self) -> Execution:
        execution = Execution(self.definition, self.workflow_id, codec=CODEC)
        alive.append(execution)
        return execution

    # The log.

    def append(self, event: Event) -> Recorded:
        recorded = Recorded(seq=len(self.events) + 1, at=self.now, event=event)
        self.events.append(recorded)
        return recorded

    @property
    def outputs(self) -> list[Output]:
        return [item.event for item in self.events if isinstance(item.event, Output)]

    @property
    def last(self) -> Event:
        return self.events[-1].event

    @property
    def result(self) -> Any:
        return CODEC.decode(self.last.payload)

    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.outputs]

    def tasks(self) -> list[str]:
        return [event.task for event in self.outputs if isinstance(event, StepScheduled)]

    def cancelled(self) -> list[int]:
        return [event.target for event in self.outputs if isinstance(event, CommandCancelled)]

    # Turns.

    def turn(self, *inputs: Event) -> list[Event]:
        """Append inputs, feed what was not seen yet, append the outputs; return these."""
        for event in inputs:
            self.append(event)
        return self.react()

    def react(self) -> list[Event]:
        self.execution.feed(self.events[self.execution.position :], before_local=self.save)
        taken = self.commit()
        if not self.echo:
            # As the engine does where nothing came meanwhile: the execution need not see its own outputs.
            self.execution.position = len(self.events)
        if self.cold and not self.execution.closed:
            self.go_cold()
        return taken

    def save(self) -> None:
        self.commit()

    def commit(self) -> list[Event]:
        """Append what is not recorded yet."""
        taken = list(self.execution.take_outputs())
        for event in taken:
            self.append(event)
        return taken

    def replayed(self) -> Execution:
        """Replay the whole log in a new execution."""
        execution = self.new_execution()
        execution.feed(self.events, fresh_after=len(self.events))
        return execution

    def go_cold(self) -> None:
        """Evict the execution and replay the log in a new one."""
        self.execution.evict()
        self.execution = self.replayed()

    # Inputs.

    def start(self, *args: Any, start_at: int | None = None, expires_at: int | None = None, **kwargs: Any) -> Run:
        payload = CODEC.encode([list(args), kwargs], "arguments")
        self.turn(RunStarted(name="test", payload=payload, start_at=start_at, expires_at=expires_at))
        return self

    def complete(self, number: int, value: Any = None, *, attempt: int = 1) -> list[Event]:
        self.now += 1000
        return self.turn(StepCompleted(number=number, attempt=attempt, payload=CODEC.encode(value, "result")))

    def fail(self, number: int, error: BaseException, *, attempt: int = 1) -> list[Event]:
        self.now += 1000
        return self.turn(StepFailed(number=number, attempt=attempt, payload=failure_of(error, CODEC)))

    def fire(self, number: int) -> list[Event]:
        due = [e.due_at for e in self.outputs if isinstance(e, TimerStarted) and e.number == number]
        self.now = max([self.now, *due])
        return self.turn(TimerFired(number=number))

    def signal(self, name: str, value: Any = None) -> list[Event]:
        self.now += 1000
        return self.turn(SignalReceived(name=name, payload=CODEC.encode(value, "signal")))

    def update(self, name: str, *args: Any, key: str = "k", **kwargs: Any) -> list[Event]:
        self.now += 1000
        return self.turn(request(name, *args, key=key, **kwargs))

    def outcome(self, key: str = "k") -> Any:
        """Return the outcome of an update, or the exception that it is; None where there is none."""
        for event in self.outputs:
            note = read_note(event)
            if note in {(Note.UPDATED, key), (Note.REFUSED, key)}:
                failed = isinstance(event, LocalStepFailed)
                return rebuild(event.payload, CODEC) if failed else CODEC.decode(event.payload)
        return None

    def notes(self) -> list[tuple[str, str, Any]]:
        """Return what was published, and added to streams."""
        found = [(event, read_note(event)) for event in self.outputs]
        return [
            (str(note[0]), note[1], CODEC.decode(event.payload))
            for event, note in found
            if note is not None and note[0] in {Note.PUBLISHED, Note.STREAM}
        ]

    def cancel(self, reason: str = "") -> list[Event]:
        self.now += 1000
        return self.turn(CancelRequested(reason=reason))
