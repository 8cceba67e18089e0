"""The timeline of a history: every kind of event in words, with times relative to the start."""

from __future__ import annotations

from durable_celery.codec import Codec, failure_of
from durable_celery.events import (
    CancelRequested,
    CommandCancelled,
    Event,
    LocalStepCompleted,
    LocalStepFailed,
    PatchMarked,
    Recorded,
    RunCancelled,
    RunContinued,
    RunStarted,
    SignalReceived,
    StepCompleted,
    StepFailed,
    StepScheduled,
    TimerFired,
    TimerStarted,
)
from durable_celery.timeline import duration, timeline

NOON = 1_767_268_800_000  # 2026-01-01 12:00 UTC


def failure(error: Exception) -> str:
    return failure_of(error, Codec())


def recorded(*events: tuple[int, Event]) -> list[Recorded]:
    return [Recorded(seq=seq, at=NOON + after, event=event) for seq, (after, event) in enumerate(events, 1)]


def test_a_run_that_goes_on_says_with_what() -> None:
    history = recorded(
        (0, RunStarted(name="shop.plan", payload='[["ann"],{}]')),
        (10, RunContinued(number=1, cause=1, payload='[["ann"],{"month":3}]')),
    )

    assert timeline("sub-1", history, run=2).splitlines() == [
        "sub-1, run 2, started 2026-01-01 12:00:00 UTC",
        "",
        "  1  +0.000 s  started    shop.plan('ann')",
        "  2  +0.010 s  continued  as run 3 with ('ann', month=3)",
    ]


def test_every_kind_of_event_has_a_line() -> None:
    history = recorded(
        (0, RunStarted(name="shop.order", payload='[["o-1"],{"fast":true}]', start_at=NOON + 5_000)),
        (5_001, TimerFired(number=0)),
        (5_010, StepScheduled(number=1, cause=2, task="shop.charge", digest="d", payload='[["o-1",12],{}]')),
        (5_010, StepScheduled(number=2, cause=2, task="shop.pack", digest="d", kind="workflow", payload="[[],{}]")),
        (5_010, TimerStarted(number=3, cause=2, due_at=NOON + 95_010)),
        (65_010, StepCompleted(number=1, attempt=2, payload='"pay-1"')),
        (65_020, PatchMarked(number=4, cause=6, patch_id="new-mail")),
        (65_030, LocalStepCompleted(number=5, cause=6, name="total", digest="d", payload="12")),
        (65_040, LocalStepFailed(number=6, cause=6, name="parse", digest="d", payload=failure(ValueError("no")))),
        (95_020, TimerFired(number=3)),
        (3_695_010, StepFailed(number=2, payload=failure(KeyError("box")))),
        (3_695_020, SignalReceived(name="hurry", payload="null")),
        (3_695_030, StepScheduled(number=7, cause=12, task="shop.mail", digest="d", options={"label": "the mail"})),
        (90_000_000, CancelRequested(reason="enough")),
        (90_000_010, CommandCancelled(number=8, cause=14, target=7)),
        (90_000_020, RunCancelled(number=9, cause=14, payload='{"type":"x.Cancelled","message":"enough"}')),
    )

    assert timeline("order-1", history).splitlines() == [
        "order-1, started 2026-01-01 12:00:00 UTC",
        "",
        "   1   +0.000 s  started    shop.order('o-1', fast=True), begins after 5.000 s",
        "   2   +5.001 s  start      its time has come",
        "   3   +5.010 s  step 1     shop.charge('o-1', 12)",
        "   4   +5.010 s  child 2    shop.pack()",
        "   5   +5.010 s  timer 3    set for 1 m 30 s",
        "   6  +1 m 05 s  step 1     shop.charge -> 'pay-1'  (after 1 m 00 s, attempt 2)",
        "   7  +1 m 05 s  patch 4    new-mail",
        "   8  +1 m 05 s  local 5    total -> 12",
        "   9  +1 m 05 s  local 6    parse failed: ValueError: no",
        "  10  +1 m 35 s  timer 3    fired",
        "  11  +1 h 01 m  child 2    shop.pack failed: KeyError: 'box'  (after 1 h 01 m)",
        "  12  +1 h 01 m  signal     hurry = None",
        "  13  +1 h 01 m  step 7     the mail()",
        "  14  +1 d 01 h  cancel     requested: enough",
        "  15  +1 d 01 h  step 7     the mail not wanted any more",
        "  16  +1 d 01 h  cancelled  x.Cancelled: enough",
    ]


def test_unreadable_payloads_are_shown_as_they_are() -> None:
    history = recorded((0, RunStarted(name="shop.order", payload="not json")), (1, StepFailed(number=1, payload="?")))

    text = timeline("order-1", history)

    assert "shop.order(not json)" in text
    assert "failed: ?" in text


def test_a_length_of_time_has_a_fitting_unit() -> None:
    lengths = (0, 59.9994, 59.9999, 60, 3599.4, 3599.6, 86399, 86400)
    assert [duration(seconds) for seconds in lengths] == [
        "0.000 s", "59.999 s", "1 m 00 s", "1 m 00 s", "59 m 59 s", "1 h 00 m", "23 h 59 m", "1 d 00 h",
    ]  # fmt: skip
