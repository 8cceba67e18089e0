"""Did it, but reported failure: every verb may be repeated with equal arguments, and leaves the same state as once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from durable_celery.events import CancelRequested, Event, SignalReceived, StepFailed, TimerFired
from durable_celery.store.memory import MemoryStore
from durable_celery.store.protocol import Claim, Committed, Store, Turn
from durable_celery.store.redis import RedisStore
from durable_celery.store.sql import SqlStore
from tests.store.invariants import Snapshot, raw_keys, raw_rows, snapshot
from tests.store.moves import (
    begin,
    cancel,
    child,
    claim,
    close,
    deliver,
    end,
    execute,
    key,
    new,
    result,
    signal,
    step,
    sweep,
    take,
    timer,
    turn,
)


@dataclass(slots=True)
class Case:
    """A situation, and a verb that is done in it once, and once more."""

    name: str
    prepare: Callable[[Store], Any]
    act: Callable[[Store, Any], object]
    #: What of the two answers must be equal.
    compare: Callable[[Any], object] = field(default=lambda answer: answer)


def _begun(*outputs: Event) -> Callable[[Store], None]:
    return lambda store: begin(store, *outputs)


def _leased(*outputs: Event, unread: int = 0) -> Callable[[Store], Turn]:
    def prepare(store: Store) -> Turn:
        begin(store, *outputs)
        taken = take(store)
        for number in range(unread):
            signal(store, signal_key=str(number))
        return taken

    return prepare


def _claimed(*outputs: Event) -> Callable[[Store], Claim]:
    def prepare(store: Store) -> Claim:
        begin(store, *outputs)
        return claim(store)

    return prepare


def _ended(store: Store) -> Turn:
    begin(store)
    close(store)
    return take(store)


def _closed(*outputs: Event) -> Callable[[Store], None]:
    def prepare(store: Store) -> None:
        begin(store, *outputs)
        claim(store)
        close(store)

    return prepare


def _unwanted_child(store: Store) -> None:
    begin(store, child(1))
    turn(store, cancel(2, 1))


def _dead(store: Store) -> None:
    begin(store, step(1))
    claim(store)
    store.renew([], gone=["p1"])
    sweep(store)


def _commit(*outputs: Event, hold: bool = False) -> Callable[[Store, Turn], object]:
    def act(store: Store, taken: Turn) -> object:
        return store.commit(taken.lease, outputs, read=taken.run.length, waiting="x", hold=hold)

    return act


def _essence(answer: Committed) -> object:
    return answer.events, answer.length, answer.held


def _nothing(_: object) -> None:
    return None


CASES = [
    Case("start", lambda _: None, lambda s, _: s.start(new()), lambda answer: answer.message),
    Case("start with a delay", lambda _: None, lambda s, _: s.start(new(delay=9.0)), lambda answer: answer.message),
    Case("signal", _begun(), lambda s, _: signal(s), lambda answer: answer.message),
    Case("signal in a turn", _leased(), lambda s, _: signal(s), lambda answer: answer.message),
    Case("cancel", _begun(), lambda s, _: s.append("w", CancelRequested(), key="c"), lambda answer: answer.message),
    Case(
        "gate",
        lambda s: s.start(new(delay=9.0)),
        lambda s, _: s.append("w", TimerFired(number=0), key="timer:0"),
        lambda answer: answer.message,
    ),
    Case("take", _begun(), lambda s, _: s.take("w", "p1#a", known=0), lambda answer: (answer.lease, answer.run)),
    Case("take for the delivery", _ended, lambda s, t: s.take("w", t.lease.owner, known=0), lambda a: a.lease),
    Case("commit of nothing", _leased(), _commit(hold=True), _essence),
    Case("commit of nothing, inputs came", _leased(unread=2), _commit(), _essence),
    Case("commit of a step", _leased(), _commit(step(1)), _essence),
    Case("commit of a step, held", _leased(), _commit(step(1), hold=True), _essence),
    Case("commit of a step, inputs came", _leased(unread=2), _commit(step(1)), _essence),
    Case(
        "commit of all kinds",
        _leased(step(1), child(2), timer(3, 9_000_000_000_000)),
        _commit(cancel(4, 1), cancel(5, 2), cancel(6, 3), step(7, options={"timeout": 9}), timer(8, 9_000_000_000_000)),
        _essence,
    ),
    Case("commit of the end", _leased(step(1)), _commit(end()), _essence),
    Case("commit of the end, held", _leased(), _commit(end(), hold=True), _essence),
    Case("release", _leased(), lambda s, t: s.release("w", t.lease.owner, delay=5.0, reason="x")),
    Case("deliver", _ended, lambda s, t: s.deliver(t.lease)),
    Case("claim", _begun(step(1)), lambda s, _: s.claim(key(1), "p1#a")),
    Case("finish", _claimed(step(1)), lambda s, c: s.finish(c.key, result(1), token=c.token), lambda a: a.message),
    Case(
        "finish that takes over",
        _claimed(step(1)),
        lambda s, c: s.finish(c.key, result(1), token=c.token, take_over="p1#b", known=0),
        lambda answer: (answer.turn.lease, answer.turn.events),
    ),
    Case(
        "finish from outside",
        _begun(child(1)),
        lambda s, _: s.finish(key(1), StepFailed(number=1), token=None),
        lambda answer: answer.message,
    ),
    Case(
        "finish after the end",
        _closed(step(1)),
        lambda s, _: s.finish(key(1), result(1), token=1),
    ),
    Case("postpone", _claimed(step(1)), lambda s, c: s.postpone(c.key, c.owner, delay=5.0, error="x"), _nothing),
    Case("note of a child", _begun(child(1)), lambda s, _: s.settle(key(1))),
    Case(
        "note of a cancelled child",
        _unwanted_child,
        lambda s, _: s.settle(key(1), cancel=True),
    ),
    Case("renew", _claimed(step(1)), lambda s, _: s.renew(["p1", "p2"])),
    Case("gone", _claimed(step(1)), lambda s, _: s.renew(["p2"], gone=["p1"])),
    Case("hasten", _begun(step(1)), lambda s, _: s.hasten(10)),
    Case("sweep", _begun(timer(1, 0)), lambda s, _: sweep(s), _nothing),
    Case("sweep after a death", _dead, lambda s, _: sweep(s), _nothing),
    Case("get", _claimed(step(1)), lambda s, _: s.get("w")),
    Case("history", _begun(step(1)), lambda s, _: s.history("w")),
    Case("runs", _begun(step(1)), lambda s, _: s.runs()),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_verb_that_is_repeated_leaves_the_same_state_and_gives_the_same_answer(store: Store, case: Case) -> None:
    prepared = case.prepare(store)
    first = case.act(store, prepared)
    once = _all_of(store)

    again = case.act(store, prepared)

    assert _all_of(store) == once
    assert case.compare(again) == case.compare(first)


def test_repeats_after_later_progress_change_nothing(store: Store) -> None:
    begin(store, step(1))
    begun = claim(store)
    store.finish(begun.key, result(1), token=begun.token)
    turn(store, step(2))
    execute(store, 2)
    taken = take(store)
    before = _all_of(store)

    store.start(new())
    assert not store.finish(begun.key, result(1), token=begun.token).recorded
    assert not store.postpone(begun.key, begun.owner, delay=0.0, error="x")
    store.claim(begun.key, begun.owner)
    store.release("w", begun.owner, delay=0.0)
    store.deliver(replace(taken.lease, owner="other#1"))

    assert _all_of(store) == before


def test_signal_and_cancel_may_share_a_key_with_nobody_else(store: Store) -> None:
    begin(store)
    deliver_later = store.append("w", SignalReceived(name="a"), key="same")
    again = store.append("w", CancelRequested(), key="same")

    assert (deliver_later.added, again.added) == (True, False)
    close(store)
    deliver(store)


def _all_of(store: Store) -> object:
    """Return all that a store holds, but for the ends of lives, which a renewal moves."""
    view: Snapshot = snapshot(store)
    agenda = {entry: 0 if entry[0] == "owner" else due for entry, due in view.agenda.items()}
    if isinstance(store, RedisStore):
        raw = {name: value for name, value in raw_keys(store).items() if not name.endswith("}:owners")}
        return agenda, view.records, view.histories, view.held, raw
    if isinstance(store, SqlStore):
        rows = {name: found for name, found in raw_rows(store).items() if name != "owners"}
        return agenda, view.records, view.histories, view.held, rows
    assert isinstance(store, MemoryStore)
    return copy.deepcopy((agenda, view.records, view.histories, view.held, store.run_table))
