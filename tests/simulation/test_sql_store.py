"""The same histories on real databases: the SQL store is under the same oracle as the memory store."""

from __future__ import annotations

from itertools import count

import pytest

from durable_celery.store.sql import rules
from durable_celery.testing.watch import Fault, Kind
from durable_celery.testing.world import World
from tests.databases import Database
from tests.engine.programs import children
from tests.simulation.chaos import Chaos, ViolationError
from tests.simulation.sql_store import SimulatedSqlStore
from tests.simulation.stores import Place, sql_at
from tests.simulation.story import explain
from tests.store.invariants import check_invariants

#: Histories for each database: a step on a server costs more than one in memory.
SEEDS = {"sqlite": 40, "postgresql": 15}


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest) -> Place:
    """Give the session's tables as a place for histories; each empties them."""
    return sql_at(request.getfixturevalue(f"{request.param}_tables"))


@pytest.mark.slow
def test_random_programs_end_as_they_must_whatever_goes_wrong(place: Place) -> None:
    for seed in range(SEEDS[place.name]):
        try:
            Chaos(seed, place=place).live()
        except ViolationError as failure:
            pytest.fail(explain(failure), pytrace=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", Kind)
def test_program_ends_as_it_must_whichever_call_goes_wrong(kind: Kind, sqlite_tables: Database) -> None:
    place = sql_at(sqlite_tables)
    for number in count(1):
        world = World(make_store=place.make)
        fault = Fault(kind, number)
        world.watch.hooks.append(fault)

        expected = children(world)
        world.run()

        assert {name: world.outcome(name) for name in expected} == expected, f"call {number}\n{world.story()}"
        assert isinstance(world.store, SimulatedSqlStore)
        check_invariants(world.store)
        if not fault.is_spent:
            assert number > 10
            return


def test_a_bug_in_the_rules_becomes_a_short_story(sqlite_tables: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "has_unread", lambda run: rules.is_closed(run) and not run.delivered)
    place = sql_at(sqlite_tables)

    for seed in range(60):
        try:
            Chaos(seed, place=place).live()
        except ViolationError as failure:
            story = explain(failure, seconds=15)
            break
    else:
        pytest.fail("60 histories do not show the bug")

    assert "on sqlite" in story.splitlines()[0]
    assert any(line.startswith("I6: ") for line in story.splitlines()), story
