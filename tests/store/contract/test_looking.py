"""`get`, `history` and `runs`: what people and replays see."""

from __future__ import annotations

import pytest

from durable_celery.store.protocol import RunStatus, Store
from tests.store.backends import Backend
from tests.store.moves import begin, close, deliver, new, record, run_messages, signal, sweep, take


def test_unknown_run_has_no_record_and_no_history(store: Store) -> None:
    assert store.get("w") is None
    assert store.history("w") == []


def test_history_is_read_in_parts(store: Store) -> None:
    begin(store)
    for number in range(450):
        signal(store, signal_key=str(number))

    whole = store.history("w")

    assert [item.seq for item in whole] == list(range(1, 452))
    assert store.history("w", after=300) == whole[300:]
    assert store.history("w", after=10, limit=5) == whole[10:15]
    assert store.history("w", limit=200) == whole[:200]
    assert store.history("w", after=200, limit=251) == whole[200:]
    assert store.history("w", after=451) == []
    assert store.history("w", after=9999) == []


def test_runs_are_listed_newest_first(backend: Backend) -> None:
    store = backend.store
    for number in range(5):
        store.start(new(f"w-{number}"))
    listed = store.runs().runs

    assert {run.workflow_id for run in listed} == {f"w-{number}" for number in range(5)}
    places = [(run.created_at, run.workflow_id) for run in listed]
    assert places == sorted(places, reverse=True)
    assert listed[0] == record(store, listed[0].workflow_id)


def test_runs_are_read_page_by_page(store: Store) -> None:
    for number in range(23):
        begin(store, workflow_id=f"w-{number:02}")
        if number % 3 == 0:
            close(store, f"w-{number:02}")

    seen: list[str] = []
    cursor: str | None = None
    pages = 0
    while True:
        page = store.runs(cursor=cursor, limit=5)
        seen += [run.workflow_id for run in page.runs]
        pages += 1
        assert len(page.runs) == 5 or page.cursor is None
        if (cursor := page.cursor) is None:
            break

    assert seen == [run.workflow_id for run in store.runs().runs]
    assert (len(set(seen)), pages) == (23, 5)


def test_a_page_that_ends_with_the_last_run_has_no_cursor(store: Store) -> None:
    for number in range(4):
        store.start(new(f"w-{number}"))

    assert store.runs(limit=4).cursor is None
    assert store.runs(limit=3).cursor is not None


def test_runs_are_found_by_status_and_name(store: Store) -> None:
    for number in range(12):
        name = "shop.refund" if number % 4 == 0 else "shop.checkout"
        store.start(new(f"w-{number}", name=name))
    for number in range(6):
        taken = take(store, f"w-{number}")
        store.commit(taken.lease, [], read=1, waiting="", hold=False)
    close(store, "w-0")
    deliver(store, "w-0")
    close(store, "w-1")
    blocked = take(store, "w-2")
    store.release("w-2", blocked.lease.owner, delay=60.0, reason="x")

    def found(status: RunStatus | None = None, name: str | None = None, limit: int = 50) -> set[str]:
        return {run.workflow_id for run in store.runs(status=status, name=name, limit=limit).runs}

    assert found(RunStatus.COMPLETED) == {"w-0", "w-1"}
    assert found(RunStatus.BLOCKED) == {"w-2"}
    assert found(RunStatus.RUNNING) == {"w-3", "w-4", "w-5"}
    assert found(RunStatus.PENDING) == {f"w-{number}" for number in range(6, 12)}
    assert found(RunStatus.FAILED) == set()
    assert found(name="shop.refund") == {"w-0", "w-4", "w-8"}
    assert found(RunStatus.COMPLETED, "shop.refund", limit=1) == {"w-0"}
    assert found(RunStatus.PENDING, "shop.refund", limit=1) == {"w-8"}


def test_a_rare_match_is_found_behind_many_others(store: Store) -> None:
    store.start(new("needle", name="shop.refund"))
    for number in range(30):
        store.start(new(f"w-{number}"))

    page = store.runs(name="shop.refund", limit=2)

    assert [run.workflow_id for run in page.runs] == ["needle"]
    assert page.cursor is None


@pytest.mark.parametrize(
    "workflow_id",
    ["a:b", "a|b", "a/b/1.2", "a%b", "a*b", "a?[x]", "#x", "r:x", "s1:x", "12", "a\\b", "'\"`$", "~" * 255],
)
def test_ids_may_look_like_anything_printable(backend: Backend, workflow_id: str) -> None:
    store = backend.store
    begin(store, workflow_id=workflow_id)
    begin(store, workflow_id="other")
    signal(store, workflow_id, signal_key=workflow_id)
    backend.advance(10)

    assert run_messages(store) == [workflow_id]
    assert record(store, workflow_id).length == 2
    assert {run.workflow_id for run in store.runs().runs} == {workflow_id, "other"}
    close(store, workflow_id)
    deliver(store, workflow_id)
    backend.advance(7 * 86400)
    sweep(store)
    sweep(store)
    assert store.get(workflow_id) is None
    assert record(store, "other").length == 1
