"""For random programs of both forms: what a run does depends on its inputs in their order, and on nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from durable_celery.events import Output, Recorded
from durable_celery.queries import _read
from tests.workflow.log import Run, alive
from tests.workflow.programs import BRANCHES, LEAVES, canonical, ran, run_program

leaves = st.tuples(st.sampled_from(LEAVES), st.integers(0, 6))
bodies: st.SearchStrategy[tuple[Any, ...]] = st.recursive(
    st.lists(leaves, min_size=1, max_size=3).map(tuple),
    lambda inner: st.lists(leaves | st.tuples(st.sampled_from(BRANCHES), inner), min_size=1, max_size=4).map(tuple),
    max_leaves=8,
)
choices = st.lists(st.integers(0, 200), max_size=14)
many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def sweep() -> None:
    while alive:
        alive.pop().evict()


def inputs_of(run: Run) -> list[Recorded]:
    return [item for item in run.events if not isinstance(item.event, Output)]


@many
@given(body=bodies, choices=choices, is_async=st.booleans())
def test_a_cold_replay_issues_nothing_new_and_stands_where_the_warm_run_stands(
    body: Any, choices: list[int], is_async: bool
) -> None:
    run, _ = run_program(body, choices, is_async=is_async)
    count = len(ran)
    cold = run.replayed()
    assert cold.take_outputs() == ()
    assert (cold.closed, cold.waiting, cold.position) == (run.execution.closed, run.execution.waiting, len(run.events))
    assert len(ran) == count, "no local step runs again"
    sweep()


@many
@given(body=bodies, choices=choices, is_async=st.booleans())
def test_a_run_that_is_evicted_and_replayed_after_every_turn_gives_the_same_history(
    body: Any, choices: list[int], is_async: bool
) -> None:
    run, ends = run_program(body, choices, is_async=is_async)
    for end, following in pairwise(ends):
        again = Run(run.definition.function)
        again.events = run.events[:end]
        again.go_cold()
        again.now = run.events[end].at
        again.turn(run.events[end].event)
        assert canonical(again) == canonical_prefix(run, following)
        again.execution.evict()
        assert again.execution.take_outputs() == ()
    sweep()


def canonical_prefix(run: Run, end: int) -> list[str]:
    part = Run(run.definition.function)
    part.events = run.events[:end]
    return canonical(part)


@many
@given(body=bodies, choices=choices, is_async=st.booleans(), sizes=st.lists(st.integers(1, 5), min_size=1))
def test_the_same_inputs_in_other_batches_give_the_same_outputs(
    body: Any, choices: list[int], is_async: bool, sizes: list[int]
) -> None:
    run, _ = run_program(body, choices, is_async=is_async)
    inputs, other = inputs_of(run), Run(run.definition.function)
    turn = 0
    while inputs:
        size = sizes[turn % len(sizes)]
        batch, inputs = inputs[:size], inputs[size:]
        turn += 1
        # Each input keeps the time at which it was recorded; what stands before the turn is in the log already.
        for item in batch:
            other.now = item.at
            other.append(item.event)
        other.react()
    assert canonical(other) == canonical(run)
    assert other.execution.closed == run.execution.closed
    assert other.replayed().take_outputs() == ()
    sweep()


@many
@given(body=bodies, choices=choices, is_async=st.booleans(), cut=st.integers(0, 30))
def test_an_execution_that_sees_its_own_outputs_again_goes_on_unchanged(
    body: Any, choices: list[int], is_async: bool, cut: int
) -> None:
    run, ends = run_program(body, choices, is_async=is_async)
    echoing, _ = run_program(body, choices, is_async=is_async, echo=True)
    assert canonical(echoing) == canonical(run)

    half = ends[cut % len(ends)]
    cold = run.new_execution()
    cold.feed(run.events[:half])
    assert cold.take_outputs() == ()
    # The rest in one piece: inputs, and outputs that are records here.
    cold.feed(run.events[half:])
    assert cold.take_outputs() == ()
    assert cold.waiting == run.execution.waiting
    sweep()


@many
@given(body=bodies, choices=choices, is_async=st.booleans())
def test_a_query_reads_the_state_that_the_warm_run_has(body: Any, choices: list[int], is_async: bool) -> None:
    run, _ = run_program(body, choices, is_async=is_async)
    if not run.execution.closed:
        expected, count = list(run.execution.state.trace), len(ran)
        assert _read(run.new_execution(), run.events, lambda state: list(state.trace)) == expected
        assert len(ran) == count, "no local step runs"
    sweep()


def test_histories_do_not_depend_on_the_hash_seed() -> None:
    outputs = []
    for seed in ("0", "1", "4711"):
        done = subprocess.run(
            [sys.executable, "-m", "tests.workflow.programs", "60"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.append(done.stdout.splitlines())
    assert len(outputs[0]) == 120
    assert outputs[0] == outputs[1] == outputs[2]
