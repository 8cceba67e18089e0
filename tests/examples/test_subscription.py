"""The subscription of the examples, ten years of it, in the test's own process and time."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import pytest

from durable_celery.testing import Environment, fails

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "subscription.py"
MONTH = timedelta(days=30)


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONTH_SECONDS", str(MONTH.total_seconds()))
        spec = importlib.util.spec_from_file_location("subscription", EXAMPLE)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Payloads of failures name their classes by the module.
        patch.setitem(sys.modules, "subscription", module)
        spec.loader.exec_module(module)
        yield module


@pytest.mark.parametrize("is_cold", [False, True])
def test_ten_years_are_a_hundred_and_twenty_short_runs(example: ModuleType, *, is_cold: bool) -> None:
    with Environment(example.app, cold=is_cold) as durable:
        run = durable.start(example.subscription, "ann", "basic")
        for year in range(10):
            durable.skip(MONTH * 12 - timedelta(hours=1))
            durable.signal(run, "change", {"plan": "pro" if year % 2 else "basic"})
            durable.skip(timedelta(hours=1))

        assert run.describe().run == 121
        assert [call.args[2] for call in durable.calls(example.charge) if call.args[1] != 7] == list(range(1, 122))
        assert len(run.history()) < 10
        assert run.describe().length == len(run.history())
        durable.signal(run, "change", {"leave": True})
        assert run.get() == "ann leaves pro in month 121 and has paid 983"


def test_declined_card_is_tried_again_for_days_and_then_the_subscription_is_paused(example: ModuleType) -> None:
    with Environment(example.app) as durable:
        durable.override({example.charge: fails(3, example.CardDeclinedError("no")).then(5)})
        run = durable.start(example.subscription, "ann", "basic")
        durable.skip(days=29)
        assert [one.attempt for one in durable.executed(example.charge)] == [1, 2, 3, 4]
        assert not durable.calls(example.mail)

        durable.override({example.charge: fails(4, example.CardDeclinedError("no")).then(5)})
        durable.skip(days=29)
        assert len(durable.calls(example.mail)) == 1

        durable.skip(days=300)
        assert len(durable.executed(example.charge)) == 8, "nothing is charged while it is paused"
        durable.signal(run, "change", {"paused": False})
        durable.skip(days=30)
        assert len(durable.executed(example.charge)) == 9


def test_change_that_comes_between_two_months_is_not_lost(example: ModuleType) -> None:
    with Environment(example.app) as durable:
        run = durable.start(example.subscription, "ann", "basic")
        for month in range(1, 6):
            # At the very instant at which the month ends, before anybody has noticed.
            durable.system.clock.now = durable.system.clock.now + round(MONTH.total_seconds() * 1000)
            durable.signal(run, "change", {"plan": "pro" if month % 2 else "basic"})
            durable.settle()
            durable.skip(seconds=1)

        durable.signal(run, "change", {"leave": True})
        assert run.get().startswith("ann leaves pro in month 6")
