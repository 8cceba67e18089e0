"""The same histories on a real Redis server: its Lua is under the same oracle as the memory store."""

from __future__ import annotations

from itertools import count

import pytest

from durable_celery.testing.watch import Fault, Kind
from durable_celery.testing.world import World
from tests.engine.programs import Program, children, fan_out, signals
from tests.servers import RedisServer
from tests.simulation.chaos import Chaos, ViolationError
from tests.simulation.redis_store import SimulatedRedisStore
from tests.simulation.stores import Place, redis_at
from tests.simulation.story import explain
from tests.store.invariants import check_invariants

#: Seeds of one test; as many tests as blocks, so that they can run side by side.
PER_BLOCK = 75
BLOCKS = 4
#: Where the script of finish wakes the run, and what lets it sleep on.
WAKES = "if not is_closed(run) and has_unread(id) then"
SLEEPS = "if false then"


@pytest.fixture
def place(redis_server: RedisServer) -> Place:
    """Give the session's server as a place for histories; each empties its database."""
    return redis_at(redis_server.start().database_url(9))


@pytest.mark.parametrize("block", range(BLOCKS))
def test_random_programs_end_as_they_must_whatever_goes_wrong(block: int, place: Place) -> None:
    for seed in range(block * PER_BLOCK, (block + 1) * PER_BLOCK):
        try:
            Chaos(seed, place=place).live()
        except ViolationError as failure:
            pytest.fail(explain(failure), pytrace=False)


def test_a_seed_is_one_history(place: Place) -> None:
    def history(seed: int) -> object:
        world = Chaos(seed, place=place).live()
        return {name: world.history(name) for name in world.store.run_table}

    for seed in (3, 22):
        assert history(seed) == history(seed)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("program", [fan_out, signals, children], ids=lambda program: program.__name__)
def test_program_ends_as_it_must_whichever_call_goes_wrong(program: Program, kind: Kind, place: Place) -> None:
    for number in count(1):
        world = World(make_store=place.make)
        fault = Fault(kind, number)
        world.watch.hooks.append(fault)

        expected = program(world)
        world.run()

        assert {name: world.outcome(name) for name in expected} == expected, f"call {number}\n{world.story()}"
        assert isinstance(world.store, SimulatedRedisStore)
        check_invariants(world.store)
        if not fault.is_spent:
            assert number > 10
            return


def test_a_bug_in_the_lua_becomes_a_short_story(redis_server: RedisServer) -> None:
    url = redis_server.start().database_url(9)
    place = redis_at(url, edit=lambda text: text.replace(WAKES, SLEEPS))

    for seed in range(60):
        try:
            Chaos(seed, place=place).live()
        except ViolationError as failure:
            story = explain(failure, seconds=15)
            break
    else:
        pytest.fail("60 histories do not show the bug")

    assert "on redis" in story.splitlines()[0]
    assert any(line.startswith("I6: ") for line in story.splitlines()), story
    assert len(story.splitlines()) <= 70, story
