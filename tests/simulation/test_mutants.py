"""The simulator finds known mistakes: each is put into the product, and histories are lived through until one shows it.

For the table, with more patience: python -m tests.simulation.mutants
"""

from __future__ import annotations

import pytest

from tests.servers import RedisServer
from tests.simulation.chaos import Chaos, ViolationError
from tests.simulation.mutants import MUTANTS, hunt, violation
from tests.simulation.mutation import Mutant
from tests.simulation.redis_mutants import OF_THE_LUA, LuaMutant
from tests.simulation.stores import redis_at

#: Each is caught within far fewer histories; chance may change with the programs and the schedule.
LONGEST = 4000
LONGEST_ON_REDIS = 600


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_simulator_finds_that(mutant: Mutant) -> None:
    catch = hunt(mutant, LONGEST)

    assert catch is not None, f"{LONGEST} histories do not show it: {mutant.where.__qualname__}: {mutant.wrong!r}"
    assert not violation(catch.seed), "the same history has something wrong with it without the mistake"


def test_a_mutant_that_does_not_fit_its_method_any_more_says_so() -> None:
    stale = Mutant("a line is left out", "rule 1", Mutant.applied, "a line that is not there")

    with pytest.raises(LookupError, match="not once"), stale.applied():
        pass


def test_names_are_told_once() -> None:
    names = [mutant.name for mutant in MUTANTS]

    assert len(set(names)) == len(names) >= 30


@pytest.mark.parametrize("mutant", OF_THE_LUA, ids=lambda mutant: mutant.name)
def test_simulator_finds_in_the_lua_that(mutant: LuaMutant, redis_server: RedisServer) -> None:
    place = redis_at(redis_server.start().database_url(8), edit=mutant.edit)

    for seed in range(LONGEST_ON_REDIS):
        try:
            Chaos(seed, place=place).live()
        except ViolationError:
            return
    pytest.fail(f"{LONGEST_ON_REDIS} histories do not show it")
