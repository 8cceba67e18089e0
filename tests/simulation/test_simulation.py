"""Thousands of random histories. A seed that fails tells its shrunk story; `python -m tests.simulation` has more."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.simulation.chaos import Chaos, ViolationError, live
from tests.simulation.moves import MOVES, TROUBLE, table_of
from tests.simulation.programs import LIVES, SERIAL, Generator, barred, fits, nodes, owed
from tests.simulation.running import BLOCK, simulate
from tests.simulation.story import explain, tell
from tests.simulation.verbs import VERBS

#: Seeds of one test; as many tests as blocks, so that they can run side by side.
PER_BLOCK = 300
BLOCKS = 8
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("block", range(BLOCKS))
def test_random_programs_end_as_they_must_whatever_goes_wrong(block: int) -> None:
    tally: Counter[str] = Counter()
    for seed in range(block * PER_BLOCK, (block + 1) * PER_BLOCK):
        chaos = Chaos(seed)
        try:
            chaos.live()
        except ViolationError as failure:
            pytest.fail(explain(failure), pytrace=False)
        tally += chaos.tally

    for what in ("steps executed again", "refused: stale commit", "kill", "goes on", "fault: lost reply"):
        assert tally[what], f"no {what}: the test does not test"


def test_a_seed_is_one_history() -> None:
    for seed in (3, 141, 592):
        first, second = live(seed).world, live(seed).world

        assert {name: first.history(name) for name in first.store.run_table} == {
            name: second.history(name) for name in second.store.run_table
        }


def test_a_seed_is_one_history_in_every_process() -> None:
    code = "import sys; from tests.simulation.story import tell; print(tell(int(sys.argv[1])))"
    for seed in (27, 40):
        told = [
            subprocess.run(
                [sys.executable, "-c", code, str(seed)],
                cwd=ROOT,
                env={"PYTHONHASHSEED": hash_seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for hash_seed in ("1", "2")
        ]

        assert told[0] == told[1]
        assert told[0].strip() == tell(seed)


def test_the_choices_of_a_history_are_that_history() -> None:
    for seed in (5, 22, 77):
        first = live(seed)
        second = live(seed, first.chance.choices)

        assert second.tree == first.tree
        assert second.chance.choices == first.chance.choices
        assert second.world.watch.count == first.world.watch.count


def test_no_choices_are_the_plainest_history() -> None:
    chaos = live(0, {})

    assert chaos.tree == ["step", 1]
    assert chaos.world.kinds() == ["RunStarted", "StepScheduled", "StepCompleted", "RunCompleted"]


def test_every_verb_and_every_move_comes_up() -> None:
    trees = [Generator(Chaos(seed).chance.program).program() for seed in range(400)]
    verbs = {node[0] for tree in trees for node in nodes(tree)}

    assert {"step", "flaky", "broken", "again", "revocable", "late", "handles", "local", "sleep", "until"} <= verbs
    assert {"draw", "patched", "signal", "maybe", "race", "dropped step", "dropped child", "child"} <= verbs
    assert {"guarded", "race branch", "timeout", "wait for", LIVES, *SERIAL, *VERBS} <= verbs
    assert set(TROUBLE) < set(MOVES)


@pytest.mark.parametrize(
    ("tree", "value"),
    [
        (["step", 4], 4),
        (["series", ["step", 1], ["local", 2, 0]], [2, 1]),
        (["signal", "s1", 0], "value of s2"),
        (["race", 3, 1], ["step", 3]),
        (["timeout", ["step", 1], 3], 1),
        (["broken", 1], 2),
        (["map", 2, 1, 2], [2]),
        (["map some", 1, 2, 3, 4], [["completed", 4], ["completed", 5]]),
        (["map some", 2, 2, 3, 4], [["completed", 4], ["cancelled", None]]),
        (["map some", 1, 2, 3, 4], [["completed", 5], ["skipped", None]]),
        (["map branches", 2, ["step", 1]], [3]),
        (["tolerant gather", 1, 1, 2], [True, "cancelled", "failed"]),
        (["tolerant gather", 0, 1, 2], [True, "completed", "failed"]),
        (["saga", 1, ["step", 1], 1, 2, 3, 4], 2),
        (["saga", 0, ["step", 1], 1, 2, 3, 4], "undone"),
        (["poll", 1, "task", 2, None], 1),
        (["poll", 1, "task", 2, None], "no answer"),
        (["condition", None, ["step", 1]], "too late"),
        (["shield", 1], "kin"),
        (["kin", "wait", "brief"], "clean"),
    ],
)
def test_the_oracle_knows_a_wrong_result(tree: list[object], value: object) -> None:
    assert not fits(tree, value)


def test_the_oracle_knows_which_effects_are_owed() -> None:
    tree = ["series", ["step", 1], ["timeout", ["step", 2], 3], ["child", ["handles", 3, 4], "same"], ["race", 5, 1]]

    assert list(owed(tree)) == [1, 3, 4]


def test_the_oracle_knows_what_verbs_must_and_must_not_have_done() -> None:
    saga = ["saga", 0, ["step", 1], 2, 3, 4, 5, 6, 7]
    failed = ["saga", 1, ["step", 1], 2, 3, 4, 5, 6, 7]
    late = ["condition", 3, saga]
    tree = ["series", ["guarded", ["map", 1, 8, 9], 10], ["map some", 1, 2, 11, 12], ["tolerant gather", 0, 13, 14]]

    assert (list(owed(saga)), list(barred(saga))) == ([3, 4, 1], [5, 6, 7])
    assert (list(owed(failed)), list(barred(failed))) == ([3, 4, 5, 6, 1], [])
    assert (list(owed(late)), list(barred(late))) == ([], [])
    assert (list(owed(tree)), list(barred(tree))) == ([8, 9], [10])


def test_every_second_history_has_only_some_kinds_of_trouble() -> None:
    tables = [table_of(Chaos(seed).chance.shape) for seed in range(60)]
    some = [set(table) & set(TROUBLE) for table in tables if table is not MOVES]

    assert 20 < len(some) < 40
    assert max(map(len, some)) < len(TROUBLE)
    assert set.union(*some) == set(TROUBLE)


def test_no_history_begins_after_the_limit() -> None:
    assert simulate(0, 10 * BLOCK, 1, "memory", limit=0.0).tally == {}
