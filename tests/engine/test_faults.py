"""A fault at the n-th store call, for every n until the run is clean: each program still ends as it must."""

from __future__ import annotations

from itertools import count

import pytest

from durable_celery.testing.watch import Fault, Kind
from durable_celery.testing.world import World
from tests.engine.invariants import check_at_rest
from tests.engine.programs import PROGRAMS, Program
from tests.engine.vocabulary import VOCABULARY

#: What happens, how long the engine insists (seconds), and how many calls in a row go wrong.
FAULTS = [
    pytest.param(Kind.UNREACHED, 30.0, 0, id="one call does not reach the store"),
    pytest.param(Kind.UNREACHED, 1.0, 9, id="the store is away for longer than the patience"),
    pytest.param(Kind.LOST_REPLY, 30.0, 0, id="one reply is lost"),
    pytest.param(Kind.LOST_REPLY, 1.0, 9, id="replies are lost for longer than the patience"),
    pytest.param(Kind.CRASH_BEFORE, 30.0, 0, id="crash before a call"),
    pytest.param(Kind.CRASH_AFTER, 30.0, 0, id="crash after a call"),
]

#: Programs that have steps with several attempts.
REPEATING = {
    "retries",
    "foreign",
    "named_event",
    "named_event_that_is_cancelled",
    "progress_of_a_step",
    "attempts_that_take_too_long",
    "long_steps_that_outlive_their_run",
}


@pytest.mark.parametrize("program", [*PROGRAMS, *VOCABULARY], ids=lambda program: program.__name__)
def test_program_ends_as_it_must_without_a_fault(program: Program) -> None:
    world = World()

    expected = program(world)
    world.run()

    assert {name: world.outcome(name) for name in expected} == expected
    check_at_rest(world)
    assert max(world.executions.values(), default=1) == 1 or program.__name__ in REPEATING


@pytest.mark.parametrize(("kind", "patience", "more"), FAULTS)
@pytest.mark.parametrize("program", [*PROGRAMS, *VOCABULARY], ids=lambda program: program.__name__)
def test_program_ends_as_it_must_whichever_call_goes_wrong(
    program: Program, kind: Kind, patience: float, more: int
) -> None:
    _fault_each_call(program, kind, patience, more, runs_ahead=False)


@pytest.mark.parametrize(("kind", "patience", "more"), FAULTS)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_program_whose_steps_run_ahead_ends_as_it_must_whichever_call_goes_wrong(
    program: Program, kind: Kind, patience: float, more: int
) -> None:
    _fault_each_call(program, kind, patience, more, runs_ahead=True)


def _fault_each_call(program: Program, kind: Kind, patience: float, more: int, *, runs_ahead: bool) -> None:
    for number in count(1):
        world = World(patience=patience)
        world.runs_ahead = runs_ahead
        fault = Fault(kind, number, more)
        world.watch.hooks.append(fault)

        expected = program(world)
        world.run()

        assert {name: world.outcome(name) for name in expected} == expected, f"{fault.number}\n{world.story()}"
        check_at_rest(world)
        if not fault.is_spent:
            assert number > 6
            return
