"""A conversation goes on when a workflow continues as a new run: progress, queries, updates on both sides of it."""

# Celery carries no types: to pyright a task is the function that it was made of.
# pyright: reportFunctionMemberAccess=false

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from durable_celery import UpdateError, WorkflowContext, durable_task
from durable_celery.offsets import Offset
from durable_celery.testing import Environment

app = Celery("rounds", broker="redis://nowhere.invalid:1/0", set_as_current=False)


@durable_task(app=app)
def rounds(ctx: WorkflowContext, number: int = 1) -> int:
    ctx.state.number, ctx.state.added = number, []
    ctx.publish("round", number)
    ctx.stream("log").append(f"round {number}")
    if number == 1:
        ctx.publish("first", True)
    ctx.wait_signal("next")
    if number == 3:
        return number
    return ctx.continue_as_new(number + 1)


@rounds.query
def number_of(state: Any) -> int:
    return int(state.number)


@rounds.update
def add(ctx: WorkflowContext, x: int) -> list[int]:
    ctx.state.added.append(x)
    return [ctx.info.run, *ctx.state.added]


@rounds.update
def hang(ctx: WorkflowContext) -> None:
    ctx.wait_signal("never")


@pytest.fixture
def env() -> Iterator[Environment]:
    with Environment(app) as environment:
        yield environment


def test_progress_is_read_over_all_runs_and_offsets_grow(env: Environment) -> None:
    handle = env.start(rounds)
    env.signal(handle, "next")
    before = list(handle.stream("log", follow=False))
    env.signal(handle, "next")
    env.signal(handle, "next")

    offsets, lines = zip(*handle.stream("log"), strict=True)
    assert list(lines) == ["round 1", "round 2", "round 3"]
    assert [Offset.of(offset).run for offset in offsets] == [1, 2, 3]
    assert list(handle.stream("log", after=before[-1][0])) == [(offsets[2], "round 3")]
    assert handle.published() == {"round": 3, "first": True}
    assert (handle.published("round"), handle.published("first")) == (3, True)


def test_a_reader_follows_a_workflow_from_one_run_into_the_next(env: Environment) -> None:
    handle = env.start(rounds)
    reader = handle.stream("log", timeout=60)
    assert next(reader)[1] == "round 1"
    env.signal(handle, "next")
    assert next(reader)[1] == "round 2"
    env.signal(handle, "next")
    env.signal(handle, "next")
    assert [line for _, line in reader] == ["round 3"]


def test_queries_and_updates_are_about_the_newest_run(env: Environment) -> None:
    handle = env.start(rounds)
    assert handle.update(add, 5) == [1, 5]
    env.signal(handle, "next")
    assert handle.query(number_of) == 2
    assert handle.update(add, 7) == [2, 7]


def test_an_update_keeps_its_one_outcome_over_runs(env: Environment) -> None:
    handle = env.start(rounds)
    assert handle.update(add, 5, key="k") == [1, 5]
    early = handle.start_update(add, 5, key="k")
    env.signal(handle, "next")
    assert handle.update(add, 5, key="k") == early.result() == [1, 5]
    assert handle.query(total) == 0


@rounds.query
def total(state: Any) -> int:
    return sum(state.added)


def test_an_update_that_was_going_on_ends_with_its_run(env: Environment) -> None:
    handle = env.start(rounds)
    update = handle.start_update(hang)
    env.signal(handle, "next")
    with pytest.raises(UpdateError, match="went on as run 2 before update"):
        update.result(timeout=60)


def test_an_update_that_has_not_begun_goes_along(env: Environment) -> None:
    handle = env.start(rounds)
    # Both come before the next turn, and the code ends its run on the first.
    handle.signal("next")
    update = handle.start_update(add, 9)
    assert update.result(timeout=60) == [2, 9]
    assert handle.start_update(add, 9, key=update.key).result() == [2, 9]
