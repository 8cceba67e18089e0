"""Fan-out with limits and tolerance, in both forms, kept and replayed in each turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from durable_celery.codec import rebuild
from durable_celery.errors import BatchFailedError, InvalidRequestError
from durable_celery.events import RunFailed, StepScheduled
from durable_celery.workflow import AsyncWorkflowContext, BatchResult, Tolerance, WorkflowContext
from tests.workflow.log import CODEC, Run, charge

Code = Callable[..., Any]
Begin = Callable[..., Run]


def forms(*codes: Code) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("code", codes, ids=["def", "async def"])


def tell(batch: BatchResult[Any]) -> dict[str, Any]:
    return {
        "statuses": [str(item.status) for item in batch.items],
        "results": batch.results,
        "errors": [str(error) for error in batch.errors],
        "ok": batch.is_successful,
    }


def open_steps(run: Run) -> list[int]:
    """Return the numbers of the steps that are going on."""
    numbers = [event.number for event in run.outputs if isinstance(event, StepScheduled)]
    ended = {getattr(item.event, "number", 0) for item in run.events if type(item.event).__name__.startswith("StepC")}
    ended |= {getattr(item.event, "number", 0) for item in run.events if type(item.event).__name__ == "StepFailed"}
    return [number for number in numbers if number not in {*ended, *run.cancelled()}]


# --------------------------------------------------------------------------- map over a task


def map_sync(ctx: WorkflowContext, count: int, limit: int | None, tolerate: Any = None) -> Any:
    tolerance = Tolerance(**tolerate) if isinstance(tolerate, dict) else tolerate
    return tell(ctx.map(charge, range(count), max_concurrency=limit, tolerate=tolerance))


async def map_async(ctx: AsyncWorkflowContext, count: int, limit: int | None, tolerate: Any = None) -> Any:
    tolerance = Tolerance(**tolerate) if isinstance(tolerate, dict) else tolerate
    return tell(await ctx.map(charge, range(count), max_concurrency=limit, tolerate=tolerance))


@forms(map_sync, map_async)
def test_a_map_gives_results_and_failures_in_the_order_of_its_items(code: Code, begin: Begin) -> None:
    run = begin(code, 3, None)
    run.complete(3, "c")
    run.fail(1, ValueError("a"))
    run.complete(2, "b")

    assert run.result == {
        "statuses": ["failed", "completed", "completed"],
        "results": ["b", "c"],
        "errors": ["a"],
        "ok": False,
    }


@forms(map_sync, map_async)
def test_no_more_items_than_allowed_are_going_on_at_any_time(code: Code, begin: Begin) -> None:
    run = begin(code, 5, 2)
    assert open_steps(run) == [1, 2]
    run.complete(2)
    assert open_steps(run) == [1, 3]
    run.fail(1, ValueError("no"))
    assert open_steps(run) == [3, 4]
    for number in (4, 3, 5):
        run.complete(number)

    assert run.result["statuses"] == ["failed", *["completed"] * 4]


@forms(map_sync, map_async)
def test_a_map_over_nothing_is_an_empty_batch_at_once(code: Code, begin: Begin) -> None:
    assert begin(code, 0, 3).result == {"statuses": [], "results": [], "errors": [], "ok": True}


@forms(map_sync, map_async)
def test_one_failure_too_many_cancels_what_goes_on_and_begins_nothing_more(code: Code, begin: Begin) -> None:
    run = begin(code, 6, 3, 1)
    run.fail(1, ValueError("first"))
    assert open_steps(run) == [2, 3, 4]
    run.fail(3, ValueError("second"))

    assert run.cancelled() == [2, 4]
    assert run.result == {
        "statuses": ["failed", "cancelled", "failed", "cancelled", "skipped", "skipped"],
        "results": [],
        "errors": ["first", "second"],
        "ok": False,
    }


@forms(map_sync, map_async)
def test_enough_successes_end_a_map_early_and_well(code: Code, begin: Begin) -> None:
    run = begin(code, 5, 3, {"successes": 2})
    run.fail(1, ValueError("no"))
    run.complete(4, "d")
    run.complete(2, "b")

    assert run.result == {
        "statuses": ["failed", "completed", "cancelled", "completed", "cancelled"],
        "results": ["b", "d"],
        "errors": ["no"],
        "ok": True,
    }


@forms(map_sync, map_async)
def test_successes_that_can_no_longer_be_reached_end_a_map_early(code: Code, begin: Begin) -> None:
    run = begin(code, 3, None, {"successes": 2})
    run.fail(1, ValueError("one"))
    assert open_steps(run) == [2, 3]
    run.fail(2, ValueError("two"))

    assert run.result["statuses"] == ["failed", "failed", "cancelled"]
    assert run.result["ok"] is False


@forms(map_sync, map_async)
def test_a_percentage_counts_all_items_and_not_those_that_have_ended(code: Code, begin: Begin) -> None:
    run = begin(code, 4, None, {"percent": 25})
    run.fail(1, ValueError("a quarter"))
    assert open_steps(run) == [2, 3, 4]
    run.fail(2, ValueError("more"))

    assert run.result["statuses"] == ["failed", "failed", "cancelled", "cancelled"]


@forms(map_sync, map_async)
def test_a_cancel_takes_the_items_of_a_map_along(code: Code, begin: Begin) -> None:
    run = begin(code, 4, 2)
    run.cancel()

    assert run.cancelled() == [1, 2]
    assert run.kinds()[-1] == "RunCancelled"


# --------------------------------------------------------------------------- map over branches


def branches_sync(ctx: WorkflowContext) -> Any:
    def branch(inner: WorkflowContext, item: str) -> list[Any]:
        try:
            return [inner.step(charge, item), inner.step("ship", item)]
        finally:
            inner.step("tidy", item)

    return tell(ctx.map(branch, ["a", "b", "c"], max_concurrency=2, tolerate=0))


async def branches_async(ctx: AsyncWorkflowContext) -> Any:
    async def branch(inner: AsyncWorkflowContext, item: str) -> list[Any]:
        try:
            return [await inner.step(charge, item), await inner.step("ship", item)]
        finally:
            await inner.step("tidy", item)

    return tell(await ctx.map(branch, ["a", "b", "c"], max_concurrency=2, tolerate=0))


@forms(branches_sync, branches_async)
def test_a_branch_of_a_map_holds_several_steps(code: Code, begin: Begin) -> None:
    run = begin(code)
    assert run.tasks() == ["shop.charge", "shop.charge"]
    for number in range(1, 10):
        run.complete(number, number)

    # Each item ends with its third step; the third one begins after the first has ended.
    assert run.tasks() == ["shop.charge"] * 2 + ["ship"] * 2 + ["tidy"] * 2 + ["shop.charge", "ship", "tidy"]
    assert run.result["results"] == [[1, 3], [2, 4], [7, 8]]


@forms(branches_sync, branches_async)
def test_a_branch_that_is_not_wanted_any_more_cleans_up_before_the_map_returns(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.fail(1, ValueError("no"))
    assert run.tasks()[2:] == ["tidy"]
    run.complete(3)
    # The first item has failed for good, so the second is cancelled, and tidies up as well.
    assert run.cancelled() == [2]
    assert run.tasks()[2:] == ["tidy", "tidy"]
    assert not run.execution.closed
    run.complete(5)

    assert run.result["statuses"] == ["failed", "cancelled", "skipped"]


# --------------------------------------------------------------------------- gather


def gather_sync(ctx: WorkflowContext) -> Any:
    handles = [ctx.start(charge, n) for n in range(3)]
    return tell(ctx.gather(*handles, ctx.timer(60), tolerate=1))


async def gather_async(ctx: AsyncWorkflowContext) -> Any:
    handles: list[Any] = [ctx.start(charge, n) for n in range(3)]
    return tell(await ctx.gather(*handles, ctx.timer(60), tolerate=1))


@forms(gather_sync, gather_async)
def test_a_gather_with_tolerance_stops_when_it_is_decided(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.fail(2, ValueError("b"))
    run.complete(1, "a")
    run.fail(3, ValueError("c"))

    assert run.cancelled() == [4]
    assert run.result["statuses"] == ["completed", "failed", "failed", "cancelled"]


@forms(gather_sync, gather_async)
def test_a_gather_with_tolerance_waits_for_all_while_it_holds(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.fail(2, ValueError("b"))
    run.complete(1, "a")
    run.complete(3, "c")
    run.fire(4)

    assert run.result["ok"] is True
    assert run.result["results"] == ["a", "c", None]


# --------------------------------------------------------------------------- the result, and what is refused


def raising_sync(ctx: WorkflowContext, tolerate: int | None) -> Any:
    return ctx.map(charge, [1, 2], tolerate=tolerate).raise_if_failed().results


async def raising_async(ctx: AsyncWorkflowContext, tolerate: int | None) -> Any:
    return (await ctx.map(charge, [1, 2], tolerate=tolerate)).raise_if_failed().results


@forms(raising_sync, raising_async)
def test_a_batch_raises_if_more_failed_than_was_tolerated(code: Code, begin: Begin) -> None:
    run = begin(code, None)
    run.fail(2, ValueError("card declined"))
    run.complete(1, "a")

    assert isinstance(run.last, RunFailed)
    error = rebuild(run.last.payload, CODEC)
    assert isinstance(error, BatchFailedError)
    assert "1 of 2 items failed, none is tolerated" in str(error)
    assert "item 1: ValueError('card declined')" in str(error)


@forms(raising_sync, raising_async)
def test_a_batch_does_not_raise_for_what_is_tolerated(code: Code, begin: Begin) -> None:
    run = begin(code, 1)
    run.fail(2, ValueError("card declined"))
    run.complete(1, "a")

    assert run.result == ["a"]


@pytest.mark.parametrize(
    "use",
    [
        lambda ctx: ctx.map(charge, {1, 2}),
        lambda ctx: ctx.map(charge, [1], max_concurrency=0),
        lambda ctx: ctx.map(charge, [1], tolerate="all"),
        lambda ctx: ctx.map(charge, [1], tolerate=True),
        lambda ctx: ctx.map(charge, [1], tolerate=-1),
        lambda ctx: ctx.map(charge, [1], tolerate=Tolerance(percent=101)),
        lambda ctx: ctx.map(charge, [object()]),
    ],
    ids=["a set", "no concurrency", "a word", "a truth", "a debt", "over a hundred", "an argument"],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_issued(use: Code) -> None:
    run = Run(use).start()

    assert isinstance(run.last, RunFailed)
    assert isinstance(rebuild(run.last.payload, CODEC), InvalidRequestError)
    assert run.kinds() == ["RunFailed"]


def test_an_item_that_cannot_be_begun_cancels_those_that_were() -> None:
    def code(ctx: WorkflowContext) -> Any:
        return ctx.map(charge, [1, 2, object()])

    run = Run(code).start()

    assert run.cancelled() == [1, 2]
    assert isinstance(rebuild(run.last.payload, CODEC), InvalidRequestError)


def test_ten_thousand_items_work_and_a_few_go_on_at_a_time() -> None:
    run = Run(map_sync).start(10_000, 50, {"percent": 1})
    for number in range(1, 10_001):
        if number % 101 == 0:
            run.fail(number, ValueError(str(number)))
        else:
            run.complete(number, number)
        assert len(run.outputs) == min(number + 50, 10_000) + run.execution.closed

    assert run.result["ok"] is True
    assert len(run.result["errors"]) == 99
    assert run.replayed().closed
