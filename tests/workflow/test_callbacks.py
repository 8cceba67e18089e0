"""Callbacks: answers from outside by a token, in both forms, kept and replayed in each turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from durable_celery.codec import CallbackToken, failure_text, rebuild
from durable_celery.errors import (
    CallbackFailedError,
    HeartbeatTimeoutError,
    InvalidRequestError,
    NonDeterminismError,
    RemoteError,
    UnknownTaskError,
    WaitTimeoutError,
)
from durable_celery.events import CommandCancelled, LocalStepCompleted, RunCancelled, RunFailed, StepScheduled
from durable_celery.workflow import AsyncWorkflowContext, WorkflowContext
from tests.workflow.log import CODEC, Run, charge

Code = Callable[..., Any]
Begin = Callable[..., Run]


def forms(*codes: Code) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("code", codes, ids=["def", "async def"])


def failure(run: Run) -> Exception:
    assert isinstance(run.last, RunFailed)
    return rebuild(run.last.payload, CODEC)


def token(run: Run, number: int = 1) -> CallbackToken:
    """Return the token of a callback, which stands in the history."""
    made = next(event for event in run.outputs if event.number == number)
    assert isinstance(made, LocalStepCompleted)
    return CallbackToken.parse(CODEC.decode(made.payload))


def answer(run: Run, value: Any, number: int = 1) -> None:
    run.signal(token(run, number).signal, {"value": value})


def refuse(run: Run, error: BaseException, number: int = 1) -> None:
    run.signal(token(run, number).signal, {"failure": CODEC.decode(failure_text(error, CODEC))})


def beat(run: Run, number: int = 1) -> None:
    run.signal(token(run, number).signal, {"beat": None})


def timers_left(run: Run) -> list[int]:
    """Return the timers that nobody cancelled and that have not fired."""
    started = [event.number for event in run.outputs if type(event).__name__ == "TimerStarted"]
    fired = [item.event.number for item in run.events if type(item.event).__name__ == "TimerFired"]  # type: ignore[attr-defined]  # it has one
    return [number for number in started if number not in {*run.cancelled(), *fired}]


# --------------------------------------------------------------------------- ctx.callback


def plain_sync(ctx: WorkflowContext, timeout: float | None, heartbeat: float | None) -> Any:
    callback = ctx.callback(timeout=timeout, heartbeat=heartbeat)
    ctx.step(charge, callback.token)
    return callback.result()


async def plain_async(ctx: AsyncWorkflowContext, limit: float | None, heartbeat: float | None) -> Any:
    callback = ctx.callback(timeout=limit, heartbeat=heartbeat)
    await ctx.step(charge, callback.token)
    return await callback


@forms(plain_sync, plain_async)
def test_an_answer_from_outside_is_the_result(code: Code, begin: Begin) -> None:
    run = begin(code, None, None)
    run.complete(2, "submitted")
    assert run.execution.waiting == "callback (1)"
    answer(run, {"paid": 12})

    assert run.result == {"paid": 12}
    assert run.kinds() == ["LocalStepCompleted", "StepScheduled", "RunCompleted"]


@forms(plain_sync, plain_async)
def test_the_token_of_a_step_names_run_and_callback_and_is_the_same_on_every_replay(code: Code, begin: Begin) -> None:
    run = begin(code, None, None)
    scheduled = next(event for event in run.outputs if isinstance(event, StepScheduled))
    given = CODEC.decode(scheduled.payload)[0][0]

    assert CallbackToken.parse(given) == token(run)
    assert (token(run).workflow_id, token(run).run, token(run).number) == ("w-1", 1, 1)
    # A cold replay has held the argument against the record.
    run.go_cold()


def test_two_callbacks_have_secrets_that_nobody_can_guess_from_each_other() -> None:
    def code(ctx: WorkflowContext) -> None:
        ctx.gather(ctx.callback(), ctx.callback())

    run, other = Run(code).start(), Run(code).start()
    secrets = {token(one, number).secret for one in (run, other) for number in (1, 2)}

    assert len(secrets) == 4
    assert min(map(len, secrets)) >= 20


@forms(plain_sync, plain_async)
def test_an_answer_that_comes_before_anybody_waits_is_kept(code: Code, begin: Begin) -> None:
    run = begin(code, 60, 30)
    answer(run, "early")
    run.complete(4)

    assert run.result == "early"
    assert timers_left(run) == []


@forms(plain_sync, plain_async)
def test_the_first_answer_counts(code: Code, begin: Begin) -> None:
    run = begin(code, None, None)
    answer(run, "first")
    refuse(run, ValueError("second"))
    run.complete(2)

    assert run.result == "first"


@forms(plain_sync, plain_async)
@pytest.mark.parametrize(
    ("error", "kind"),
    [(CallbackFailedError("declined"), CallbackFailedError), (ValueError("declined"), ValueError)],
)
def test_a_failure_is_raised_where_it_is_waited_for(
    code: Code, begin: Begin, error: Exception, kind: type[Exception]
) -> None:
    run = begin(code, 60, 30)
    run.complete(4)
    refuse(run, error)

    raised = failure(run)
    assert type(raised) is kind
    assert str(raised) == "declined"
    assert timers_left(run) == []


def test_a_failure_of_a_class_that_is_unknown_here_is_a_remote_error() -> None:
    run = Run(plain_sync).start(None, None)
    run.complete(2)
    run.signal(token(run).signal, {"failure": {"type": "vendor.Declined", "message": "no funds"}})

    assert isinstance(failure(run), RemoteError)
    assert "no funds" in str(failure(run))


@forms(plain_sync, plain_async)
def test_no_answer_in_time_is_a_timeout(code: Code, begin: Begin) -> None:
    run = begin(code, 60, 30)
    run.complete(4)
    beat(run)
    run.fire(2)

    assert isinstance(failure(run), WaitTimeoutError)
    assert str(failure(run)) == "callback (1) got no answer within 60 s"
    assert timers_left(run) == []


@forms(plain_sync, plain_async)
def test_no_sign_of_life_in_time_is_a_heartbeat_timeout(code: Code, begin: Begin) -> None:
    run = begin(code, 3600, 30)
    run.complete(4)
    run.fire(3)

    assert isinstance(failure(run), HeartbeatTimeoutError)
    assert str(failure(run)) == "callback (1) gave no sign of life for 30 s"
    assert timers_left(run) == []


@forms(plain_sync, plain_async)
def test_signs_of_life_put_the_heartbeat_timeout_off_and_cost_one_timer_for_any_number_of_them(
    code: Code, begin: Begin
) -> None:
    run = begin(code, None, 30)
    run.complete(3)
    for _ in range(10):
        beat(run)
    run.fire(2)
    assert not run.execution.closed
    # The last sign came 11 s after the callback was made.
    last = next(event for event in reversed(run.outputs) if type(event).__name__ == "TimerStarted")
    assert last.due_at - run.events[0].at == 41_000  # type: ignore[attr-defined]  # a timer
    assert run.kinds().count("TimerStarted") == 2
    run.fire(4)

    assert isinstance(failure(run), HeartbeatTimeoutError)


@forms(plain_sync, plain_async)
def test_an_answer_cancels_the_timers(code: Code, begin: Begin) -> None:
    run = begin(code, 3600, 30)
    run.complete(4)
    answer(run, "done")

    assert run.result == "done"
    assert run.cancelled() == [2, 3]


@forms(plain_sync, plain_async)
def test_a_cancel_of_the_run_ends_the_wait_and_its_timers(code: Code, begin: Begin) -> None:
    run = begin(code, 3600, 30)
    run.complete(4)
    run.cancel()

    assert isinstance(run.last, RunCancelled)
    assert timers_left(run) == []


def race_sync(ctx: WorkflowContext) -> Any:
    callback = ctx.callback(timeout=3600)
    won = ctx.race(paid=callback, late=ctx.timer(60))
    # What comes for a callback that was given up is heard by nobody.
    return [won.name, callback.cancelled(), ctx.wait_signal("go")]


async def race_async(ctx: AsyncWorkflowContext) -> Any:
    callback = ctx.callback(timeout=3600)
    won = await ctx.race(paid=callback, late=ctx.timer(60))
    return [won.name, callback.cancelled(), await ctx.wait_signal("go")]


@forms(race_sync, race_async)
def test_a_callback_may_win_a_race(code: Code, begin: Begin) -> None:
    run = begin(code)
    answer(run, 1)
    run.signal("go", "on")

    assert run.result == ["paid", False, "on"]
    assert timers_left(run) == []


@forms(race_sync, race_async)
def test_a_callback_that_lost_a_race_is_given_up_with_its_timer(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.fire(3)
    assert timers_left(run) == []
    answer(run, "too late")
    assert not run.execution.closed
    run.signal("go", "on")

    assert run.result == ["late", True, "on"]


def many_sync(ctx: WorkflowContext) -> Any:
    return ctx.gather(*(ctx.callback() for _ in range(3)))


async def many_async(ctx: AsyncWorkflowContext) -> Any:
    return await ctx.gather(*(ctx.callback() for _ in range(3)))


@forms(many_sync, many_async)
def test_callbacks_are_told_apart_by_their_tokens(code: Code, begin: Begin) -> None:
    run = begin(code)
    for number in (3, 1, 2):
        answer(run, number * 10, number)

    assert run.result == [10, 20, 30]


@pytest.mark.parametrize("limits", [{"timeout": 0}, {"heartbeat": 0}, {"timeout": -1}, {"heartbeat": "soon"}])
def test_limits_that_cannot_be_meant_are_refused_before_anything_is_recorded(limits: dict[str, Any]) -> None:
    def code(ctx: WorkflowContext) -> None:
        ctx.callback(**limits)

    run = Run(code).start()

    assert isinstance(failure(run), InvalidRequestError)
    assert run.kinds() == ["RunFailed"]


def test_code_that_makes_no_callback_where_history_has_one_is_caught() -> None:
    run = Run(plain_sync).start(None, None)

    def changed(ctx: WorkflowContext, *_: Any) -> Any:
        return ctx.step(charge, "no token")

    other = Run(changed)
    other.events = run.events
    with pytest.raises(NonDeterminismError, match="callback"):
        other.go_cold()


def test_workflow_code_cannot_wait_for_the_signals_of_a_callback() -> None:
    def code(ctx: WorkflowContext) -> Any:
        ctx.callback()
        return ctx.wait_signal("durable:callback:1.1")

    run = Run(code).start()

    assert isinstance(failure(run), InvalidRequestError)


# --------------------------------------------------------------------------- wait_callback


def submit_sync(ctx: WorkflowContext, timeout: float | None = None, heartbeat: float | None = None) -> Any:
    return ctx.wait_callback(charge, "o-1", 1200, timeout=timeout, heartbeat=heartbeat)


async def submit_async(ctx: AsyncWorkflowContext, limit: float | None = None, heartbeat: float | None = None) -> Any:
    return await ctx.wait_callback(charge, "o-1", 1200, timeout=limit, heartbeat=heartbeat)


@forms(submit_sync, submit_async)
def test_a_step_gets_the_token_first_and_the_answer_comes_later(code: Code, begin: Begin) -> None:
    run = begin(code)
    scheduled = next(event for event in run.outputs if isinstance(event, StepScheduled))
    assert CODEC.decode(scheduled.payload) == [[str(token(run)), "o-1", 1200], {}]
    run.complete(2, "accepted")
    assert not run.execution.closed
    answer(run, "paid")

    assert run.result == "paid"


@forms(submit_sync, submit_async)
def test_an_answer_that_overtakes_the_step_is_taken_and_the_step_is_not_tried_again(code: Code, begin: Begin) -> None:
    run = begin(code, 60)
    answer(run, "paid at once")

    assert run.result == "paid at once"
    assert sorted(run.cancelled()) == [2, 3]


@forms(submit_sync, submit_async)
def test_a_step_that_fails_fails_the_wait(code: Code, begin: Begin) -> None:
    run = begin(code, 60, 30)
    run.fail(4, ConnectionError("the provider is away"))

    assert isinstance(failure(run), ConnectionError)
    assert timers_left(run) == []


@forms(submit_sync, submit_async)
def test_the_time_begins_with_the_call_and_takes_the_step_along(code: Code, begin: Begin) -> None:
    run = begin(code, 60)
    run.fire(2)

    assert isinstance(failure(run), WaitTimeoutError)
    assert [event.target for event in run.outputs if isinstance(event, CommandCancelled)] == [3]


@forms(submit_sync, submit_async)
def test_a_cancel_gives_step_and_callback_up(code: Code, begin: Begin) -> None:
    run = begin(code, 60)
    run.cancel()

    assert isinstance(run.last, RunCancelled)
    assert sorted(run.cancelled()) == [2, 3]


told: list[str] = []


def tell(text: str) -> None:
    told.append(text)
    if len(told) == 1:
        raise ConnectionError("the first time")


def local_sync(ctx: WorkflowContext) -> Any:
    return ctx.options(retry=2).wait_callback(tell, timeout=60)


async def local_async(ctx: AsyncWorkflowContext) -> Any:
    return await ctx.options(retry=2).wait_callback(tell, timeout=60)


@forms(local_sync, local_async)
def test_a_function_is_a_local_step_with_the_retries_of_one(code: Code, begin: Begin) -> None:
    told.clear()
    run = begin(code)
    assert run.kinds() == ["LocalStepCompleted", "TimerStarted", "LocalStepFailed", "TimerStarted"]
    run.fire(4)
    answer(run, "heard")

    assert run.result == "heard"
    assert told == [str(token(run))] * 2


@forms(local_sync, local_async)
def test_an_answer_between_two_tries_ends_the_tries(code: Code, begin: Begin) -> None:
    told.clear()
    run = begin(code)
    answer(run, "heard the first time")

    assert run.result == "heard the first time"
    assert timers_left(run) == []
    assert len(told) == 1


def test_what_is_no_task_is_refused_and_leaves_no_timer() -> None:
    def code(ctx: WorkflowContext) -> Any:
        return ctx.wait_callback(12, timeout=60)

    run = Run(code).start()

    assert isinstance(failure(run), UnknownTaskError)
    assert timers_left(run) == []


# --------------------------------------------------------------------------- tokens


def test_a_token_is_one_word_for_urls_and_shells() -> None:
    text = str(CallbackToken('w/1"? &~', 3, 2**40, 17, "s3cr-t_"))

    assert text.replace("-", "").replace("_", "").replace(".", "").isalnum()
    assert CallbackToken.parse(text) == CallbackToken('w/1"? &~', 3, 2**40, 17, "s3cr-t_")


REAL = str(CallbackToken("w-1", 1, 2, 3, "secret"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "w-1",
        REAL[:-3],
        REAL[:20] + ("A" if REAL[20] != "A" else "B") + REAL[21:],
        REAL + "==",
        REAL.swapcase(),
        "dcb1.",
        "dcb1.é",
        None,
        12,
    ],
)
def test_what_is_no_token_or_not_a_whole_one_is_refused(text: Any) -> None:
    with pytest.raises(InvalidRequestError, match="no token of a callback"):
        CallbackToken.parse(text)
