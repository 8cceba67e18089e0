"""Overrides: what stands in the place of a task, and the messages for those that cannot."""

# Celery carries no types: to pyright a task is the function that it was made of.
# pyright: reportArgumentType=false, reportFunctionMemberAccess=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from unittest.mock import call

import pytest

from durable_celery.errors import InvalidRequestError
from durable_celery.testing import Environment, fails, raises, remote, returns
from tests.testing import shop

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
CHARGE, FETCH = "tests.testing.shop.charge", "tests.testing.shop.fetch"


@pytest.fixture
def env() -> Iterator[Environment]:
    shop.seen.clear()
    with Environment(shop.app, now=NOON) as environment:
        yield environment


def test_a_value_is_what_the_step_returns(env: Environment) -> None:
    assert env.run(shop.checkout, "o-1", 1200, steps={shop.charge: "pay-7"}) == "pay-7"

    assert shop.seen == []
    assert env.calls(shop.charge) == [call("o-1", 1200)]
    assert env.calls(shop.send) == [call("o-1", "pay-7")]


def test_a_task_may_be_given_by_name(env: Environment) -> None:
    assert env.run(shop.checkout, "o-1", 1200, steps={CHARGE: None}) is None


def test_a_function_is_called_with_the_steps_arguments(env: Environment) -> None:
    steps = {shop.charge: lambda order_id, amount: f"{order_id}/{amount}"}

    assert env.run(shop.checkout, "o-1", 1200, steps=steps) == "o-1/1200"


def test_returns_says_the_same_as_a_value(env: Environment) -> None:
    assert env.run(shop.checkout, "o-1", 1200, steps={shop.charge: returns("a")}) == "a"


def test_an_error_is_raised_in_the_workflow(env: Environment) -> None:
    with pytest.raises(shop.DeclinedError, match="o-1"):
        env.run(shop.checkout, "o-1", 1200, steps={shop.charge: raises(shop.DeclinedError("o-1"))})


def test_a_tasks_own_retries_stand_around_the_failures(env: Environment) -> None:
    steps = {shop.fetch: fails(2).then("ok")}

    assert env.run(shop.any_step, FETCH, "u", steps=steps) == "ok"
    assert env.executions[FETCH] == 3
    assert env.now == NOON + timedelta(minutes=2)
    assert [one.attempt for one in env.executed(shop.fetch)] == [1, 2, 3]
    assert str(env.executed(shop.fetch)[1].error) == "failure 2 of 2 that the test asked for"


def test_after_its_failures_the_real_task_runs(env: Environment) -> None:
    assert env.run(shop.any_step, FETCH, "u", steps={shop.fetch: fails(1)}) == "page u"


def test_an_error_that_is_not_retried_fails_the_step(env: Environment) -> None:
    with pytest.raises(ValueError, match="no such page"):
        env.run(shop.any_step, FETCH, "u", steps={shop.fetch: fails(1, ValueError("no such page")).then("ok")})


def test_results_follow_one_another_and_the_last_one_stays(env: Environment) -> None:
    waiting = returns("not yet").then("not yet").then("ready")

    assert env.run(shop.poll, steps={shop.charge: waiting}) == 3
    assert env.now == NOON + timedelta(minutes=2)
    env.override({shop.charge: waiting})
    assert env.run(shop.poll) == 3
    assert env.run(shop.poll) == 1


def test_children_are_overridden_in_the_same_way(env: Environment) -> None:
    assert env.run(shop.family, "o-1", steps={shop.checkout: returns("one").then("two")}) == ["one", "two"]

    assert env.calls(shop.charge) == []
    assert env.calls(shop.checkout) == [call("o-1", 1), call("o-1", 2)]


def test_an_overridden_child_may_fail(env: Environment) -> None:
    with pytest.raises(shop.DeclinedError):
        env.run(shop.family, "o-1", steps={shop.checkout: raises(shop.DeclinedError("child"))})


def test_a_task_of_another_service_is_named(env: Environment) -> None:
    steps = {remote("ocr.read"): lambda path: f"text of {path}"}

    assert env.run(shop.any_step, "ocr.read", "a.png", steps=steps) == "text of a.png"
    assert env.calls("ocr.read") == [call("a.png")]
    assert "ocr.read" in shop.app.tasks


def test_a_task_of_another_service_is_forgotten_afterwards() -> None:
    with Environment(shop.app) as env:
        env.run(shop.any_step, "ocr.read", "a.png", steps={remote("ocr.read"): "x"})

    assert "ocr.read" not in shop.app.tasks


def refusal(env: Environment, steps: object) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        env.override(steps)  # type: ignore[arg-type] # wrong on purpose
    return str(caught.value)


def test_an_override_of_an_unknown_task_is_refused_with_the_nearest_name(env: Environment) -> None:
    text = refusal(env, {"tests.testing.shop.chrage": 1})

    assert text.startswith("steps names the task 'tests.testing.shop.chrage', which this app does not have.")
    assert "Did you mean 'tests.testing.shop.charge'?" in text
    assert "remote('tests.testing.shop.chrage')" in text


def test_an_override_of_something_that_is_no_task_is_refused(env: Environment) -> None:
    assert refusal(env, {shop.note: 1}) == "steps is keyed by Celery tasks or their names; note is neither"
    assert "takes a mapping" in refusal(env, [shop.charge])


def test_a_function_with_other_parameters_is_refused(env: Environment) -> None:
    text = refusal(env, {shop.charge: lambda order_id: order_id})

    assert text.startswith(
        f"the override of {CHARGE} takes (order_id), the task takes (order_id: 'str', amount: 'int')"
    )
    assert "too many positional arguments" in text
    assert "the override of" in refusal(env, {shop.charge: fails(1).then(lambda: 1)})
    assert "the override of" in refusal(env, {shop.checkout: lambda: 1})


def test_an_exception_as_a_value_is_refused(env: Environment) -> None:
    assert "write raises(" in refusal(env, {shop.charge: shop.DeclinedError("x")})
    assert "write raises(" in refusal(env, {shop.charge: ValueError})


def test_an_async_function_is_refused(env: Environment) -> None:
    async def late(order_id: str, amount: int) -> None: ...

    assert "is an `async def` function" in refusal(env, {shop.charge: late})


def test_no_failures_are_no_script() -> None:
    with pytest.raises(InvalidRequestError, match="from 1"):
        fails(0)


def test_overrides_end_with_the_environment(env: Environment) -> None:
    with Environment(shop.app) as inner:
        assert inner.run(shop.checkout, "o", 1, steps={shop.charge: "inner"}) == "inner"

    assert env.run(shop.checkout, "o", 1) == "pay-o"


def test_a_workflow_may_have_a_parameter_named_steps(env: Environment) -> None:
    env.override({shop.charge: 1})

    assert env.run(shop.with_steps, steps=3) == 3
