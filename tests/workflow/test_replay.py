"""Replay: what the history says is held against what the code does, to the command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from durable_celery.codec import Place
from durable_celery.errors import DurableError, NonDeterminismError, WorkflowCodeError
from durable_celery.events import (
    LocalStepCompleted,
    Output,
    Recorded,
    RunStarted,
    SignalReceived,
    StepCompleted,
    StepScheduled,
)
from durable_celery.workflow import Definition, Execution, WorkflowContext, replay
from tests.workflow.log import CODEC, Run, Task, charge, child, notify, refund


def history(code: Callable[..., Any], *numbers: int) -> Run:
    """Run code whose steps are completed in the given order, and leave the log."""
    run = Run(code).start()
    for number in numbers:
        run.complete(number, number)
    run.execution.evict()
    return run


def replay_with(run: Run, code: Callable[..., Any]) -> Execution:
    return replay(Definition(name="test", function=code), run.workflow_id, run.events, CODEC)


def story_of(run: Run, code: Callable[..., Any]) -> str:
    with pytest.raises(NonDeterminismError) as caught:
        replay_with(run, code)
    assert caught.value.workflow_id == "w-1"
    return caught.value.story


def two_steps(ctx: WorkflowContext) -> None:
    ctx.step(charge, "o-1", 1200)
    ctx.step(notify, "o-1")


def swapped(ctx: WorkflowContext) -> None:
    ctx.step(notify, "o-1")
    ctx.step(charge, "o-1", 1200)


def test_swapped_steps_are_told_side_by_side() -> None:
    story = story_of(history(two_steps, 1, 2), swapped)
    lines = story.splitlines()
    assert lines[0] == "run 1, event 1, command 1: task: history has 'shop.charge', the code 'shop.notify'"
    assert lines[2].split() == ["no.", "history", "code"]
    assert lines[3].startswith(">     1  step shop.charge('o-1', 1200) #")
    assert "step shop.notify('o-1') #" in lines[3]
    assert lines[4].startswith("      2  step shop.notify('o-1') #"), "what history has next"
    assert "ctx.patched(" in story
    assert "restore the order" in " ".join(story.split())


def test_a_mismatch_later_shows_the_commands_before_it() -> None:
    def many(ctx: WorkflowContext) -> None:
        for index in range(8):
            ctx.step(charge, index)

    def changed(ctx: WorkflowContext) -> None:
        for index in range(8):
            ctx.step(charge if index != 6 else refund, index)

    story = story_of(history(many, *range(1, 9)), changed)
    _problem, table, _advice = story.split("\n\n")
    marks = [line[:1] + line[1:7].strip() for line in table.splitlines()[1:]]
    assert marks == [" 3", " 4", " 5", " 6", ">7", " 8", " 9"]
    assert "run 1, event 13, command 7" in story


CHANGES: dict[str, tuple[Callable[..., Any], str]] = {
    "other arguments": (lambda ctx: ctx.step(charge, "o-1", 1300), "digest of the arguments"),
    "a child in place of a task": (
        lambda ctx: ctx.step(Task("shop.charge", is_durable=True), "o-1", 1200),
        "kind of step: history has 'task', the code 'workflow'",
    ),
    "a timer": (lambda ctx: ctx.sleep(1), "kind of command: history has 'step', the code 'timer'"),
    "a local step": (lambda ctx: ctx.run(int), "kind of command: history has 'step', the code 'local step'"),
    "the end": (lambda _ctx: None, "kind of command: history has 'step', the code 'completed'"),
    "a failure": (lambda _ctx: 1 / 0, "kind of command: history has 'step', the code 'failed'"),
    "nothing at all": (lambda ctx: ctx.wait_signal("x"), "the code came to rest without command 1"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_command_than_the_recorded_one_is_found(change: str) -> None:
    code, problem = CHANGES[change]
    assert problem in story_of(history(two_steps, 1, 2), code)


def test_a_command_that_is_issued_at_another_event_is_found() -> None:
    def later(ctx: WorkflowContext) -> None:
        ctx.step(charge, "o-1", 1200)
        ctx.wait_signal("go")
        ctx.step(notify, "o-1")

    run = Run(two_steps).start()
    run.complete(1)
    run.signal("go")
    assert "event 3: the code came to rest without command 2" in story_of(run, later)


def test_a_command_too_many_is_found() -> None:
    def more(ctx: WorkflowContext) -> None:
        ctx.start(refund)
        two_steps(ctx)

    assert "task: history has 'shop.charge', the code 'shop.refund'" in story_of(history(two_steps, 1), more)


def test_a_new_command_after_the_recorded_ones_of_an_old_event_is_found_by_the_next_record() -> None:
    def detached(ctx: WorkflowContext) -> None:
        ctx.start(charge, "o-1", 1200).result()
        ctx.start(notify, "o-1")
        ctx.step(refund)

    story = story_of(history(two_steps, 1, 2), detached)
    assert "kind of command: history has 'completed', the code 'step'" in story


def test_a_different_end_is_found_but_a_different_result_is_not() -> None:
    run = Run(lambda ctx: ctx.step(charge)).start()
    run.complete(1, "old")
    assert replay_with(run, lambda ctx: [ctx.step(charge), "new"]).closed

    def fails(ctx: WorkflowContext) -> None:
        ctx.step(charge)
        raise ValueError

    assert "history has 'completed', the code 'failed'" in story_of(run, fails)


def test_the_due_time_of_a_timer_is_not_compared_and_the_record_wins() -> None:
    run = Run(lambda ctx: ctx.sleep(60)).start()
    execution = replay_with(run, lambda ctx: ctx.sleep(7200))
    assert execution.waiting == "timer (1) until 2026-11-22 16:01:00"
    assert execution.take_outputs() == ()
    execution.evict()


def test_what_follows_a_mismatch_is_not_resumed_and_cannot_swallow_it() -> None:
    seen: list[str] = []

    def greedy(ctx: WorkflowContext) -> None:
        try:
            ctx.step(refund)
        except BaseException as error:  # noqa: BLE001 - the mistake
            seen.append(type(error).__name__)
            try:
                ctx.step(notify)
            except BaseException as again:  # noqa: BLE001 - the mistake
                seen.append(type(again).__name__)
                return
        seen.append("resumed")

    async def greedy_async(ctx: Any) -> None:
        try:
            await ctx.step(refund)
        except BaseException as error:  # noqa: BLE001 - the mistake
            seen.append(type(error).__name__)
            return
        seen.append("resumed")

    run = history(two_steps, 1)
    story_of(run, greedy)
    story_of(run, greedy_async)
    assert seen == ["Evicted", "Evicted", "Evicted"]


def test_an_execution_that_failed_to_replay_gives_no_outputs_and_takes_no_events() -> None:
    run = history(two_steps, 1)
    execution = Execution(Definition(name="test", function=swapped), "w-1", codec=CODEC)
    with pytest.raises(NonDeterminismError):
        execution.feed(run.events)
    assert execution.take_outputs() == ()
    with pytest.raises(DurableError, match="new one"):
        execution.feed([])
    execution.evict()


def test_outputs_that_stand_after_later_inputs_are_found() -> None:
    def code(ctx: WorkflowContext) -> list[Any]:
        return [ctx.step(charge), ctx.wait_signal("go"), ctx.step(notify)]

    run = Run(code).start()
    first = StepCompleted(number=1, payload="5")
    signal = SignalReceived(name="go", payload="6")
    # Both are in the log before the turn that reacts to the first one.
    run.turn(first, signal)
    assert [type(item.event).__name__ for item in run.events[2:]] == [
        "StepCompleted",
        "SignalReceived",
        "StepScheduled",
    ]
    run.go_cold()
    run.turn(StepCompleted(number=2, payload="7"), SignalReceived(name="go"))
    assert run.result == [5, 6, 7]
    assert run.replayed().closed


def test_own_outputs_may_be_seen_again_and_must_match() -> None:
    run = Run(two_steps)
    started = run.append(RunStarted(name="test", payload="[[],{}]"))
    run.execution.feed([started])
    (scheduled,) = run.execution.take_outputs()
    assert isinstance(scheduled, StepScheduled)
    again = Recorded(seq=2, at=run.now, event=scheduled)
    other = replace(again, event=replace(scheduled, task="shop.other"))

    fresh = run.new_execution()
    fresh.feed([started])
    fresh.take_outputs()
    with pytest.raises(NonDeterminismError, match="records another command 1"):
        fresh.feed([other])

    run.execution.feed([again])
    assert run.execution.position == 2
    assert run.execution.take_outputs() == ()
    run.execution.evict()


def test_an_output_that_is_seen_before_it_was_taken_is_recorded_already() -> None:
    run = history(two_steps)
    execution = run.new_execution()
    execution.feed(run.events[:1])
    execution.feed(run.events[1:])
    assert execution.take_outputs() == ()
    execution.evict()


def test_events_are_fed_in_order_and_without_gaps() -> None:
    run = history(two_steps, 1)
    execution = run.new_execution()
    with pytest.raises(DurableError, match="without gaps"):
        execution.feed(run.events[1:])


def test_arguments_that_the_function_does_not_take_block_the_run() -> None:
    def code(ctx: WorkflowContext, order: str) -> None: ...

    run = Run(code)
    with pytest.raises(WorkflowCodeError, match="missing a required argument: 'order'"):
        run.start()


def test_a_type_error_inside_the_function_is_an_ordinary_failure() -> None:
    def code(ctx: WorkflowContext) -> None:
        len(5)  # type: ignore[arg-type]  # the mistake

    assert Run(code).start().kinds() == ["RunFailed"]


def test_code_that_never_comes_to_rest_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    async def busy(ctx: Any) -> None:
        while True:  # noqa: ASYNC110 - the mistake
            await asyncio.sleep(0)

    monkeypatch.setattr("durable_celery.workflow.loop._BUSY", 1000)
    with pytest.raises(WorkflowCodeError, match="busy loop"):
        Run(busy).start()


def test_a_child_s_record_differs_from_a_task_s() -> None:
    run = history(lambda ctx: ctx.step(child, 1))
    assert "child step shop.child(1)" in story_of(run, lambda ctx: ctx.sleep(1))


NOWHERE = Place("", "")


class Counting(type(CODEC)):  # type: ignore[misc]  # the codec's class
    """A codec that counts what it decodes: every input is decoded once when it is applied."""

    decoded = 0

    def decode(self, text: str | None, place: Place = NOWHERE) -> Any:
        self.decoded += 1
        return super().decode(text, place)


def test_a_cold_replay_of_5000_events_applies_each_once_and_a_warm_one_only_the_new() -> None:
    def code(ctx: WorkflowContext) -> int:
        return sum(ctx.step(charge, index) for index in range(2500))

    run = Run(code).start()
    codec = Counting()
    run.execution.evict()
    run.execution = Execution(run.definition, "w-1", codec=codec)
    run.execution.feed(run.events)
    for number in range(1, 2500):
        run.complete(number, number)
    assert len(run.events) == 5000
    assert codec.decoded == 2500, "warm: the start and 2,499 results, each once"

    run.execution.evict()
    codec.decoded = 0
    cold = Execution(run.definition, "w-1", codec=codec)
    cold.feed(run.events)
    assert codec.decoded == 2500
    assert cold.waiting == "step shop.charge (2500)"
    cold.evict()


def test_a_history_that_goes_on_after_the_code_has_ended_is_found() -> None:
    run = history(two_steps, 1)
    assert "completed" in story_of(run, lambda ctx: ctx.step(charge, "o-1", 1200))


def test_records_carry_numbers_without_gaps_in_any_order_of_results() -> None:
    def code(ctx: WorkflowContext) -> None:
        ctx.gather(*[ctx.start(charge, index) for index in range(5)])
        ctx.run(int)

    run = history(code, 5, 3, 1, 2, 4)
    outputs = [item.event for item in run.events if isinstance(item.event, Output)]
    assert [event.number for event in outputs] == [1, 2, 3, 4, 5, 6, 7]
    assert isinstance(outputs[5], LocalStepCompleted)
