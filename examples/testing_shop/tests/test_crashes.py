"""Every place where a worker can die, a message can be lost or the store can fail: the order comes out the same."""

import pytest
from shop import models
from shop.workflows import checkout, farewell, large_order

from durable_celery.testing import NotCrashProofError, crash_everywhere


def test_a_checkout_stands_every_fault() -> None:
    report = crash_everywhere(checkout, "o-1", 1200, effects=orders, before=models.empty)

    # Steps were executed again, and their unique keys saw to it that nobody paid twice.
    assert report.executed_again["shop.tasks.charge"] > 0


def test_a_large_order_stands_every_fault() -> None:
    crash_everywhere(large_order, "o-1", 9000, signals={"approved": True}, effects=orders, before=models.empty)


def test_the_mail_may_go_out_twice() -> None:
    # A step runs at least once. For a mail the shop can live with that, and says so here.
    with pytest.raises(NotCrashProofError, match=r"shop\.tasks\.send_mail was executed 2 times under one key"):
        crash_everywhere(farewell, "o-1", effects=lambda: models.rows("mails"), before=models.empty)


def orders() -> object:
    return models.rows("payments"), models.rows("parcels")
