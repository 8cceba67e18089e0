"""``crash_everywhere``: a workflow that is run again and again, each time with one thing going wrong, at every place.

What must hold is what the library promises, and no more: a step may be *executed* again under its key, but the run
ends as without the fault, issues the same steps, and records one outcome for each. Whether executing a step again does
harm outside is the business of the user's tasks, and is held against ``effects``.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from durable_celery.errors import DurableError
from durable_celery.events import LocalStepCompleted, LocalStepFailed, RunCompleted, StepScheduled
from durable_celery.policy import type_name
from durable_celery.testing.faults import CLEAN, COLD, Case, Hand, cases_of
from durable_celery.testing.stubs import read_steps
from durable_celery.testing.system import NothingLeftError, System, plain_app
from durable_celery.testing.watch import Watch

if TYPE_CHECKING:
    from durable_celery.task import DurableTask

__all__ = ["CrashReport", "NotCrashProofError", "crash_everywhere"]

#: The id of the workflow in every run, so that its keys and its random numbers are always the same.
_ID = "crash-everywhere"
#: After how many moves of the clock a run is taken for one that never ends.
_ENDLESS = 10_000

Signals = Mapping[str, Any] | Iterable[tuple[str, Any]]


class NotCrashProofError(AssertionError):
    """A fault changed how a workflow ends, or what it leaves behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashReport:
    """What :func:`crash_everywhere` did when it found nothing."""

    #: How often the workflow was run, the clean runs included.
    runs: int
    #: How many faults there were to be tried; more than were tried where ``limit`` was reached.
    faults: int
    #: How many of those that were tried came to pass.
    struck: int
    #: How often each task was executed again under the same key, by name.
    executed_again: Mapping[str, int]

    def __str__(self) -> str:
        again = ", ".join(f"{name} {times} times" for name, times in sorted(self.executed_again.items()))
        end = f"the same end each time; executed again: {again or 'nothing'}"
        return f"{self.runs} runs, {self.struck} of {self.faults} faults, {end}"


def crash_everywhere(
    workflow: DurableTask[..., Any],
    /,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    steps: Mapping[Any, Any] | None = None,
    signals: Signals = (),
    effects: Any = None,
    before: Callable[[], object] | None = None,
    outcome: Callable[[Any], Any] | None = None,
    limit: int = 1000,
) -> CrashReport:
    """Run a workflow with a fault at every place, and compare each run with one without faults.

    The worker dies before or after a call to the store; the store does what it was asked for and reports a failure, or
    does not answer; a message is lost, comes twice or late. One run is replayed from its start at every turn.

    Args:
        workflow: the durable task.
        *args: its arguments.
        kwargs: its keyword arguments.
        steps: what tasks do instead of what they do; see :meth:`Environment.override`.
        signals: what the run is sent, (name, value) in order: each when the run waits for it.
        effects: what the tasks leave behind, which must be the same after each run: a function that looks, or a list,
            dict or set of the test that the tasks write to, which is put back before each run.
        before: brings the outside world to the same state before each run. Needed where ``effects`` is a function.
        outcome: what of the result must be the same; default is all of it.
        limit: how many faults are tried at most, spread evenly.

    Raises:
        NotCrashProofError: with the fault, both ends, and the story of the run.
        NonDeterminismError, SideEffectError, NothingLeftError: without any fault.
    """
    __tracebackhide__ = True
    pairs: Iterable[Any] = signals.items() if isinstance(signals, Mapping) else signals
    plan = _Plan(
        workflow=workflow,
        args=args,
        kwargs=dict(kwargs or {}),
        steps=dict(steps or {}),
        signals=list(pairs),
        world=_World(effects, before),
        part=outcome,
    )
    return plan.carry_out(limit)


@dataclass(slots=True, kw_only=True)
class _Seen:
    """How a run ended, and what it did on the way."""

    #: What must be the same, by what it is.
    facts: dict[str, Any]
    hand: Hand
    story: str = ""
    #: The attempts that were executed under each key, with the name of the task.
    attempts: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def again(self, clean: _Seen) -> Counter[str]:
        """Return how much oftener each task was executed under one key than without a fault."""
        found = Counter[str]()
        for (name, key), attempts in self.attempts.items():
            found[name] += max(0, len(attempts) - max(1, len(clean.attempts.get((name, key), ()))))
        return +found

    def repetitions(self, clean: _Seen) -> list[str]:
        """Say which steps were executed again, or for the first time as a later attempt, and what to do about it."""
        lines = []
        for (name, key), attempts in self.attempts.items():
            if attempts == clean.attempts.get((name, key)):
                continue
            if len(attempts) > 1:
                lines.append(f"{name} was executed {len(attempts)} times under one key, {key}.")
            elif attempts[0] > 1:
                lines.append(f"{name} was executed as attempt {attempts[0]} under the key {key}.")
        if lines:
            lines.append(
                "A step runs at least once: make its effect depend on current_step().key, and on nothing else."
            )
        return lines


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Keep what faults make Celery and this library say out of the log: it is asked for, and it is much."""
    loggers = [logging.getLogger(name) for name in ("durable_celery", "celery")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


class _World:
    """What lies outside of the library: it is put back before each run and looked at after it."""

    def __init__(self, effects: Any, before: Callable[[], object] | None) -> None:
        self._effects, self._before = effects, before
        self._first = None if callable(effects) else copy.deepcopy(effects)

    def reset(self) -> None:
        if not callable(self._effects) and isinstance(self._effects, list | dict | set):
            self._effects.clear()
            _fill(self._effects, self._first)
        if self._before is not None:
            self._before()

    def look(self) -> Any:
        return copy.deepcopy(self._effects() if callable(self._effects) else self._effects)


def _fill(into: Any, values: Any) -> None:
    (into.extend if isinstance(into, list) else into.update)(copy.deepcopy(values))


@dataclass(slots=True, kw_only=True)
class _Plan:
    """One workflow with its arguments, run as often as it takes."""

    workflow: DurableTask[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    steps: dict[Any, Any]
    signals: list[tuple[str, Any]]
    world: _World
    part: Callable[[Any], Any] | None
    #: What the run waited for when each signal was sent, in the first run; None as long as that lasts.
    moments: list[frozenset[str]] | None = None
    began: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))

    def carry_out(self, limit: int) -> CrashReport:
        __tracebackhide__ = True
        clean = self.run(CLEAN)
        cold = self.run(COLD)
        self._compare_clean(clean, cold)
        cases = cases_of(clean.hand)
        step = max(1, -(-len(cases) // limit))
        again, runs, struck = Counter[str](), 2, 0
        for case in cases[::step]:
            runs += 1
            try:
                with _quiet():
                    seen = self.run(case)
            except (DurableError, AssertionError) as error:
                raise NotCrashProofError(self._failure(case, clean, runs, error)) from error
            self._compare(case, clean, seen, runs)
            again += seen.again(clean)
            struck += seen.hand.has_struck
        return CrashReport(runs=runs, faults=len(cases), struck=struck, executed_again=dict(again))

    def run(self, case: Case) -> _Seen:
        """Run the workflow once, with a fault."""
        self.world.reset()
        watch, hand = Watch(), Hand(case)
        watch.hooks.append(hand)
        system = System(plain_app(self.workflow), now=self.began, cold=case is COLD, watch=watch)
        try:
            hand.system, system.broker.carrier = system, hand.carry
            system.calls.override(read_steps(self.steps, system.binding.app.tasks))
            self.workflow.apply_async(self.args, self.kwargs, task_id=_ID)
            self._drive(system)
            return self._look(system, hand)
        finally:
            system.close()

    def _drive(self, system: System) -> None:
        """Let the run go on to its end, and everything after it that messages still cause."""
        unsent, moments = list(self.signals), list[frozenset[str]]()
        for _ in range(_ENDLESS):
            system.settle()
            is_open = system.is_open(_ID)
            if is_open and unsent and (self._is_moment(system, unsent) or not system.pass_time()):
                moments.append(_waits_of(system))
                system.binding.client.signal(_ID, *unsent.pop(0))
            elif is_open and unsent:
                continue
            elif not is_open and not len(system.broker):
                self.moments = moments if self.moments is None else self.moments
                return
            elif not system.pass_time():
                raise NothingLeftError(system.what_waits())
        raise NothingLeftError(f"the clock was moved {_ENDLESS} times, and it goes on for ever\n{system.standing()}")

    def _is_moment(self, system: System, unsent: Sequence[tuple[str, Any]]) -> bool:
        """Whether the next signal is sent now: when the run waits for it, and as in the first run without faults.

        A signal that overtakes a step because the step's message was lost is no wrong of the workflow's.
        """
        now, sent = _waits_of(system), len(self.signals) - len(unsent)
        if self.moments is not None:
            return self.moments[sent : sent + 1] == [now]
        return f"signal {unsent[0][0]}" in now or "..." in now

    def _look(self, system: System, hand: Hand) -> _Seen:
        history = system.history(_ID)
        client = system.binding.client
        value = client.outcome(history[-1].event, _ID)
        if not isinstance(history[-1].event, RunCompleted):
            end = f"{type_name(type(value))}: {value}"
        else:
            end = self.part(value) if self.part else value
        attempts: dict[tuple[str, str], list[int]] = {}
        for one in system.calls.log:
            if one.key is not None:
                attempts.setdefault((one.task, one.key), []).append(one.attempt)
        facts = {
            "end": (type(history[-1].event).__name__, end),
            "steps": sorted(step for run in system.histories(_ID) for step in _steps(run)),
            "effects": self.world.look(),
        }
        return _Seen(facts=facts, hand=hand, story=system.story(_ID), attempts=attempts)

    # -- stories -----------------------------------------------------------------------------------------------------

    def _compare_clean(self, one: _Seen, other: _Seen) -> None:
        __tracebackhide__ = True
        for what in _difference(one, other):
            cure = {
                "effects": "Each run must begin from the same state: give before=..., which brings it about.",
                "end": "Let the steps return the same each time (steps={...}), or compare a part (outcome=...).",
            }.get(what, "Let the steps return the same each time (steps={...}).")
            raise NotCrashProofError(
                "\n".join(
                    [
                        f"{self._call()}: two runs without any fault differ, so nothing can be compared.",
                        "",
                        *_both(what, one, other, ("first", "second")),
                        "",
                        cure,
                    ]
                )
            )

    def _compare(self, case: Case, clean: _Seen, seen: _Seen, runs: int) -> None:
        __tracebackhide__ = True
        for what in _difference(clean, seen):
            advice = seen.repetitions(clean) if what == "effects" else []
            raise NotCrashProofError(
                "\n".join(
                    [
                        *self._heading(case, clean, runs),
                        "",
                        *_both(what, clean, seen, ("clean", "here")),
                        *advice,
                        "",
                        seen.story,
                    ]
                )
            )

    def _failure(self, case: Case, clean: _Seen, runs: int, error: BaseException) -> str:
        return "\n".join([*self._heading(case, clean, runs), "", "the run did not end:", str(error)])

    def _heading(self, case: Case, clean: _Seen, runs: int) -> list[str]:
        return [f"{self._call()} is not the same with a fault (run {runs})", "", f"the fault   {case.tell(clean.hand)}"]

    def _call(self) -> str:
        words = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())]
        return f"{self.workflow.name}({', '.join(words)})"


def _waits_of(system: System) -> frozenset[str]:
    """Return what the run waits for, one by one; of timers not their time, which faults put off."""
    run = system.store.get(_ID)
    return (
        frozenset(wait.partition(" until ")[0] for wait in run.waiting.split(", ")) if run is not None else frozenset()
    )


def _steps(history: Sequence[Any]) -> Iterable[str]:
    """Return what a run had done for it: each step with what its arguments were."""
    for item in history:
        match item.event:
            case StepScheduled(task=name, digest=digest):
                yield f"{name} #{digest}"
            case LocalStepCompleted(name=name) | LocalStepFailed(name=name):
                yield f"local {name}"
            case _:
                pass


def _difference(one: _Seen, other: _Seen) -> Iterable[str]:
    return (what for what in ("end", "steps", "effects") if one.facts[what] != other.facts[what])


def _both(what: str, one: _Seen, other: _Seen, names: tuple[str, str]) -> list[str]:
    heading = {
        "end": "it ends otherwise:",
        "steps": "it has other steps:",
        "effects": "it leaves other effects behind:",
    }[what]
    return [heading, *(f"  {name:<6}  {seen.facts[what]!r}" for name, seen in zip(names, (one, other), strict=True))]
