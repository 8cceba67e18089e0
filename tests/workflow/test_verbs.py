"""Every verb, in both forms: what it issues and what it gives back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from durable_celery.codec import rebuild
from durable_celery.errors import DurableError, InvalidRequestError, PayloadError, UnknownTaskError, WaitTimeoutError
from durable_celery.events import (
    LocalStepCompleted,
    Output,
    RunCompleted,
    RunFailed,
    RunStarted,
    StepCompleted,
    StepScheduled,
    TimerStarted,
)
from durable_celery.policy import RetryPolicy
from durable_celery.workflow import AsyncWorkflowContext, RaceResult, WorkflowContext
from tests.workflow.log import CODEC, EPOCH_MS, Run, Task, charge, child, notify, refund

Code = Callable[..., Any]


def forms(*codes: Code) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("code", codes, ids=["def", "async def"])


def failure(run: Run) -> Exception:
    assert isinstance(run.last, RunFailed)
    return rebuild(run.last.payload, CODEC)


# --------------------------------------------------------------------------- steps


def step_sync(ctx: WorkflowContext, order: str) -> str:
    payment = ctx.step(charge, order, amount=(1, 2))
    ctx.step("shop.notify", payment)
    return f"paid {payment}"


async def step_async(ctx: AsyncWorkflowContext, order: str) -> str:
    payment = await ctx.step(charge, order, amount=(1, 2))
    await ctx.step("shop.notify", payment)
    return f"paid {payment}"


@forms(step_sync, step_async)
def test_a_step_is_scheduled_and_its_result_comes_back(code: Code) -> None:
    run = Run(code).start("o-1")
    assert run.kinds() == ["StepScheduled"]
    scheduled = cast("StepScheduled", run.last)
    assert (scheduled.number, scheduled.cause, scheduled.task, scheduled.kind) == (1, 1, "shop.charge", "task")
    assert CODEC.decode(scheduled.payload) == [["o-1"], {"amount": [1, 2]}]
    assert scheduled.options is None
    assert run.execution.waiting == "step shop.charge (1)"

    run.complete(1, "p-9")
    assert run.tasks() == ["shop.charge", "shop.notify"]
    run.complete(2)

    assert isinstance(run.last, RunCompleted)
    assert run.result == "paid p-9"
    assert run.execution.closed
    assert run.execution.waiting == ""
    assert run.replayed().closed


def failing_sync(ctx: WorkflowContext) -> list[Any]:
    try:
        ctx.step(charge)
    except ConnectionError as error:
        return [str(error), error.__notes__, str(error.__cause__)]
    return []


async def failing_async(ctx: AsyncWorkflowContext) -> list[Any]:
    try:
        await ctx.step(charge)
    except ConnectionError as error:
        return [str(error), error.__notes__, str(error.__cause__)]
    return []


@forms(failing_sync, failing_async)
def test_a_failed_step_raises_its_own_class_with_a_note_and_the_remote_traceback(code: Code) -> None:
    run = Run(code).start()
    try:
        raise ConnectionError("no route")  # noqa: TRY301 - for its traceback
    except ConnectionError as error:
        run.fail(1, error, attempt=3)
    message, notes, cause = run.result
    assert message == "no route"
    assert notes == ["in step shop.charge (w-1/1.1), attempt 3"]
    assert 'raise ConnectionError("no route")' in cause


def uncaught_sync(ctx: WorkflowContext) -> None:
    ctx.step(charge)


async def uncaught_async(ctx: AsyncWorkflowContext) -> None:
    await ctx.step(charge)


@forms(uncaught_sync, uncaught_async)
def test_a_failure_that_leaves_the_function_fails_the_run_and_names_the_user_s_line(code: Code) -> None:
    run = Run(code).start()
    run.fail(1, KeyError("k"))
    error = failure(run)
    assert isinstance(error, KeyError)
    trace = str(error.__cause__)
    assert f"in {code.__name__}" in trace
    assert "execution.py" not in trace


@forms(uncaught_sync, uncaught_async)
def test_a_step_that_raised_stop_iteration_fails_like_any_other(code: Code) -> None:
    run = Run(code).start()
    run.fail(1, StopIteration("odd"))
    assert isinstance(run.last, RunFailed)


def handles_sync(ctx: WorkflowContext) -> list[Any]:
    first, second = ctx.start(charge, 1), ctx.start(child, 2)
    assert (first.number, second.number, second.key) == (1, 2, "w-1/1.2")
    assert not first.done()
    return [second.result(), first.result(), first.result(), first.done()]


async def handles_async(ctx: AsyncWorkflowContext) -> list[Any]:
    first, second = ctx.start(charge, 1), ctx.start(child, 2)
    assert (first.number, second.number, second.key) == (1, 2, "w-1/1.2")
    assert not first.done()
    return [await second, await first, await first, first.done()]


@forms(handles_sync, handles_async)
def test_started_steps_run_side_by_side_and_a_durable_task_is_a_child_run(code: Code) -> None:
    run = Run(code).start()
    assert [cast("StepScheduled", event).kind for event in run.outputs] == ["task", "workflow"]
    run.complete(1, "a")
    assert not run.execution.closed
    run.complete(2, "b")
    assert run.result == ["b", "a", "a", True]


async def blocking_in_async(ctx: AsyncWorkflowContext) -> None:
    ctx.start(charge).result()


def test_result_of_an_open_handle_in_an_async_workflow_says_to_await_it() -> None:
    run = Run(blocking_in_async).start()
    assert "await it" in str(failure(run))


def options_sync(ctx: WorkflowContext) -> None:
    special = ctx.options(queue="slow", retry=3).options(timeout=timedelta(minutes=1), priority=0, name="billing")
    special.step(charge)
    ctx.step(notify)


async def options_async(ctx: AsyncWorkflowContext) -> None:
    special = ctx.options(queue="slow", retry=3).options(timeout=timedelta(minutes=1), priority=0, name="billing")
    await special.step(charge)
    await ctx.step(notify)


@forms(options_sync, options_async)
def test_options_are_recorded_with_the_calls_made_through_them_and_only_those(code: Code) -> None:
    run = Run(code).start()
    assert cast("StepScheduled", run.last).options == {
        "queue": "slow",
        "priority": 0,
        "timeout": 60.0,
        "label": "billing",
        "retry": RetryPolicy(maximum_attempts=3).to_json(),
    }
    run.complete(1)
    assert cast("StepScheduled", run.last).options is None


@pytest.mark.parametrize("wrong", [{"timeout": 0}, {"timeout": -1}, {"retry": -1}], ids=str)
def test_options_that_cannot_be_meant_are_refused(wrong: dict[str, Any]) -> None:
    def code(ctx: WorkflowContext) -> None:
        ctx.options(**wrong)

    assert isinstance(failure(Run(code).start()), InvalidRequestError)


def plain_function() -> None: ...


@pytest.mark.parametrize(
    ("what", "advice"), [(plain_function, "@app.task"), ({"args": [1]}, "signature"), (7, "ctx.run"), ("", "ctx.run")]
)
def test_what_is_no_task_is_refused_with_advice(what: object, advice: str) -> None:
    def code(ctx: WorkflowContext) -> None:
        ctx.step(cast("Any", what))

    error = failure(Run(code).start())
    assert isinstance(error, UnknownTaskError)
    assert advice in str(error)


def unserialisable_sync(ctx: WorkflowContext) -> str:
    try:
        ctx.step(charge, object())
    except PayloadError as error:
        return str(error)
    return ""


async def unserialisable_async(ctx: AsyncWorkflowContext) -> str:
    try:
        await ctx.step(charge, object())
    except PayloadError as error:
        return str(error)
    return ""


@forms(unserialisable_sync, unserialisable_async)
def test_arguments_that_cannot_be_recorded_raise_at_the_call_and_issue_nothing(code: Code) -> None:
    run = Run(code).start()
    assert "step shop.charge" in run.result
    assert run.kinds() == ["RunCompleted"]


# --------------------------------------------------------------------------- gather, race, spawn


def gather_sync(ctx: WorkflowContext, quiet: bool) -> list[Any]:
    results = ctx.gather(*[ctx.start(charge, i) for i in range(3)], return_exceptions=quiet)
    return [repr(value) if isinstance(value, Exception) else value for value in results]


async def gather_async(ctx: AsyncWorkflowContext, quiet: bool) -> list[Any]:
    results = await ctx.gather(*[ctx.start(charge, i) for i in range(3)], return_exceptions=quiet)
    return [repr(value) if isinstance(value, Exception) else value for value in results]


@forms(gather_sync, gather_async)
def test_gather_gives_results_in_the_order_of_the_call(code: Code) -> None:
    run = Run(code).start(quiet=False)
    for number in (3, 1, 2):
        run.complete(number, number * 10)
    assert run.result == [10, 20, 30]


@forms(gather_sync, gather_async)
def test_gather_raises_the_first_failure_and_leaves_the_others_running(code: Code) -> None:
    run = Run(code).start(quiet=False)
    run.fail(2, ValueError("two"))
    assert isinstance(failure(run), ValueError)
    assert run.cancelled() == []


@forms(gather_sync, gather_async)
def test_gather_can_return_failures_among_the_results(code: Code) -> None:
    run = Run(code).start(quiet=True)
    run.fail(2, ValueError("two"))
    run.complete(1, 1)
    run.complete(3, 3)
    assert run.result == [1, "ValueError('two')", 3]


def race_sync(ctx: WorkflowContext) -> list[Any]:
    result = ctx.race(step=ctx.start(charge), late=ctx.timer(60), word=ctx.signal("stop"))
    assert isinstance(result, RaceResult)
    return [*result, ctx.wait_signal("stop")]


async def race_async(ctx: AsyncWorkflowContext) -> list[Any]:
    result = await ctx.race(step=ctx.start(charge), late=ctx.timer(60), word=ctx.signal("stop"))
    assert isinstance(result, RaceResult)
    return [*result, await ctx.wait_signal("stop")]


@forms(race_sync, race_async)
def test_race_returns_the_first_arm_and_cancels_the_others(code: Code) -> None:
    run = Run(code).start()
    run.complete(1, "paid")
    assert run.cancelled() == [2]
    # The signal arm no longer waits, so the next signal is for who waits now.
    run.signal("stop", "now")
    assert run.result == ["step", "paid", "now"]


@forms(race_sync, race_async)
def test_race_won_by_a_timer_cancels_the_step(code: Code) -> None:
    run = Run(code).start()
    run.fire(2)
    assert run.cancelled() == [1]
    run.complete(1, "too late")
    run.signal("stop", 1)
    assert run.result == ["late", None, 1]


@forms(race_sync, race_async)
def test_an_arm_that_fails_first_raises_and_the_others_are_cancelled(code: Code) -> None:
    run = Run(code).start()
    run.fail(1, ValueError("no"))
    assert isinstance(failure(run), ValueError)
    assert run.cancelled() == [2]


def both_kept_sync(ctx: WorkflowContext) -> list[Any]:
    ctx.step(charge)
    return [*ctx.race(a=ctx.signal("a"), b=ctx.signal("b")), ctx.wait_signal("b")]


async def both_kept_async(ctx: AsyncWorkflowContext) -> list[Any]:
    await ctx.step(charge)
    return [*await ctx.race(a=ctx.signal("a"), b=ctx.signal("b")), await ctx.wait_signal("b")]


@forms(both_kept_sync, both_kept_async)
def test_a_signal_that_loses_a_race_is_not_eaten(code: Code) -> None:
    run = Run(code).start()
    run.signal("b", "B1")
    run.signal("b", "B2")
    run.signal("a", "A")
    run.complete(1)
    assert run.result == ["a", "A", "B1"]


def spawn_sync(ctx: WorkflowContext) -> list[Any]:
    def branch(ctx: WorkflowContext, word: str, *, times: int) -> str:
        return str(ctx.step(notify, word)) * times

    handle = ctx.spawn(branch, "hi", times=2)
    own = ctx.step(charge)
    return [own, handle.result()]


async def spawn_async(ctx: AsyncWorkflowContext) -> list[Any]:
    async def branch(ctx: AsyncWorkflowContext, word: str, *, times: int) -> str:
        return str(await ctx.step(notify, word)) * times

    handle = ctx.spawn(branch, "hi", times=2)
    own = await ctx.step(charge)
    return [own, await handle]


@forms(spawn_sync, spawn_async)
def test_a_branch_runs_beside_the_code_that_spawned_it(code: Code) -> None:
    run = Run(code).start()
    assert run.tasks() == ["shop.charge", "shop.notify"]
    run.complete(2, "x")
    run.complete(1, "own")
    assert run.result == ["own", "xx"]


def spawn_fails_sync(ctx: WorkflowContext) -> str:
    def branch(_: WorkflowContext) -> None:
        raise ValueError("in the branch")

    try:
        ctx.spawn(branch).result()
    except ValueError as error:
        return str(error)
    return ""


async def spawn_fails_async(ctx: AsyncWorkflowContext) -> str:
    async def branch(_: AsyncWorkflowContext) -> None:
        raise ValueError("in the branch")

    try:
        await ctx.spawn(branch)
    except ValueError as error:
        return str(error)
    return ""


@forms(spawn_fails_sync, spawn_fails_async)
def test_a_branch_s_failure_is_raised_where_it_is_waited_for(code: Code) -> None:
    assert Run(code).start().result == "in the branch"


def test_a_branch_of_the_other_form_is_refused() -> None:
    def code(ctx: WorkflowContext) -> None:
        ctx.spawn(cast("Any", spawn_async))

    async def code_async(ctx: AsyncWorkflowContext) -> None:
        ctx.spawn(cast("Any", spawn_sync))

    for each in (code, code_async):
        assert isinstance(failure(Run(each).start()), InvalidRequestError)


# --------------------------------------------------------------------------- time and chance


def sleep_sync(ctx: WorkflowContext) -> list[str]:
    times = [ctx.now()]
    ctx.sleep(timedelta(hours=1))
    times.append(ctx.now())
    ctx.sleep_until(times[0] + timedelta(hours=2))
    times.append(ctx.now())
    ctx.sleep_until(times[0])
    ctx.sleep(0)
    return [time.isoformat() for time in times]


async def sleep_async(ctx: AsyncWorkflowContext) -> list[str]:
    times = [ctx.now()]
    await ctx.sleep(timedelta(hours=1))
    times.append(ctx.now())
    await ctx.sleep_until(times[0] + timedelta(hours=2))
    times.append(ctx.now())
    await ctx.sleep_until(times[0])
    await ctx.sleep(0)
    return [time.isoformat() for time in times]


@forms(sleep_sync, sleep_async)
def test_sleeping_starts_timers_and_time_is_that_of_the_input(code: Code) -> None:
    run = Run(code).start()
    assert cast("TimerStarted", run.last).due_at == EPOCH_MS + 3_600_000
    assert run.execution.waiting == "timer (1) until 2026-11-22 17:00:00"
    run.fire(1)
    run.fire(2)
    assert run.result == ["2026-11-22T16:00:00+00:00", "2026-11-22T17:00:00+00:00", "2026-11-22T18:00:00+00:00"]
    assert run.kinds() == ["TimerStarted", "TimerStarted", "RunCompleted"]


def test_an_instant_without_a_time_zone_and_a_negative_duration_are_refused() -> None:
    def naive(ctx: WorkflowContext) -> None:
        ctx.sleep_until(datetime(2026, 1, 1))  # noqa: DTZ001 - the mistake

    def negative(ctx: WorkflowContext) -> None:
        ctx.sleep(-1)

    for code in (naive, negative):
        assert isinstance(failure(Run(code).start()), InvalidRequestError)


def timers_of_equal_due_time(ctx: WorkflowContext) -> list[int]:
    order: list[int] = []

    def wait(ctx: WorkflowContext, index: int) -> None:
        ctx.sleep(10)
        order.append(index)

    ctx.gather(*[ctx.spawn(wait, index) for index in range(3)])
    return order


def test_timers_of_equal_due_time_fire_in_the_order_of_their_inputs() -> None:
    run = Run(timers_of_equal_due_time).start()
    for number in (2, 3, 1):
        run.fire(number)
    assert run.result == [1, 2, 0]


def chance_sync(ctx: WorkflowContext) -> list[Any]:
    values: list[Any] = [ctx.random.random(), str(ctx.uuid4())]
    ctx.step(charge)
    return [*values, ctx.random.randint(1, 10**9), str(ctx.uuid4())]


async def chance_async(ctx: AsyncWorkflowContext) -> list[Any]:
    values: list[Any] = [ctx.random.random(), str(ctx.uuid4())]
    await ctx.step(charge)
    return [*values, ctx.random.randint(1, 10**9), str(ctx.uuid4())]


def test_chance_is_seeded_by_the_run_and_the_same_in_both_forms_warm_and_cold() -> None:
    results = []
    for code in (chance_sync, chance_async):
        for cold in (False, True):
            run = Run(code).start()
            if cold:
                run.go_cold()
            run.complete(1)
            results.append(run.result)
    assert results[1:] == results[:-1]
    other = Run(chance_sync, workflow_id="w-2").start()
    other.complete(1)
    assert other.result != results[0]


# --------------------------------------------------------------------------- signals


def signal_sync(ctx: WorkflowContext) -> list[Any]:
    ctx.step(charge)
    return [ctx.wait_signal("go"), ctx.wait_signal("go"), ctx.signal("go").result()]


async def signal_async(ctx: AsyncWorkflowContext) -> list[Any]:
    await ctx.step(charge)
    return [await ctx.wait_signal("go"), await ctx.wait_signal("go"), await ctx.signal("go")]


@forms(signal_sync, signal_async)
def test_signals_that_come_before_the_wait_are_kept_in_order(code: Code) -> None:
    run = Run(code).start()
    run.signal("go", 1)
    run.signal("other", 0)
    run.signal("go", {"two": 2})
    run.complete(1)
    assert run.execution.waiting == "signal go"
    run.signal("go", 3)
    assert run.result == [1, {"two": 2}, 3]


def timeout_sync(ctx: WorkflowContext) -> list[Any]:
    try:
        ctx.wait_signal("go", timeout=timedelta(minutes=1))
    except WaitTimeoutError as error:
        return [str(error), ctx.wait_signal("go", timeout=60)]
    return []


async def timeout_async(ctx: AsyncWorkflowContext) -> list[Any]:
    try:
        await ctx.wait_signal("go", timeout=timedelta(minutes=1))
    except WaitTimeoutError as error:
        return [str(error), await ctx.wait_signal("go", timeout=60)]
    return []


@forms(timeout_sync, timeout_async)
def test_a_wait_that_timed_out_does_not_eat_a_later_signal(code: Code) -> None:
    run = Run(code).start()
    run.fire(1)
    assert run.execution.waiting == "signal go, timer (2) until 2026-11-22 16:02:00"
    run.signal("go", "late")
    assert run.result == ["no signal 'go' came within 60 s", "late"]
    assert run.cancelled() == [2], "the timer of the wait that succeeded"


def poll_sync(ctx: WorkflowContext) -> list[Any]:
    found: list[Any] = []
    for _ in range(2):
        try:
            found.append(ctx.wait_signal("go", timeout=0))
        except WaitTimeoutError:
            found.append("nothing")
        ctx.step(charge)
    return found


def test_a_timeout_of_zero_only_looks() -> None:
    run = Run(poll_sync).start()
    run.signal("go", 5)
    run.complete(1)
    run.complete(2)
    assert run.result == ["nothing", 5]
    assert "TimerStarted" not in run.kinds()


# --------------------------------------------------------------------------- start, end, information


def test_a_run_with_a_start_time_begins_at_the_firing_of_its_gate() -> None:
    def code(ctx: WorkflowContext) -> str:
        return ctx.now().isoformat()

    run = Run(code).start(start_at=EPOCH_MS + 60_000)
    assert run.execution.gated
    assert run.execution.started == run.events[0].event
    assert run.execution.waiting == "start at 2026-11-22 16:01:00"
    run.now = EPOCH_MS + 61_000
    run.fire(0)
    assert run.result == "2026-11-22T16:01:01+00:00"
    assert run.replayed().gated is False


def test_a_run_that_may_expire_is_gated_too() -> None:
    run = Run(step_sync).start("o", expires_at=EPOCH_MS + 60_000)
    assert run.execution.gated
    run.fire(0)
    assert run.tasks() == ["shop.charge"]


def test_signals_before_the_gate_opens_are_kept() -> None:
    def code(ctx: WorkflowContext) -> Any:
        return ctx.wait_signal("go")

    run = Run(code).start(start_at=EPOCH_MS + 60_000)
    run.signal("go", 7)
    run.fire(0)
    assert run.result == 7


def info_sync(ctx: WorkflowContext) -> list[Any]:
    first = ctx.info
    ctx.step(charge)
    return [first.workflow_id, first.run, first.name, first.parent, first.history_length, ctx.info.history_length]


def test_info_tells_what_the_run_is() -> None:
    run = Run(info_sync)
    run.turn(RunStarted(name="test", payload="[[],{}]", parent="p-1/1.4"))
    run.complete(1)
    assert run.result == ["w-1", 1, "test", "p-1/1.4", 1, 3]


def test_a_result_that_cannot_be_recorded_fails_the_run() -> None:
    assert isinstance(failure(Run(lambda _ctx: object()).start()), PayloadError)


def test_system_exit_in_workflow_code_fails_the_run_and_not_the_worker() -> None:
    def code(ctx: WorkflowContext) -> None:
        raise SystemExit(3)

    async def code_async(ctx: AsyncWorkflowContext) -> None:
        async def branch(_: AsyncWorkflowContext) -> None:
            raise SystemExit(3)

        await ctx.spawn(branch)

    for each in (code, code_async):
        assert isinstance(Run(each).start().last, RunFailed)


def test_inputs_after_the_end_and_for_unknown_commands_are_ignored() -> None:
    run = Run(step_sync).start("o")
    run.complete(77, "?")
    run.fire(78)
    run.complete(1)
    run.complete(1, "again")
    run.complete(2)
    end = run.last
    lates: list[Callable[[], Any]] = [lambda: run.complete(1), lambda: run.signal("x"), run.cancel, lambda: run.fire(0)]
    for late in lates:
        assert late() == []
    assert run.outputs[-1] == end
    assert run.replayed().closed


def log_sync(ctx: WorkflowContext) -> None:
    ctx.logger.warning("before %s", "step", extra={"order": 7})
    ctx.step(charge)
    try:
        raise ValueError("odd")  # noqa: TRY301 - for its traceback
    except ValueError:
        ctx.logger.exception("after")


async def log_async(ctx: AsyncWorkflowContext) -> None:
    ctx.logger.warning("before %s", "step", extra={"order": 7})
    await ctx.step(charge)
    try:
        raise ValueError("odd")  # noqa: TRY301 - for its traceback
    except ValueError:
        ctx.logger.exception("after")


@forms(log_sync, log_async)
def test_the_logger_says_each_thing_once_with_the_caller_s_line(code: Code, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(code).start()
    run.go_cold()
    run.complete(1)
    assert [record.getMessage() for record in caplog.records] == ["before step", "after"]
    first, second = caplog.records
    assert first.name == "durable_celery.workflow.test"
    assert (first.__dict__["workflow_id"], first.__dict__["order"]) == ("w-1", 7)
    assert (first.filename, first.funcName) == ("test_verbs.py", code.__name__)
    assert second.exc_info is not None
    assert second.levelno == logging.ERROR


def replaying_sync(ctx: WorkflowContext, seen: list[bool]) -> None:
    for _ in range(2):
        FLAGS.append(ctx.is_replaying)
        ctx.step(charge)


FLAGS: list[bool] = []


def test_is_replaying_follows_fresh_after() -> None:
    run = Run(replaying_sync).start([])
    run.execution.evict()
    FLAGS.clear()
    run.append(StepCompleted(number=1))
    again = run.new_execution()
    again.feed(run.events, fresh_after=2)
    assert FLAGS == [True, False]
    again.evict()


# --------------------------------------------------------------------------- who may call


def test_verbs_called_from_a_local_step_or_from_outside_are_refused() -> None:
    leaked: list[WorkflowContext] = []

    def local() -> str:
        try:
            leaked[0].step(charge)
        except DurableError as error:
            return str(error)
        return "no error"

    def code(ctx: WorkflowContext) -> str:
        leaked.append(ctx)
        return ctx.run(local)

    run = Run(code).start()
    assert "outside" in run.result
    verbs: list[Callable[[], Any]] = [
        lambda: leaked[0].step(charge),
        lambda: leaked[0].sleep(1),
        leaked[0].now,
        leaked[0].uuid4,
        lambda: leaked[0].patched("x"),
        lambda: leaked[0].run(local),
        lambda: leaked[0].random,
        leaked[0].gather,
        lambda: leaked[0].wait_signal("x"),
    ]
    for verb in verbs:
        with pytest.raises(DurableError, match="outside"):
            verb()


def test_two_runs_in_one_thread_do_not_meet() -> None:
    first, second = Run(step_sync, workflow_id="a").start("1"), Run(step_sync, workflow_id="b").start("2")
    first.complete(1, "A")
    second.complete(1, "B")
    first.complete(2)
    second.complete(2)
    assert (first.result, second.result) == ("paid A", "paid B")


def test_a_child_task_object_is_recognised_by_its_looks_alone() -> None:
    assert Task("x").name == "x"
    run = Run(lambda ctx: ctx.step(Task("any.name", is_durable=True))).start()
    assert cast("StepScheduled", run.last).kind == "workflow"


def test_times_are_aware_and_utc() -> None:
    def code(ctx: WorkflowContext) -> bool:
        return ctx.now().tzinfo is UTC

    assert Run(code).start().result is True


def test_options_of_a_local_step_that_make_no_sense_are_refused() -> None:
    def code(ctx: WorkflowContext) -> None:
        ctx.options(queue="x").run(plain_function)

    assert "queue" in str(failure(Run(code).start()))


def test_outputs_name_their_cause() -> None:
    run = Run(step_sync).start("o")
    run.complete(1)
    run.complete(2)
    assert [(event.number, event.cause) for event in run.outputs] == [(1, 1), (2, 3), (3, 5)]
    assert all(isinstance(event, Output) for event in run.outputs)
    assert not [event for event in run.outputs if isinstance(event, LocalStepCompleted)]
    assert run.tasks() != [refund.name]
