"""The outbox of each database under several relays: an entry is in one hand at a time; only what was relayed goes."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import MetaData, create_engine

from durable_celery.errors import StoreUnavailableError
from durable_celery.outbox import Entry, Later, Parked, Shelf
from durable_celery.outbox.tables import SqlOutbox, SqlShelf, outbox_table
from tests.transactions.banks import sql_url


class Box:
    """An outbox: where entries are added, and as many relays as are wanted."""

    def __init__(self, add: Callable[[str], None], shelf: Callable[[], Shelf]) -> None:
        self.add, self.shelf = add, shelf

    def hand_out(self, take: Callable[[Entry], Any] = lambda _: None) -> list[str]:
        """Hand out what is due; return the workflow ids."""
        taken: list[str] = []

        def note(entry: Entry) -> Any:
            taken.append(entry.workflow_id)
            return take(entry)

        assert self.shelf().hand_out(note, 100) == len(taken)
        return taken


@pytest.fixture(params=["sqlite", "postgresql", "mariadb", "django"])
def box(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Box]:
    """Give an empty outbox."""
    if request.param == "django":
        yield django_box()
        return
    url, metadata = sql_url(request.param, tmp_path), MetaData()
    table = outbox_table(metadata, f"t_{uuid.uuid4().hex[:10]}")
    engine = create_engine(url, connect_args={"timeout": 0.2} if request.param == "sqlite" else {})
    metadata.create_all(engine)

    def add(workflow_id: str) -> None:
        with engine.begin() as connection:
            SqlOutbox(connection, table).add(Entry(kind="start", workflow_id=workflow_id, body="{}"))

    yield Box(add, lambda: SqlShelf(engine, table))
    metadata.drop_all(engine)
    engine.dispose()


def django_box() -> Box:
    from tests.transactions.django_bank import DjangoBank

    DjangoBank()
    from durable_celery.contrib.django import outbox
    from durable_celery.contrib.django.models import OutboxEntry
    from durable_celery.contrib.django.outbox import DjangoShelf

    rows: Any = OutboxEntry
    rows.objects.all().delete()

    def add(workflow_id: str) -> None:
        outbox().add(Entry(kind="start", workflow_id=workflow_id, body="{}"))

    return Box(add, lambda: DjangoShelf("default"))


def elsewhere(call: Callable[[], Any]) -> Any:
    """Call something in a thread of its own; return what it returned, or raised."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(call())
        except Exception as error:  # noqa: BLE001 - it is looked at
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    return found[0]


def test_entries_are_handed_out_in_their_order_and_go(box: Box) -> None:
    for name in "abc":
        box.add(name)

    assert [box.hand_out(), box.hand_out()] == [["a", "b", "c"], []]


def test_what_one_relay_has_in_hand_no_other_gets(box: Box) -> None:
    box.add("a")
    others: list[Any] = []

    def take(_: Entry) -> None:
        others.append(elsewhere(box.hand_out))

    assert box.hand_out(take) == ["a"]
    # SQLite has one lock for all: there the other relay is told to come again.
    assert others == [[]] or isinstance(others[0], StoreUnavailableError)
    assert box.hand_out() == []


def test_a_row_that_takes_the_place_of_another_is_not_deleted_with_it(box: Box) -> None:
    """A relay deletes by number what it had in hand; a number that is used again would be another entry by then."""
    box.add("a")
    numbers: list[str] = []
    for name in "bcd":
        numbers += box.hand_out()
        box.add(name)
    assert numbers == ["a", "b", "c"]
    assert box.hand_out() == ["d"]


def test_what_is_to_be_tried_again_waits_and_what_is_parked_stays(box: Box) -> None:
    box.add("later")
    box.add("parked")
    verdicts = {"later": Later(3600.0, "not now"), "parked": Parked("never")}

    assert box.hand_out(lambda entry: verdicts[entry.workflow_id]) == ["later", "parked"]
    assert box.hand_out() == []


def test_a_relay_that_fails_amid_gives_all_of_it_back(box: Box) -> None:
    box.add("a")
    box.add("b")

    def take(entry: Entry) -> None:
        if entry.workflow_id == "b":
            raise StoreUnavailableError("away")

    with pytest.raises(StoreUnavailableError):
        box.hand_out(take)
    assert box.hand_out() == ["a", "b"]
