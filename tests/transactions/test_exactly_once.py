"""Attempts of one step that end, or stand still, at every place around the commit: the effect is there once."""

from __future__ import annotations

from typing import Any

import pytest

from durable_celery.errors import PayloadError, RetryAfter
from durable_celery.transactions import exactly_once
from durable_celery.transactions.exactly_once import Lost
from tests.transactions.banks import PLACES, Bank, Died, Parallel, Pulse, Watched

places = pytest.mark.parametrize("place", PLACES)


def test_an_attempt_takes_effect_and_a_repeat_finds_its_result(bank: Bank) -> None:
    pulses = [Pulse(), Pulse(), Pulse()]

    assert [bank.attempt(number, pulse=pulse) for number, pulse in enumerate(pulses, 1)] == [1, 1, 1]

    assert (bank.balance, bank.rows) == (1, 1)
    assert [pulse.settled for pulse in pulses] == [(1,)] * 3


@places
def test_an_attempt_that_dies_leaves_all_of_its_effect_or_nothing(bank: Bank, place: str) -> None:
    def die(here: str) -> None:
        if here == place:
            raise Died

    with pytest.raises(Died):
        bank.attempt(1, die)
    assert bank.balance == (place == "committed")

    assert bank.attempt(2) == 1
    assert (bank.balance, bank.rows) == (1, 1)


@places
def test_of_two_attempts_at_once_one_takes_effect(bank: Bank, place: str) -> None:
    """The first stands still there, as a process that was given up does, and goes on while the second is under way."""
    first = Parallel(bank, 1, place)
    # It may have to wait for the first, whose locks the database holds.
    second = Parallel(bank, 2)
    second.give_time(0.5)

    outcomes = [first.end(), second.end()]

    assert bank.balance == 1
    values = [value for value in outcomes if not isinstance(value, Lost)]
    assert values
    assert set(values) == {1}
    if place in {"before it is noted", "noted"}:
        assert outcomes[1] == 1


def test_an_older_attempt_finds_the_outcome_of_a_newer_one(bank: Bank) -> None:
    assert bank.attempt(2) == 1
    assert bank.attempt(1) == 1
    assert bank.balance == 1


def test_an_older_attempt_does_not_begin_after_a_newer_one_has_failed(bank: Bank) -> None:
    """The failure of the newer one may be in the log by now."""
    with pytest.raises(ZeroDivisionError):
        bank.attempt(2, result=lambda _: 1 / 0)
    with pytest.raises(Lost, match=r"attempt 2 of step w/1\.1@7 has begun, this is 1"):
        bank.attempt(1)

    assert bank.balance == 0
    assert bank.attempt(3) == 1


@pytest.mark.parametrize("place", ["noted", "in the task"])
def test_an_attempt_that_was_given_up_does_not_commit_what_a_newer_one_has_failed_with(bank: Bank, place: str) -> None:
    """The workflow has heard of the failure: it may have given the money back."""
    first = Parallel(bank, 1, place)
    with pytest.raises(ZeroDivisionError):
        bank.attempt(2, result=lambda _: 1 / 0)

    assert isinstance(first.end(), Lost)
    assert bank.balance == 0


def test_two_attempts_of_one_number_take_effect_once(bank: Bank) -> None:
    """As after a store that has lost what it had acknowledged, and counts attempts anew."""
    first = Parallel(bank, 1, "in the task")
    assert bank.attempt(1) == 1

    assert isinstance(first.end(), Lost)
    assert bank.balance == 1


@pytest.mark.parametrize("is_committed", [True, False])
def test_after_a_commit_without_answer_the_database_is_asked(
    bank: Bank, is_committed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Watched.work

    def work(ledger: Watched, body: Any) -> Any:
        if is_committed:
            real(ledger, body)
        else:

            def rolled_back() -> Any:
                body()
                raise bank.away("no answer", {}, Exception())

            real(ledger, rolled_back)
        raise bank.away("no answer", {}, Exception())

    monkeypatch.setattr(Watched, "work", work)
    if is_committed:
        assert bank.attempt(1) == 1
    else:
        with pytest.raises(bank.away):
            bank.attempt(1)
    assert bank.balance == is_committed


def test_a_database_that_is_away_is_asked_again_and_then_later(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    real, refused = Watched.add, 3

    def add(ledger: Watched, key: str, attempt: int) -> bool:
        nonlocal refused
        if refused:
            refused -= 1
            raise bank.away("away", {}, Exception())
        return real(ledger, key, attempt)

    monkeypatch.setattr(Watched, "add", add)
    assert (bank.attempt(1), refused) == (1, 0)

    monkeypatch.setattr(exactly_once, "_PATIENCE", 0.1)
    refused = 1000
    with pytest.raises(RetryAfter, match="the database of a transactional step is away"):
        bank.attempt(1)
    assert bank.balance == 1


def test_a_result_that_cannot_be_recorded_takes_no_effect(bank: Bank) -> None:
    with pytest.raises(PayloadError):
        bank.attempt(1, result=lambda _: object())

    assert bank.balance == 0


def test_a_step_without_attempts_left_is_only_looked_for(bank: Bank) -> None:
    """It has lost its process too often: where one of them had committed, that is the outcome."""
    lost = Pulse(is_lost=True)
    with pytest.raises(Lost):
        bank.attempt(3, pulse=lost)
    assert (lost.losses, bank.balance) == (1, 0)
    # None of those before can commit now.
    with pytest.raises(Lost):
        bank.attempt(2)
    assert bank.attempt(4) == 1

    late = Pulse(is_lost=True)
    assert bank.attempt(5, pulse=late) == 1
    assert (late.losses, bank.balance) == (0, 1)


def test_a_workflow_id_that_is_used_again_has_steps_of_its_own(bank: Bank) -> None:
    assert [bank.attempt(1, pulse=Pulse(run=run)) for run in "78"] == [1, 2]
    assert (bank.balance, bank.rows) == (2, 2)


def test_rows_go_when_they_are_too_old_for_any_message(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exactly_once, "_CLEARING", 1)
    monkeypatch.setattr("time.time", lambda: 1_000_000_000.0)
    bank.attempt(1, pulse=Pulse(run="1"))
    assert bank.rows == 1
    monkeypatch.setattr("time.time", lambda: 1_000_000_000.0 + 31 * 86400)
    bank.attempt(1, pulse=Pulse(run="2"))

    assert (bank.rows, bank.balance) == (1, 2)
