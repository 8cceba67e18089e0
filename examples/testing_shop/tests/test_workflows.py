"""The workflows with the `durable` fixture: no server, no worker, and a week passes in a millisecond."""

from datetime import UTC, datetime, timedelta
from unittest.mock import call

import pytest
from shop import models
from shop.tasks import CardDeclinedError, charge, refund, send_mail, ship
from shop.workflows import checkout, farewell, large_order

from durable_celery.testing import Environment, fails, raises


def test_an_order_is_charged_and_shipped(durable: Environment) -> None:
    assert durable.run(checkout, "o-1", 1200) == "parcel-o-1"

    assert [row[1:] for row in models.rows("payments")] == [("o-1", 1200, 0)]
    assert [row[1:] for row in models.rows("parcels")] == [("o-1",)]


def test_a_declined_card_ends_the_order(durable: Environment) -> None:
    with pytest.raises(CardDeclinedError):
        durable.run(checkout, "o-1", 20_000)

    assert models.rows("parcels") == []


def test_a_bank_that_is_down_for_a_moment_costs_time_only(durable: Environment) -> None:
    began = durable.now

    assert durable.run(checkout, "o-1", 1200, steps={charge: fails(2).then("pay-o-1")}) == "parcel-o-1"

    # The task's own autoretry_for: two retries, 30 seconds each.
    assert durable.executions["shop.tasks.charge"] == 3
    assert durable.now - began == timedelta(minutes=1)


def test_a_large_order_waits_for_its_approval(durable: Environment) -> None:
    handle = durable.start(large_order, "o-1", 9000)
    durable.skip(days=1)
    assert "signal approved" in handle.describe().waiting
    assert durable.calls(ship) == []

    durable.signal(handle, "approved", True)

    assert handle.get() == "parcel-o-1"


def test_a_large_order_that_nobody_approves_is_refunded(durable: Environment) -> None:
    assert durable.run(large_order, "o-1", 9000) == "refunded"

    assert durable.calls(refund) == [call("o-1")]
    assert [row[1:] for row in models.rows("payments")] == [("o-1", 9000, 1)]


def test_a_refund_that_fails_is_seen(durable: Environment) -> None:
    with pytest.raises(ValueError, match="no such payment"):
        durable.run(large_order, "o-1", 9000, steps={refund: raises(ValueError("no such payment"))})


def test_the_mail_goes_out_a_week_later(durable: Environment) -> None:
    durable.freeze(datetime(2030, 12, 24, tzinfo=UTC))

    handle = farewell.delay("o-1")
    durable.skip(days=6, hours=23)
    assert durable.calls(send_mail) == []
    durable.skip(hours=1)

    assert durable.calls(send_mail) == [call("o-1", "Are you happy with it?")]
    assert durable.now == datetime(2030, 12, 31, tzinfo=UTC)
    assert handle.successful()


def test_the_history_reads_as_a_story(durable: Environment) -> None:
    handle = durable.start(checkout, "o-1", 1200)

    story = durable.history(handle)

    assert "step 1     shop.tasks.charge -> 'pay-o-1'" in story
    assert "completed  -> 'parcel-o-1'" in story
