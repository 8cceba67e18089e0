"""What a workflow hears of a step that gives no ordinary result."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from durable_celery import NonRetryable, RemoteError, RetryAfter, WorkflowConflictError
from tests.waiting import wait_until

WAIT = 30


def test_wrong_arguments_are_a_type_error_in_the_workflow_and_write_nothing(shop: Any, key: str) -> None:
    answer = shop.caught.apply_async(("shop.add", 1), task_id=key).get(WAIT)

    assert answer[0] == "TypeError"
    assert "'y'" in answer[1]
    assert [type(item.event).__name__ for item in _history(shop, key)] == [
        "RunStarted",
        "RunCompleted",
    ]


def test_wrong_arguments_of_a_child_are_a_type_error_too(shop: Any) -> None:
    assert shop.caught.delay("shop.double").get(WAIT)[0] == "TypeError"


def test_wrong_arguments_of_a_start_are_a_type_error_at_the_caller(shop: Any, key: str) -> None:
    with pytest.raises(TypeError):
        shop.double.apply_async((), task_id=key)
    assert _record(shop, key) is None


@pytest.mark.parametrize(("name", "args"), [("shop.ignores", ()), ("shop.rejects", ("{key}", False))])
def test_a_step_that_is_ignored_or_rejected_fails_and_says_so(
    shop: Any, key: str, name: str, args: tuple[object, ...]
) -> None:
    given = [key if arg == "{key}" else arg for arg in args]
    answer = shop.caught.delay(name, *given).get(WAIT)

    assert answer[0] == "StepIgnoredError"
    assert name in answer[1]


def test_a_step_that_asks_to_be_queued_again_gets_another_attempt(shop: Any, key: str) -> None:
    assert shop.one_step.delay("shop.rejects", key, True).get(WAIT) == "taken"
    assert len(shop.noted(f"rejects:{key}")) == 2


def test_a_step_that_exits_its_process_fails_after_its_attempts(shop: Any, key: str) -> None:
    with pytest.raises(Exception, match="SystemExit"):
        shop.tried_step.delay(2, "shop.exits", key).get(WAIT)
    assert len(shop.noted(f"exits:{key}")) == 2


def test_without_a_policy_a_step_that_exits_its_process_does_not_loop(shop: Any, key: str) -> None:
    assert shop.caught.delay("shop.exits", key).get(WAIT)[0] == "StepLostError"
    assert len(shop.noted(f"exits:{key}")) == 5


def test_the_name_of_a_durable_task_is_no_step_and_the_workflow_is_told(shop: Any) -> None:
    answer = shop.by_name.delay("shop.double", 2).get(WAIT)

    assert answer[0] == "UnknownTaskError"
    assert "shop.double is a durable task" in answer[1]


def test_a_task_says_when_it_is_to_be_tried_again(shop: Any, key: str) -> None:
    assert shop.one_step.delay("shop.throttled", key, 2).get(WAIT) == 3

    times = [float(at) for at in shop.noted(f"throttled:{key}")]
    assert all(later - earlier >= 0.2 for earlier, later in pairwise(times))


def test_a_task_that_asks_again_and_again_uses_up_its_attempts(shop: Any, key: str) -> None:
    with pytest.raises(RetryAfter, match="too many requests"):
        shop.tried_step.delay(2, "shop.throttled", key, 5).get(WAIT)
    assert len(shop.noted(f"throttled:{key}")) == 2


def test_a_task_says_that_it_has_failed_for_good(shop: Any, key: str) -> None:
    with pytest.raises(NonRetryable, match="stolen"):
        shop.tried_step.delay(5, "shop.hopeless", key).get(WAIT)
    assert len(shop.noted(f"hopeless:{key}")) == 1


def test_a_function_decides_in_the_worker_whether_a_failure_passes(shop: Any, key: str) -> None:
    with pytest.raises(LookupError, match="gone"):
        shop.picky_step.delay("shop.sometimes", key).get(WAIT)
    assert len(shop.noted(f"sometimes:{key}")) == 3


def test_only_the_classes_that_are_named_are_tried_again(shop: Any, key: str) -> None:
    with pytest.raises(LookupError, match="transient"):
        shop.picky_step.delay("shop.sometimes", key, retryable=["ConnectionError"]).get(WAIT)
    assert len(shop.noted(f"sometimes:{key}")) == 1


def test_a_hard_time_limit_fails_a_step_that_has_no_attempt_left(shop: Any, key: str) -> None:
    with pytest.raises(Exception, match="no attempt is left"):
        shop.tried_step.delay(1, "shop.stuck", key, 9).get(WAIT)
    assert len(shop.noted(f"stuck:{key}")) == 1


def test_a_task_that_replaces_itself_is_told_that_a_step_cannot(shop: Any) -> None:
    answer = shop.caught.delay("shop.replaces").get(WAIT)

    assert answer[0] == "DurableError"
    assert "self.replace()" in answer[1]


def test_a_task_that_no_workflow_called_may_replace_itself(shop: Any) -> None:
    assert shop.replaces.delay().get(WAIT) == 3


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [("shop.opaque", (), "cannot be recorded"), ("shop.big", (1_000_001,), "durable_payload_limit")],
)
def test_a_result_that_cannot_be_recorded_fails_the_step(
    shop: Any, name: str, args: tuple[int, ...], words: str
) -> None:
    answer = shop.caught.delay(name, *args).get(WAIT)

    assert answer[0] == "PayloadError"
    assert words in answer[1]


def test_arguments_over_the_limit_are_refused_at_the_caller(shop: Any, key: str) -> None:
    with pytest.raises(ValueError, match="durable_payload_limit"):
        shop.note_flow.apply_async(("x" * 1_000_001,), task_id=key)
    assert _record(shop, key) is None


def test_a_task_that_no_worker_knows_fails_after_its_attempts(shop: Any) -> None:
    with pytest.raises(Exception, match=r"shop\.nowhere"):
        shop.tried_step.delay(2, "shop.nowhere").get(WAIT)


def test_a_failure_comes_back_as_its_own_class_with_the_remote_traceback(shop: Any) -> None:
    with pytest.raises(LookupError) as caught:
        shop.one_step.delay("shop.boom", "far away").get(WAIT)

    assert caught.value.args == ("far away",)
    assert "raise LookupError(text)" in str(caught.value.__cause__)


def test_a_failure_whose_class_is_only_in_the_worker_is_a_remote_error(shop: Any) -> None:
    with pytest.raises(RemoteError, match=r"Private: only the worker has it"):
        shop.raises.delay("private").get(WAIT)


def test_a_workflow_that_raises_celerys_ignore_fails_visibly(shop: Any) -> None:
    started = shop.raises.delay("ignore")

    with pytest.raises(Exception, match="from a workflow"):
        started.get(WAIT)
    wait_until(lambda: shop.app.AsyncResult(started.id).state == "FAILURE", WAIT)


def test_a_child_has_its_own_id_and_its_result_and_failure_come_back(shop: Any, key: str) -> None:
    ids, failure = shop.family.apply_async((), task_id=key).get(WAIT)

    assert ids["id"] == f"{key}/1.1/1.1"
    assert (ids["root"], ids["parent"]) == (key, f"{key}/1.1")
    assert failure == "child"
    child = _record(shop, f"{key}/1.1")
    assert child is not None
    assert child.parent == f"{key}/1.1"


def test_the_same_id_with_other_arguments_is_refused(shop: Any, key: str) -> None:
    first = shop.double.apply_async((4,), task_id=key)

    with pytest.raises(WorkflowConflictError, match=key):
        shop.double.apply_async((5,), task_id=key)
    with pytest.raises(WorkflowConflictError, match=key):
        shop.one_step.apply_async(("shop.add", 2, 2), task_id=key)
    assert first.get(WAIT) == 8


def _record(shop: Any, workflow_id: str) -> Any:
    return shop.double.binding.store.get(workflow_id)


def _history(shop: Any, workflow_id: str) -> Any:
    return shop.double.binding.client.history(workflow_id)
