"""Canvas in both forms: which commands a signature issues, what cancels it, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from durable_celery.codec import rebuild
from durable_celery.errors import InvalidRequestError, PayloadError, UnknownTaskError
from durable_celery.events import CommandCancelled, RunFailed, StepScheduled, TimerStarted
from durable_celery.workflow import AsyncWorkflowContext, StepHandle, WorkflowContext
from tests.workflow.log import CODEC, EPOCH_MS, Run
from tests.workflow.signatures import Signature, chain, chord, group, sig

Code = Callable[..., Any]
Begin = Callable[..., Run]


def forms(*codes: Code) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("code", codes, ids=["def", "async def"])


def step_sync(ctx: WorkflowContext, canvas: Signature, *args: Any) -> Any:
    return ctx.options(retry=2).step(canvas, *args)


async def step_async(ctx: AsyncWorkflowContext, canvas: Signature, *args: Any) -> Any:
    return await ctx.options(retry=2).step(canvas, *args)


def calls(run: Run) -> list[list[Any]]:
    """Return the steps in order: task, then arguments."""
    steps = [event for event in run.outputs if isinstance(event, StepScheduled)]
    return [[event.task, *CODEC.decode(event.payload)[0]] for event in steps]


def failure(run: Run) -> Exception:
    assert isinstance(run.last, RunFailed)
    return rebuild(run.last.payload, CODEC)


@forms(step_sync, step_async)
def test_a_chain_is_one_step_after_the_other(code: Code, begin: Begin) -> None:
    run = begin(code, chain(sig("a", 1), sig("b", 2), sig("c", 3, immutable=True)))
    assert calls(run) == [["a", 1]]
    run.complete(1, "A")
    assert calls(run)[1:] == [["b", "A", 2]]
    run.complete(2, "B")
    assert calls(run)[2:] == [["c", 3]]
    run.complete(3, "C")

    assert run.result == "C"
    assert set(run.kinds()) == {"StepScheduled", "RunCompleted"}


@forms(step_sync, step_async)
def test_a_group_is_steps_beside_each_other_and_a_chord_goes_on_with_their_results(code: Code, begin: Begin) -> None:
    run = begin(code, chord([sig("a"), group(sig("b"), chain(sig("c"), sig("d")))], sig("e", "x")), 7)
    assert calls(run) == [["a", 7], ["b", 7], ["c", 7]]
    run.complete(3, "C")
    run.complete(1, "A")
    run.complete(2, "B")
    assert calls(run)[3:] == [["d", "C"]]
    run.complete(4, "D")
    assert calls(run)[4:] == [["e", ["A", "B", "D"], "x"]]
    run.complete(5, "E")

    assert run.result == "E"


@forms(step_sync, step_async)
def test_options_around_a_canvas_hold_where_a_task_has_none_of_its_own(code: Code, begin: Begin) -> None:
    inner = sig("b", queue="own", shadow="seen as", time_limit=5, task_id="x", group_id="y", ignore_result=True)
    run = begin(code, group(sig("a"), inner, queue="all", priority=4))

    first, second = [event.options for event in run.outputs if isinstance(event, StepScheduled)]
    assert first is not None
    assert second is not None
    assert (first["queue"], first["priority"], first["retry"]["maximum_attempts"]) == ("all", 4, 2)
    assert {**second, "retry": None} == {
        "queue": "own",
        "priority": 4,
        "label": "seen as",
        "message": {"time_limit": 5},
        "retry": None,
    }


@forms(step_sync, step_async)
def test_waits_before_a_task_are_durable_timers(code: Code, begin: Begin) -> None:
    eta = datetime.fromtimestamp(EPOCH_MS / 1000 + 90, UTC)
    run = begin(code, chain(sig("a", countdown=30), sig("b", eta=eta.isoformat())))
    run.fire(1)
    assert calls(run) == [["a"]]
    run.complete(2)
    run.fire(3)
    assert calls(run)[1:] == [["b", None]]

    due = [event.due_at - EPOCH_MS for event in run.outputs if isinstance(event, TimerStarted)]
    assert due == [30_000, 90_000]


@forms(step_sync, step_async)
def test_a_task_that_fails_has_its_errbacks_done_first(code: Code, begin: Begin) -> None:
    run = begin(code, sig("a", link=[sig("no")], link_error=[sig("b", 1, immutable=True), sig("c", immutable=True)]))
    run.fail(1, ValueError("a failed"))
    assert calls(run)[1:] == [["b", 1], ["c"]]
    run.fail(2, ValueError("b failed"))
    run.complete(3)

    assert str(failure(run)) == "a failed"


@forms(step_sync, step_async)
def test_a_cancel_of_the_run_cancels_what_a_canvas_has_open_and_goes_on_with_nothing(code: Code, begin: Begin) -> None:
    run = begin(code, chord([sig("a"), chain(sig("b"), sig("c"))], sig("d", link_error=[sig("e", immutable=True)])))
    run.complete(2)
    run.cancel("enough")

    assert run.cancelled() == [1, 3]
    assert run.kinds()[-1] == "RunCancelled"
    assert [call[0] for call in calls(run)] == ["a", "b", "c"]


def starting_sync(ctx: WorkflowContext, canvas: Signature) -> str:
    handle = ctx.start(canvas)
    ctx.wait_signal("cancel")
    handle.cancel()
    try:
        handle.result()
    except asyncio.CancelledError:
        return "cancelled"
    return ""


async def starting_async(ctx: AsyncWorkflowContext, canvas: Signature) -> str:
    handle = ctx.start(canvas)
    await ctx.wait_signal("cancel")
    handle.cancel()
    try:
        await handle
    except asyncio.CancelledError:
        return "cancelled"
    return ""


@forms(starting_sync, starting_async)
def test_the_handle_of_a_canvas_cancels_it(code: Code, begin: Begin) -> None:
    run = begin(code, chain(group(sig("a"), sig("b")), sig("c")))
    run.signal("cancel")

    assert [event.target for event in run.outputs if isinstance(event, CommandCancelled)] == [1, 2]
    assert run.result == "cancelled"


def test_a_signature_alone_is_a_step_like_any_other() -> None:
    handles: list[Any] = []

    def code(ctx: WorkflowContext) -> Any:
        handles.append(ctx.start(sig("a", 1), 0))
        return handles[0].result()

    run = Run(code).start()
    assert isinstance(handles[0], StepHandle)
    run.complete(1, "A")

    assert (calls(run), run.result) == ([["a", 0, 1]], "A")


def test_one_task_for_many_items_may_be_a_signature(begin: Begin) -> None:
    def code(ctx: WorkflowContext) -> Any:
        return ctx.map(sig("a", "x"), [1, 2]).results

    run = begin(code)

    assert calls(run) == [["a", 1, "x"], ["a", 2, "x"]]


def test_a_group_of_which_one_cannot_begin_takes_the_others_along() -> None:
    def code(ctx: WorkflowContext) -> Any:
        return ctx.step(group(sig("a"), sig("b", object())))

    run = Run(code).start()

    assert isinstance(failure(run), PayloadError)
    assert (calls(run), run.cancelled()) == ([["a"]], [1])


LATER = datetime(2030, 1, 1)  # noqa: DTZ001 - that is the point
REFUSED: dict[str, tuple[Any, str]] = {
    "no task": ({"args": [1]}, "neither a Celery task nor a signature"),
    "a chain of something else": (chain(sig("a"), {"x": 1}), "neither a Celery task nor a signature"),
    "an option without a meaning here": (sig("a", expires=5), "signature of a has the option expires"),
    "an unknown option": (group(sig("a"), sig("b", reject=True)), "signature of b has the option reject"),
    "an errback that wants to see": (sig("a", link_error=sig("b")), "make it immutable"),
    "an errback that is a chain": (sig("a", link_error=chain(sig("b", immutable=True))), "make it immutable"),
    "an eta without a time zone": (sig("a", eta=LATER.isoformat()), "names no instant"),
    "a chord without a body": (chord([sig("a")], None), "needs a body"),
    "a negative countdown": (sig("a", countdown=-1), "a duration is"),
    "a child's time limit": ({**sig("a", time_limit=5), "durable": True}, "time_limit: not for a child run"),
    "chunks of nothing": (sig("celery.chunks", kwargs={"task": sig("a"), "it": [[1]], "n": 0}), "chunks of 0"),
}


@forms(step_sync, step_async)
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(code: Code, case: str) -> None:
    canvas, message = REFUSED[case]
    run = Run(code).start(canvas)

    assert isinstance(failure(run), UnknownTaskError | InvalidRequestError)
    with pytest.raises(InvalidRequestError, match=message):
        raise failure(run)
    assert run.kinds() == ["RunFailed"]


@pytest.mark.parametrize("compensates", [True, False])
def test_verbs_that_take_no_signature_say_so(compensates: bool) -> None:
    def code(ctx: WorkflowContext) -> None:
        if compensates:
            with ctx.saga() as saga:
                saga.compensate(sig("a"))
        else:
            ctx.poll(sig("a"), every=5)

    assert "is for ctx.step and ctx.start" in str(failure(Run(code).start()))
