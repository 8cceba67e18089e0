"""A failing seed becomes a short story: shown with bugs that are put into the store, and into the engine's retries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from durable_celery.events import Event, StepCompleted, StepFailed
from durable_celery.store.memory import MemoryStore
from durable_celery.store.protocol import Committed, Finished, Lease, StepKey
from tests.simulation.chaos import Chaos, ViolationError
from tests.simulation.stores import MEMORY, Place
from tests.simulation.story import explain

#: A bug that more histories than these do not show is no good example.
ENOUGH = 2000


class Unfenced(MemoryStore):
    """Takes the outputs of a turn that has lost its lease."""

    def commit(self, lease: Lease, outputs: Sequence[Event], **given: Any) -> Committed:
        record = self.run_table[lease.workflow_id].record
        if record.owner:
            lease = replace(lease, token=record.token, owner=record.owner)
        return super().commit(lease, outputs, **given)


class Deaf(MemoryStore):
    """Loses a wake-up: what came during a turn is not looked at when the turn ends."""

    def commit(self, lease: Lease, outputs: Sequence[Event], **given: Any) -> Committed:
        answer = super().commit(lease, outputs, **given)
        if given["hold"] or not answer.held:
            return answer
        self._give_back(self.run_table[lease.workflow_id])
        return replace(answer, held=False, events=())


class Forgetful(MemoryStore):
    """Records an outcome whoever gives it."""

    def finish(self, key: StepKey, outcome: StepCompleted | StepFailed, **given: Any) -> Finished:
        run = self.run_table.get(key.workflow_id)
        if run is not None and not run.record.status.is_closed and key.number not in run.steps:
            self._append(run, outcome)
        return super().finish(key, outcome, **given)


def first_failure(place: Place) -> ViolationError:
    for seed in range(ENOUGH):
        try:
            Chaos(seed, place=place).live()
        except ViolationError as failure:
            return failure
    return pytest.fail(f"{ENOUGH} histories do not show the bug")


@pytest.mark.parametrize(("store", "invariants"), [(Unfenced, {"I4"}), (Deaf, {"I6", "I5"}), (Forgetful, {"I2", "I3"})])
def test_a_bug_becomes_a_short_story(store: type[MemoryStore], invariants: set[str]) -> None:
    place = replace(MEMORY, name=store.__name__, make=store)

    story = explain(first_failure(place), seconds=20)

    head, *lines = story.splitlines()
    assert f"on {store.__name__}" in head
    assert any(line.startswith(tuple(f"{invariant}:" for invariant in invariants)) for line in lines), story
    moves = [line for line in lines if line[:4].strip().isdigit() and line[4:6] == "  "]
    assert len(moves) <= 16, story
    assert len(lines) <= 70, story


def test_a_shrunk_history_fails_again_by_its_choices_alone() -> None:
    place = replace(MEMORY, name="unfenced", make=Unfenced)
    failure = first_failure(place)

    with pytest.raises(ViolationError) as caught:
        Chaos(failure.chaos.seed, failure.chaos.chance.choices, place=place).live()

    assert caught.value.found == failure.found
