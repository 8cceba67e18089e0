"""What a task may say about its step, in an environment: heartbeats, progress, an outcome from outside."""

# Celery carries no types: to pyright a task is the function that it was made of.
# pyright: reportArgumentType=false, reportFunctionMemberAccess=false, reportCallIssue=false

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from durable_celery import (
    AsyncWorkflowContext,
    ExternalError,
    NonRetryable,
    RetryAfter,
    StepCancelled,
    StepInfo,
    StepLostError,
    StepNotOpenError,
    StepTimeoutError,
    WorkflowContext,
    WorkflowNotFoundError,
    current_step,
    durable_task,
)
from durable_celery.errors import InvalidRequestError, PayloadError
from durable_celery.rows import unseen_ends
from durable_celery.store.protocol import Refusal, StepState
from durable_celery.testing import Environment, fails
from durable_celery.testing.watch import Crash

app = Celery("factory", broker="memory://", set_as_current=False)


def here() -> StepInfo:
    step = current_step()
    assert step is not None
    return step


@app.task
def climb(top: int) -> list[Any]:
    """Climb one level for each attempt, from where the last one stopped."""
    step = here()
    found = step.progress or 0
    for level in range(found, top):
        step.heartbeat({"level": level})
        step.heartbeat(level + 1)
        if level > found:
            raise ConnectionError(level)
    return [found, step.attempt]


@app.task
def save(progress: Any) -> None:
    here().heartbeat(progress)


@app.task
def hand_out() -> None:
    raise here().complete_later()


@app.task
def swallow() -> str:
    """Leave the outcome to others, in code that catches what it can."""
    try:
        hand_out.run()
    except Exception:  # noqa: BLE001 - that is the point
        return "swallowed"
    return "not reached"


@app.task
def polite() -> str:
    return "stopped" if here().is_cancelled else "wanted"


@app.task
def asks_for_more(kind: str) -> int:
    step = here()
    if step.attempt == 1:
        step.heartbeat("half")
        raise RetryAfter(5) if kind == "later" else NonRetryable("no")
    assert step.progress == "half"
    return step.attempt


@durable_task(app=app)
def blocking(ctx: WorkflowContext, name: str, args: list[Any], options: dict[str, Any]) -> Any:
    return ctx.options(**options).step(app.tasks[name], *args)


@durable_task(app=app)
async def awaiting(ctx: AsyncWorkflowContext, name: str, args: list[Any], options: dict[str, Any]) -> Any:
    return await ctx.options(**options).step(app.tasks[name], *args)


@pytest.fixture
def env() -> Iterator[Environment]:
    with Environment(app) as environment:
        yield environment


both = pytest.mark.parametrize("flow", [blocking, awaiting], ids=["def", "async def"])


def step_of(handle: Any) -> Any:
    (step,) = handle.describe().steps
    return step


@both
def test_progress_is_given_to_the_next_attempt(env: Environment, flow: Any) -> None:
    assert env.run(flow, climb.name, [3], {"retry": 3}) == [2, 2]


def test_progress_that_was_only_noted_is_written_when_the_attempt_fails(env: Environment) -> None:
    handle = env.start(blocking, climb.name, [9], {"retry": 3})

    assert json.loads(step_of(handle).progress) == 2, "the newest, though the first one was written a moment before"


@pytest.mark.parametrize(
    ("progress", "story"), [("x" * 10_000, "has 10002 characters, the limit is 10000"), (object, "cannot be recorded")]
)
def test_progress_that_cannot_be_saved_fails_the_step(env: Environment, progress: Any, story: str) -> None:
    steps = {save: lambda _: here().heartbeat(progress)}

    with pytest.raises(PayloadError, match=story):
        env.run(blocking, save.name, [0], {}, steps=steps)


def test_a_heartbeat_without_progress_leaves_what_is_saved(env: Environment) -> None:
    def act(_: Any) -> Any:
        step = here()
        step.heartbeat([1])
        step.heartbeat()
        return step.progress

    assert env.run(blocking, save.name, [0], {}, steps={save: act}) == [1]


def test_a_heartbeat_asks_the_store_once_a_second_at_most(env: Environment) -> None:
    asked: list[Any] = []
    plain = env.system.store.claim

    def claim(*args: Any, **changes: Any) -> Any:
        asked.append(changes.get("progress"))
        return plain(*args, **changes)

    env.system.store.claim = claim  # type: ignore[method-assign] # counts
    env.run(blocking, save.name, [0], {}, steps={save: lambda _: list(map(here().heartbeat, range(50)))})

    assert asked == [None, "0"], "the claim, the first heartbeat; the outcome makes the others needless"


def test_an_attempt_that_was_taken_over_ends_without_an_outcome(env: Environment) -> None:
    def act(_: Any) -> str:
        step = here()
        if step.attempt == 1:
            env.system.store.renew([], gone=[env.system.name])
            env.system.store.sweep()
            with pytest.raises(StepCancelled, match="this attempt was given up, and another may have begun"):
                step.heartbeat()
            step.heartbeat()
        return f"attempt {step.attempt}"

    assert env.run(blocking, save.name, [0], {}, steps={save: act}) == "attempt 2"


def test_a_cancel_is_seen_by_a_step_that_asks(env: Environment) -> None:
    seen: list[bool] = []

    def act(_: Any) -> None:
        step = here()
        seen.append(step.is_cancelled)
        assert step.pulse is not None
        step.pulse.refusal = Refusal.CANCELLED
        seen.append(step.is_cancelled)

    env.run(blocking, save.name, [0], {}, steps={save: act})

    assert seen == [False, True]


def test_a_step_that_nobody_cancels_is_wanted(env: Environment) -> None:
    assert env.run(blocking, polite.name, [], {}) == "wanted"


def test_a_step_made_by_hand_listens_to_nobody() -> None:
    step = StepInfo(workflow_id="w", workflow="f", run=1, step=1, attempt=1, key="w/1.1")

    step.heartbeat({"any": object()})

    assert (step.progress, step.is_cancelled) == (None, False)


# -- outcomes from outside ---------------------------------------------------------------------------------------------


@both
def test_a_step_waits_for_its_outcome_from_outside(env: Environment, flow: Any) -> None:
    handle = env.start(flow, hand_out.name, [], {})
    assert step_of(handle).state is StepState.WAITING

    env.complete_step(env.executed(hand_out)[0].key or "", {"paid": 12})

    assert handle.get() == {"paid": 12}
    assert len(env.executed(hand_out)) == 1


@both
def test_a_step_may_fail_from_outside_whatever_its_policy(env: Environment, flow: Any) -> None:
    handle = env.start(flow, hand_out.name, [], {"retry": 5})

    env.fail_step(env.executed(hand_out)[0].key or "", "declined")

    with pytest.raises(ExternalError, match="declined") as caught:
        handle.get()
    assert f"in step {hand_out.name} ({handle.id}/1.1), told from outside" in str(caught.value.__cause__)
    assert "told from outside" in env.history(handle)


def test_rows_of_monitors_are_closed_where_the_outcome_came_from_outside(env: Environment) -> None:
    ends = []
    for give in (env.complete_step, env.fail_step):
        handle = env.start(blocking, hand_out.name, [], {})
        give(f"{handle.id}/1.1", "so it is")
        ends += unseen_ends(env.system.binding, handle.describe(), handle.history())

    assert [(step.task, kind) for step, kind, _ in ends] == [
        (hand_out.name, "task-succeeded"),
        (hand_out.name, "task-failed"),
    ]


def test_an_exception_may_be_given(env: Environment) -> None:
    handle = env.start(blocking, hand_out.name, [], {})

    env.fail_step(f"{handle.id}/1.1", ValueError("no such card"))

    with pytest.raises(ValueError, match="no such card"):
        handle.get()


def test_the_outcome_may_come_before_the_task_has_ended(env: Environment) -> None:
    def act() -> None:
        step = here()
        env.system.binding.client.complete_step(step.key, "early")
        raise step.complete_later()

    assert env.run(blocking, hand_out.name, [], {}, steps={hand_out: act}) == "early"


def test_a_task_that_catches_what_it_can_does_not_catch_it(env: Environment) -> None:
    handle = env.start(blocking, swallow.name, [], {})

    assert step_of(handle).state is StepState.WAITING


def test_a_step_that_waits_too_long_fails(env: Environment) -> None:
    with pytest.raises(StepTimeoutError, match="within its timeout of 60 s"):
        env.run(blocking, hand_out.name, [], {"timeout": 60})


def test_a_step_that_nobody_works_at_is_tried_again(env: Environment) -> None:
    handle = env.start(blocking, hand_out.name, [], {"heartbeat_timeout": 60})
    client = env.system.binding.client
    for minute in range(3):
        env.skip(50)
        assert client.heartbeat_step(f"{handle.id}/1.1", {"minute": minute})
    assert len(env.executed(hand_out)) == 1

    env.skip(61)

    assert [one.attempt for one in env.executed(hand_out)] == [1, 2]
    assert json.loads(step_of(handle).progress) == {"minute": 2}


def test_a_heartbeat_from_outside_is_not_taken_while_an_attempt_runs(env: Environment) -> None:
    taken: list[bool] = []

    def act() -> None:
        taken.append(env.system.binding.client.heartbeat_step(here().key))

    env.run(blocking, hand_out.name, [], {}, steps={hand_out: act})

    assert taken == [False]


def test_a_step_has_one_outcome(env: Environment) -> None:
    handle = env.start(blocking, hand_out.name, [], {})
    token = f"{handle.id}/1.1"
    client = env.system.binding.client
    client.complete_step(token, [1])

    client.complete_step(token, [1])
    with pytest.raises(StepNotOpenError, match="it has its outcome already; nothing was written"):
        client.complete_step(token, [2])
    with pytest.raises(StepNotOpenError, match="it has its outcome already"):
        client.fail_step(token, "no")
    with pytest.raises(StepNotOpenError, match="it has its outcome already"):
        client.heartbeat_step(token)

    assert handle.get() == [1]
    with pytest.raises(StepNotOpenError, match="is already completed"):
        client.complete_step(token, [2])


def test_a_cancelled_step_takes_no_outcome(env: Environment) -> None:
    handle = env.start(blocking, hand_out.name, [], {})
    env.cancel(handle)

    with pytest.raises(StepNotOpenError, match="cancelled"):
        env.complete_step(f"{handle.id}/1.1")


@pytest.mark.parametrize("token", ["", "w", "w/1", "w/1.x", "a b/1.1", "w/01.1", "w/1.1 ", 7])
def test_what_can_be_no_token_is_refused(env: Environment, token: Any) -> None:
    with pytest.raises(InvalidRequestError, match="no token of a step"):
        env.complete_step(token)


def test_tokens_of_nothing_are_refused(env: Environment) -> None:
    handle = env.start(blocking, hand_out.name, [], {})

    with pytest.raises(WorkflowNotFoundError):
        env.complete_step("nobody/1.1")
    with pytest.raises(StepNotOpenError, match="the workflow has no such step"):
        env.complete_step(f"{handle.id}/1.2")
    with pytest.raises(StepNotOpenError, match="is in its run 1"):
        env.complete_step(f"{handle.id}/2.1")
    with pytest.raises(PayloadError):
        env.complete_step(f"{handle.id}/1.1", object())

    assert step_of(handle).state is StepState.WAITING


def test_a_child_takes_its_outcome_from_its_own_end(env: Environment) -> None:
    @durable_task(app=app, name="parent")
    def parent(ctx: WorkflowContext) -> Any:
        return ctx.step(blocking, hand_out.name, [], {})

    handle = env.start(parent)

    with pytest.raises(StepNotOpenError, match="no attempt of it has begun"):
        env.complete_step(f"{handle.id}/1.1")
    env.complete_step(f"{handle.id}/1.1/1.1", "from below")
    assert handle.get() == "from below"


# -- at most once ------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("retry", [None, 5])
def test_a_step_that_is_not_to_be_repeated_fails_when_its_process_is_lost(
    env: Environment, flow: Any, retry: int | None
) -> None:
    def act(_: Any) -> str:
        # What stood here is taken for dead, and comes back late.
        env.system.store.renew([], gone=[env.system.name])
        env.system.store.sweep()
        return "late"

    with pytest.raises(StepLostError, match="lost its process and is not repeated") as caught:
        env.run(flow, save.name, [0], {"at_most_once": True, "retry": retry}, steps={save: act})

    assert len(env.executed(save)) == 1
    assert "nobody knows whether it took effect" in str(caught.value)


def test_a_step_that_is_not_to_be_repeated_is_not_when_its_process_ends_in_the_midst(env: Environment) -> None:
    def act(_: Any) -> None:
        raise Crash

    with pytest.raises(StepLostError, match="was ended by Crash and is not repeated"):
        env.run(blocking, save.name, [0], {"at_most_once": True, "retry": 5}, steps={save: act})

    assert len(env.executed(save)) == 1


@both
def test_an_error_that_was_raised_may_be_tried_again(env: Environment, flow: Any) -> None:
    steps = {save: fails(2).then("done")}

    assert env.run(flow, save.name, [0], {"at_most_once": True, "retry": 3}, steps=steps) == "done"
    assert len(env.executed(save)) == 3


# -- options -----------------------------------------------------------------------------------------------------------


@both
def test_a_step_asks_for_another_attempt_and_keeps_its_progress(env: Environment, flow: Any) -> None:
    options = {"at_most_once": True, "heartbeat_timeout": 60, "attempt_timeout": 60}

    assert env.run(flow, asks_for_more.name, ["later"], options) == 2


def test_what_is_not_to_be_tried_again_is_not(env: Environment) -> None:
    with pytest.raises(NonRetryable, match="no"):
        env.run(blocking, asks_for_more.name, ["never"], {"retry": 5, "at_most_once": True})


@both
@pytest.mark.parametrize("name", ["timeout", "start_timeout", "attempt_timeout", "heartbeat_timeout"])
@pytest.mark.parametrize(("value", "story"), [(0, "before it begins"), (-1, "a duration"), ("x", "a duration")])
def test_limits_that_cannot_be_meant_are_refused(
    env: Environment, flow: Any, name: str, value: Any, story: str
) -> None:
    with pytest.raises(InvalidRequestError, match=story):
        env.run(flow, polite.name, [], {name: value})

    assert env.executed(polite) == []


def test_at_most_once_is_yes_or_no(env: Environment) -> None:
    with pytest.raises(InvalidRequestError, match="at_most_once is True or False"):
        env.run(blocking, polite.name, [], {"at_most_once": 1})


@pytest.mark.parametrize("name", ["start_timeout", "attempt_timeout", "heartbeat_timeout", "at_most_once"])
def test_a_child_and_a_local_step_have_no_attempts(env: Environment, name: str) -> None:
    options: dict[str, Any] = {name: True if name == "at_most_once" else 5}

    @durable_task(app=app, name=f"local-{name}")
    def local(ctx: WorkflowContext) -> Any:
        return ctx.options(**options).run(int)

    @durable_task(app=app, name=f"parent-{name}")
    def parent(ctx: WorkflowContext) -> Any:
        return ctx.options(**options).step(blocking, polite.name, [], {})

    with pytest.raises(InvalidRequestError, match=f"a child workflow has no attempts, so it does not take {name}"):
        env.run(parent)
    with pytest.raises(InvalidRequestError, match=f"a local step takes the options retry and name, not {name}"):
        env.run(local)
