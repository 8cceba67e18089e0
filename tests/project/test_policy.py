"""Retry arithmetic: which failures are tried again, and when."""

from __future__ import annotations

import pytest

from durable_celery.errors import InvalidRequestError, NonRetryable, RetryAfter
from durable_celery.policy import RetryPolicy, wait_after


def is_passing(error: BaseException) -> bool:
    return "passing" in str(error)


def no_chance() -> float:
    return 0.0


def again(policy: RetryPolicy) -> RetryPolicy:
    """Return a policy as a worker reads it."""
    return RetryPolicy.from_json(policy.to_json())


def test_waits_grow_up_to_the_longest() -> None:
    policy = RetryPolicy(initial_interval=1, maximum_interval=5, maximum_attempts=6, jitter=0)

    assert [wait_after(policy, ValueError(), n, no_chance) for n in range(1, 7)] == [1, 2, 4, 5, 5, None]


def test_only_classes_that_are_named_are_tried_again() -> None:
    policy = again(RetryPolicy(retryable=(OSError, "LookupError")))

    assert policy.retries(ConnectionError(), 1)
    assert policy.retries(KeyError(), 1)
    assert not policy.retries(ValueError(), 1)


def test_classes_that_are_excluded_win_over_those_that_are_named() -> None:
    policy = again(RetryPolicy(retryable=(OSError,), non_retryable=(FileNotFoundError,)))

    assert policy.retries(OSError(), 1)
    assert not policy.retries(FileNotFoundError(), 1)


def test_a_function_is_asked_in_the_process_that_reads_the_policy() -> None:
    policy = again(RetryPolicy(retry_if=is_passing))

    assert policy.retry_if == f"{__name__}:is_passing"
    assert policy.retries(ValueError("passing"), 1)
    assert not policy.retries(ValueError("for good"), 1)


def test_a_worker_that_does_not_know_the_function_goes_on() -> None:
    policy = RetryPolicy.from_json({**RetryPolicy().to_json(), "retry_if": "elsewhere:is_passing"})

    assert policy.retries(ValueError("for good"), 1)
    assert not policy.retries(ValueError("for good"), 10)


@pytest.mark.parametrize("function", [lambda _: True, "nowhere:is_passing", "is_passing", ""])
def test_a_function_that_no_worker_could_find_is_refused(function: object) -> None:
    with pytest.raises(InvalidRequestError, match="top of a module"):
        RetryPolicy(retry_if=function)  # type: ignore[arg-type]


def test_what_a_task_asks_for_comes_before_the_wait_of_its_policy() -> None:
    policy = RetryPolicy(maximum_attempts=3)

    assert wait_after(policy, RetryAfter(42), 1, no_chance) == 42
    assert wait_after(policy, RetryAfter(42), 3, no_chance) is None


def test_what_a_task_asks_for_is_granted_ten_times_without_a_policy() -> None:
    assert wait_after(None, RetryAfter(0.5), 9, no_chance) == 0.5
    assert wait_after(None, RetryAfter(0.5), 10, no_chance) is None


def test_what_has_failed_for_good_is_not_tried_again() -> None:
    assert wait_after(RetryPolicy(maximum_attempts=0), NonRetryable("no"), 1, no_chance) is None


def test_a_policy_without_new_words_is_recorded_as_before() -> None:
    assert set(RetryPolicy().to_json()) == {
        "initial_interval",
        "backoff_coefficient",
        "maximum_interval",
        "maximum_attempts",
        "jitter",
        "non_retryable",
    }
