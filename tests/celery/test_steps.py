"""Any registered task is a step without being touched, and behaves as before where no workflow calls it."""

from __future__ import annotations

from typing import Any

import pytest
from celery.app.task import Context

from durable_celery.steps import wrap_tasks
from tests.waiting import wait_until

WAIT = 30


def test_a_step_runs_with_its_own_base_class_and_all_its_hooks(shop: Any, key: str) -> None:
    assert shop.one_step.delay("shop.loud", key).get(WAIT) == f"loud {key}"

    expected = ["apply_async", "before_start", "call", "on_success", "after_return SUCCESS"]
    wait_until(lambda: shop.noted(f"loud:{key}") == expected, WAIT, lambda: str(shop.noted(f"loud:{key}")))


def test_the_failure_hooks_of_a_step_run(shop: Any, key: str) -> None:
    assert shop.caught.delay("shop.loud", key, True).get(WAIT)[0] == "LookupError"

    expected = ["apply_async", "before_start", "call", "on_failure", "after_return FAILURE"]
    wait_until(lambda: shop.noted(f"loud:{key}") == expected, WAIT, lambda: str(shop.noted(f"loud:{key}")))


def test_a_task_with_its_own_base_class_behaves_as_before_when_no_workflow_calls_it(shop: Any, key: str) -> None:
    assert shop.loud.delay(key).get(WAIT) == f"loud {key}"

    expected = ["apply_async", "before_start", "call", "on_success", "after_return SUCCESS"]
    wait_until(lambda: shop.noted(f"loud:{key}") == expected, WAIT, lambda: str(shop.noted(f"loud:{key}")))


def test_the_id_of_a_step_is_its_idempotency_key_and_it_knows_where_it_belongs(shop: Any, key: str) -> None:
    told = shop.one_step.apply_async(("shop.bound",), task_id=key).get(WAIT)

    assert told == {
        "id": f"{key}/1.1",
        "root": key,
        "parent": key,
        "name": "shop.bound",
        "queue": "celery",
        "step": [key, "shop.one_step", 1, 1, 1, f"{key}/1.1"],
    }


def test_a_task_that_no_workflow_called_is_no_step(shop: Any) -> None:
    assert shop.bound.delay().get(WAIT)["step"] is None


def test_a_direct_call_is_a_function_call(shop: Any) -> None:
    assert shop.add(2, 3) == 5
    assert shop.price({"id": "o", "amount": 2}) == {"id": "o", "amount": 4}


def test_a_step_goes_by_the_routes_of_its_task(shop: Any) -> None:
    assert shop.one_step.delay("shop.routed").get(WAIT) == "side"


@pytest.mark.parametrize("through_workflow", [True, False])
def test_autoretry_works(shop: Any, through_workflow: bool) -> None:
    started = shop.one_step.delay("shop.moody", 2) if through_workflow else shop.moody.delay(2)

    assert started.get(WAIT) == 2


def test_an_exhausted_autoretry_raises_the_tasks_exception_in_the_workflow(shop: Any) -> None:
    name, message, place = shop.caught.apply_async(("shop.moody", 9), task_id=None).get(WAIT)

    assert (name, message) == ("ValueError", "mood 2")
    assert "attempt 3" in place


def test_a_retry_with_other_arguments_keeps_the_id_and_counts(shop: Any, key: str) -> None:
    started = shop.one_step.apply_async(("shop.growing", 0, 2), task_id=key)

    assert started.get(WAIT) == [2, 2, f"{key}/1.1", 3]


def test_a_soft_time_limit_is_raised_in_the_task(shop: Any) -> None:
    assert shop.one_step.delay("shop.slow", 20).get(WAIT) == "soft"
    assert shop.slow.delay(20).get(WAIT) == "soft"


def test_a_hard_time_limit_ends_the_attempt_and_the_step_is_tried_again(shop: Any, key: str) -> None:
    started = shop.one_step.apply_async(("shop.stuck", key, 2), task_id=key)

    assert started.get(WAIT) == 2
    assert shop.noted(f"stuck:{key}") == [f"{key}/1.1"] * 2


def test_a_rate_limit_holds_for_steps(shop: Any) -> None:
    handles = [shop.one_step.delay("shop.limited", number) for number in range(3)]
    times = sorted(handle.get(WAIT) for handle in handles)

    # Two a second: three of them take a second, less the first one's.
    assert times[-1] - times[0] > 0.8


@pytest.mark.parametrize("through_workflow", [True, False])
def test_a_pydantic_task_gets_its_model(shop: Any, through_workflow: bool) -> None:
    order = {"id": "o-1", "amount": 3}
    started = shop.one_step.delay("shop.price", order) if through_workflow else shop.price.delay(order)

    assert started.get(WAIT) == {"id": "o-1", "amount": 6}


@pytest.mark.parametrize("name", ["shop.yaml", "shop.quiet"])
def test_serializer_and_ignore_result_of_a_task_are_its_own_affair(shop: Any, name: str) -> None:
    assert shop.one_step.delay(name, 1).get(WAIT) == 2


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("shop.add", (1, 2), ["task_prerun", "task_success", "task_postrun"]),
        ("shop.boom", (), ["task_prerun", "task_failure", "task_postrun"]),
        ("shop.moody", (1,), ["task_prerun", "task_retry", "task_postrun", "task_prerun", "task_postrun"]),
    ],
)
def test_the_signals_of_a_step_are_those_of_the_task(
    shop: Any, key: str, name: str, args: tuple[int, ...], expected: list[str]
) -> None:
    shop.caught.apply_async((name, *args), task_id=key).get(WAIT)
    shop_signals = f"signals:{key}/1.1"
    if name == "shop.moody":
        expected = [*expected[:-1], "task_success", expected[-1]]

    def are_told(name: str) -> bool:
        # A retry may begin in another process before the signals of the attempt before it have all been sent.
        return sorted(shop.noted(name)) == sorted(expected)

    wait_until(lambda: are_told(shop_signals), WAIT, lambda: str(shop.noted(shop_signals)))

    plain = shop.app.tasks[name].delay(*args)
    plain.get(WAIT, propagate=False)
    wait_until(lambda: are_told(f"signals:{plain.id}"), WAIT, f"the signals of {plain.id}")


class CountingContext(Context):
    """A request that counts what is asked of it."""

    def __init__(self) -> None:
        super().__init__({"id": "plain", "called_directly": False})
        self.asked: list[str] = []

    def get(self, key: str, default: object = None) -> Any:
        self.asked.append(key)
        return super().get(key, default)


class Untouchable:
    """Stands for a binding that nothing may be asked of."""

    def __init__(self, app: Any) -> None:
        self.app = app


def test_a_call_by_no_workflow_costs_one_look_at_the_header(run_python: Any) -> None:
    # In a process of its own: wrapping is for workers, and the tasks here are the tests' own.
    answer = run_python(
        "from tests.celery.shop import app, add\n"
        "from tests.celery.test_steps import CountingContext, Untouchable\n"
        "from durable_celery.steps import wrap_tasks\n"
        "wrap_tasks(Untouchable(app))\n"
        "request = CountingContext()\n"
        "add.request_stack.push(request)\n"
        "print(add.run(2, 3), request.asked)\n"
    )

    assert answer == "5 ['durable']"


def test_tasks_are_wrapped_in_workers_only(configured_shop: Any) -> None:
    assert wrap_tasks.__module__ == "durable_celery.steps"
    assert not hasattr(configured_shop.add.run, "durable_plain")
