"""Thousands of random histories. A seed that fails stands in the message; to live through it alone:

DURABLE_TEST_SEED=<seed> pytest tests/engine/test_chaos.py -k one_seed
"""

from __future__ import annotations

import os

import pytest

from tests.engine.chaos import Chaos

#: Seeds of one test; as many tests as blocks, so that they can run side by side.
PER_BLOCK = 250
BLOCKS = 8


def live(seed: int) -> Chaos:
    chaos = Chaos(seed)
    try:
        chaos.live()
    except BaseException as error:
        error.add_note(f"seed {seed}, program {chaos.tree}")
        raise
    return chaos


@pytest.mark.parametrize("block", range(BLOCKS))
def test_random_programs_end_as_they_must_whatever_goes_wrong(block: int) -> None:
    repeated = 0
    for seed in range(block * PER_BLOCK, (block + 1) * PER_BLOCK):
        repeated += sum(count > 1 for count in live(seed).world.executions.values())

    assert repeated, "nothing went wrong: the test does not test"


def test_a_seed_is_one_history() -> None:
    for seed in (3, 141, 592):
        first, second = live(seed).world, live(seed).world

        assert {name: first.history(name) for name in first.store.run_table} == {
            name: second.history(name) for name in second.store.run_table
        }


@pytest.mark.skipif("DURABLE_TEST_SEED" not in os.environ, reason="no DURABLE_TEST_SEED is given")
def test_one_seed() -> None:
    live(int(os.environ["DURABLE_TEST_SEED"]))
