"""The environment: workflows of an ordinary app run here, with real tasks, under a clock that the test moves."""

# Celery carries no types: to pyright a task is the function that it was made of.
# pyright: reportArgumentType=false, reportFunctionMemberAccess=false, reportCallIssue=false

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from unittest.mock import call

import pytest
from celery import Celery, chord, current_app, group
from celery.exceptions import TimeoutError as CeleryTimeoutError
from kombu.exceptions import EncodeError

from durable_celery import DurableTask, NonDeterminismError, SideEffectError, WorkflowContext, durable_task
from durable_celery.app import Binding, binding_of, bound
from durable_celery.errors import DurableError, InvalidRequestError, UnknownTaskError
from durable_celery.steps import wrap_task
from durable_celery.store.memory import MemoryStore
from durable_celery.store.protocol import RunStatus, Timing
from durable_celery.testing import Environment, NothingLeftError, system
from tests.testing import shop

CHRISTMAS = datetime(2030, 12, 24, 12, tzinfo=UTC)


@pytest.fixture
def env() -> Iterator[Environment]:
    shop.seen.clear()
    shop.prerun.clear()
    with Environment(shop.app, now=CHRISTMAS) as environment:
        yield environment


def test_a_workflow_runs_with_its_real_tasks_and_returns_its_result(env: Environment) -> None:
    assert env.run(shop.checkout, "o-1", 1200) == "pay-o-1"

    assert env.calls(shop.charge) == [call("o-1", 1200)]
    assert env.executions == {"tests.testing.shop.charge": 1, "tests.testing.shop.send": 1}
    assert shop.seen[0][1] is not None
    assert shop.seen[0][1].endswith("/1.1")


def test_a_step_sees_its_key_its_attempt_and_celerys_own_signals(env: Environment) -> None:
    handle = env.start(shop.checkout, "o-1", 1200)

    (execution,) = env.executed(shop.charge)
    assert (execution.key, execution.attempt, execution.result) == (f"{handle.id}/1.1", 1, "pay-o-1")
    assert "tests.testing.shop.charge" in shop.prerun


def test_what_the_workflow_failed_with_is_raised(env: Environment) -> None:
    with pytest.raises(shop.DeclinedError, match="o-1"):
        env.run(shop.failing, "o-1")


def test_async_workflows_run_and_their_sleep_is_skipped(env: Environment) -> None:
    assert env.run(shop.checkout_async, "o-1", 5) == "pay-o-1"

    assert env.now == CHRISTMAS + timedelta(hours=1)


def test_async_tests_use_the_same_verbs(env: Environment) -> None:
    async def test() -> list[str]:
        await asyncio.sleep(0)
        return [env.run(shop.checkout_async, "a", 5), env.run(shop.checkout, "b", 5)]

    assert asyncio.run(test()) == ["pay-a", "pay-b"]


def test_delay_and_apply_async_work_inside(env: Environment) -> None:
    handle = shop.checkout.apply_async(("o-1", 1), task_id="order-1", countdown=60)
    assert handle.state == "PENDING"

    assert handle.get() == "pay-o-1"
    assert env.now == CHRISTMAS + timedelta(seconds=60)
    assert shop.checkout.delay("o-2", 1).get() == "pay-o-2"


def test_an_eta_is_an_instant_of_the_tests_clock(env: Environment) -> None:
    handle = shop.checkout.apply_async(("o-1", 1), eta=CHRISTMAS + timedelta(hours=2))

    env.skip(hours=1)
    assert not handle.ready()
    env.skip(hours=1)
    assert handle.ready()


def test_links_of_a_workflow_fire_at_its_end(env: Environment) -> None:
    shop.checkout.apply_async(("o-1", 1), link=shop.send.si("linked", "x")).get()

    env.settle()
    assert call("linked", "x") in env.calls(shop.send)


def test_a_workflow_that_is_started_by_name_runs(env: Environment) -> None:
    result = shop.app.send_task("tests.testing.shop.checkout", ("o-1", 7), countdown=30)

    env.skip(29)
    assert env.calls(shop.charge) == []
    env.skip(1)
    assert env.calls(shop.charge) == [call("o-1", 7)]
    assert result.get() == "pay-o-1"


def test_plain_tasks_called_by_steps_are_executed_too(env: Environment) -> None:
    env.run(shop.any_step, "tests.testing.shop.tell", "hello")

    env.settle()
    assert env.calls(shop.charge) == [call("hello", 1)]
    assert env.executed(shop.charge)[0].key is None


def test_results_of_plain_tasks_can_be_waited_for(env: Environment) -> None:
    assert shop.charge.delay("plain", 3).get() == "pay-plain"
    assert shop.insist.delay(2).get() == 2
    assert env.now == CHRISTMAS + timedelta(seconds=1200)


def test_bound_tasks_and_base_classes_with_their_own_call_work(env: Environment) -> None:
    before = shop.Counting.calls

    word, name, key = env.run(shop.any_step, "tests.testing.shop.bound", "hi")

    assert (word, name) == ("hi", "tests.testing.shop.bound")
    assert key.endswith("/1.1")
    assert shop.Counting.calls == before + 1


def test_a_tasks_own_retry_waits_in_the_tests_time(env: Environment) -> None:
    assert env.run(shop.any_step, "tests.testing.shop.insist", 3) == 3

    assert env.now == CHRISTMAS + timedelta(minutes=30)


def test_pydantic_tasks_work(env: Environment) -> None:
    result = env.run(shop.any_step, "tests.testing.shop.bill", {"order_id": "o", "total": 4})

    assert result == {"order_id": "o", "total": 8}


def test_a_signal_lets_a_waiting_workflow_go_on_and_skip_moves_time(env: Environment) -> None:
    handle = env.start(shop.approval, "o-1")
    assert handle.describe().waiting == "signal decision"

    env.signal(handle, "decision", "yes")
    env.skip(hours=23)
    assert handle.state == "STARTED"
    env.skip(timedelta(hours=1))

    assert handle.state == "SUCCESS"
    assert handle.get() == "o-1 yes"


def test_a_workflow_that_nobody_signals_says_at_once_what_it_waits_for(env: Environment) -> None:
    with pytest.raises(NothingLeftError) as caught:
        env.run(shop.approval, "o-1")

    assert "tests.testing.shop.approval) waits for signal decision" in str(caught.value)
    assert "durable.signal(handle, name, value)" in str(caught.value)
    assert isinstance(caught.value, AssertionError)


def test_each_branch_that_waits_is_named(env: Environment) -> None:
    with pytest.raises(NothingLeftError, match="waits for signal paid, signal packed"):
        env.run(shop.two_waits)


def test_a_wait_with_a_timeout_ends_in_the_tests_time(env: Environment) -> None:
    handle = env.start(shop.approval, "o-1")

    with pytest.raises(CeleryTimeoutError, match="it waits for signal decision"):
        handle.get(timeout=60)
    assert env.now == CHRISTMAS + timedelta(seconds=60)


def test_a_cancelled_workflow_ends(env: Environment) -> None:
    handle = env.start(shop.approval, "o-1")

    env.cancel(handle, "not wanted")

    assert handle.describe().status is RunStatus.CANCELLED


def test_a_history_is_readable(env: Environment) -> None:
    handle = env.start(shop.checkout, "o-1", 1200)

    lines = env.history(handle).splitlines()
    assert lines[0] == f"{handle.id}, started 2030-12-24 12:00:00 UTC"
    assert "step 1     tests.testing.shop.charge('o-1', 1200)" in lines[3]


def test_children_are_run_for_real(env: Environment) -> None:
    assert env.run(shop.family, "o-1") == ["pay-o-1", "pay-o-1"]

    assert env.calls(shop.charge) == [call("o-1", 1), call("o-1", 2)]


def test_local_steps_run_once(env: Environment) -> None:
    assert env.run(shop.local, "word") == "WORD"

    assert shop.seen == [("word", None)]


def test_code_that_is_not_deterministic_is_caught_at_once(env: Environment) -> None:
    with pytest.raises(NonDeterminismError, match="digest of the arguments: history has"):
        env.run(shop.fickle)


def test_code_that_is_not_deterministic_in_its_last_turn_is_caught_too(env: Environment) -> None:
    shop._turns = iter([0, 5])

    with pytest.raises(NonDeterminismError):
        env.run(shop.fickle_at_the_end)


def test_without_cold_replays_each_turn_goes_on_from_the_last() -> None:
    with Environment(shop.app, cold=False) as env:
        assert env.run(shop.fickle).startswith("pay-0.")


def test_a_side_effect_in_workflow_code_is_raised(env: Environment) -> None:
    with pytest.raises(SideEffectError, match=r"shop\.py:\d+: workflow code may not call open"):
        env.run(shop.reaching_out)


def test_a_workflow_that_never_ends_is_given_up(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_ENDLESS", 50)

    with pytest.raises(NothingLeftError, match="goes on for ever"):
        env.run(shop.for_ever)


def test_an_unknown_task_says_what_to_do(env: Environment) -> None:
    with pytest.raises(UnknownTaskError, match=r"steps=\{remote\('no.such.task'\): \.\.\.\}"):
        env.run(shop.any_step, "no.such.task")


def test_the_clock_can_be_set(env: Environment) -> None:
    env.freeze(datetime(2001, 1, 1, tzinfo=UTC))
    assert env.now.year == 2001
    env.run(shop.checkout, "o-1", 1)

    with pytest.raises(InvalidRequestError, match="cannot go back"):
        env.freeze(datetime(2000, 1, 1, tzinfo=UTC))
    with pytest.raises(InvalidRequestError, match="time zone"):
        env.freeze(datetime(2000, 1, 1))  # noqa: DTZ001 - what is refused


def test_a_plain_task_is_not_run_as_a_workflow(env: Environment) -> None:
    with pytest.raises(InvalidRequestError, match=r"is no durable task: start it with .*\.delay"):
        env.run(shop.charge, "o", 1)


def test_a_step_cannot_wait_for_a_workflow(env: Environment) -> None:
    def waits(word: str) -> str:
        return str(shop.checkout.delay(word, 1).get())

    with pytest.raises(RuntimeError, match=r"Never call result\.get"):
        env.run(shop.any_step, "tests.testing.shop.tell", "inner", steps={shop.tell: waits})


# -- the app as it was ------------------------------------------------------------------------------------------------


def state_of(app: Celery) -> dict[str, object]:
    task = app.tasks["tests.testing.shop.fetch"]
    return {
        "app": {name: value for name, value in vars(app).items() if name in {"now", "_pool", "_backend"}},
        "pool": vars(app.amqp).get("_producer_pool"),
        "task": {name: vars(task).get(name) for name in ("run", "_orig_run", "signature_from_request", "replace")},
        "eager": app.conf.task_always_eager,
        "local": dict(vars(app._local)),
    }


def test_the_app_is_given_back_as_it_was() -> None:
    shop.app.finalize()
    before = state_of(shop.app)

    with Environment(shop.app) as env:
        env.run(shop.any_step, "tests.testing.shop.fetch", "x")
        assert state_of(shop.app) != before

    assert state_of(shop.app) == before
    assert not hasattr(shop.fetch.run, "durable_plain")


def test_an_app_that_a_worker_has_wrapped_is_given_back_to_it() -> None:
    app = Celery("wrapped", broker="memory://", set_as_current=False)

    @app.task(name="wrapped.double")
    def double(number: int) -> int:
        return number * 2

    @durable_task(app=app, name="wrapped.flow")
    def flow(ctx: WorkflowContext, number: int) -> int:
        return int(ctx.step(double, number))

    own = Binding(app, store=MemoryStore(Timing(), lambda: 0))
    with bound(own):
        wrap_task(double, own)
        wrapped = double.run

        with Environment(app) as env:
            assert env.run(flow, 4) == 8

        assert double.run is wrapped
        assert binding_of(app) is own
        assert own.store.get("anything") is None


def test_environments_of_one_app_do_not_see_each_other() -> None:
    with Environment(shop.app) as outer:
        handle = outer.start(shop.approval, "outer")
        with Environment(shop.app) as inner:
            assert inner.run(shop.checkout, "inner", 1) == "pay-inner"
            assert inner.executions["tests.testing.shop.charge"] == 1
        outer.signal(handle, "decision", "yes")

        assert handle.get() == "outer yes"
        assert outer.calls(shop.charge) == []


def test_task_always_eager_of_a_test_suite_does_not_stand_in_the_way() -> None:
    shop.app.conf.task_always_eager = True
    try:
        with Environment(shop.app) as env:
            assert env.run(shop.checkout, "o", 1) == "pay-o"
        assert shop.app.conf.task_always_eager is True
    finally:
        shop.app.conf.task_always_eager = False


def test_the_app_is_found_from_the_first_workflow() -> None:
    with Environment() as env:
        assert env.run(shop.checkout, "o", 1) == "pay-o"


def test_a_workflow_of_another_app_is_refused() -> None:
    other = Celery("other", set_as_current=False)

    with Environment(other) as env, pytest.raises(DurableError, match="tell it which app is under test"):
        env.run(shop.checkout, "o", 1)


def test_a_closed_environment_says_so() -> None:
    with Environment(shop.app) as env:
        pass

    with pytest.raises(DurableError, match="closed"):
        env.run(shop.checkout, "o", 1)


def test_shared_tasks_belong_to_the_app_under_test_although_another_is_the_current_one() -> None:
    @durable_task(name="shared.flow")
    def flow(ctx: WorkflowContext) -> str:
        return "done"

    mine, other = Celery("mine", set_as_current=False), Celery("other", set_as_current=False)
    before = current_app._get_current_object()
    other.set_current()
    try:
        with Environment(mine) as env:
            assert env.run(flow) == "done"
            assert env.start(flow).app is mine
        assert current_app._get_current_object() is other
    finally:
        before.set_current()


def test_a_workflow_whose_base_class_has_its_own_call_is_delivered_as_in_a_worker(env: Environment) -> None:
    class Observed(DurableTask[..., object]):
        abstract = True

        def __call__(self, *args: object, **kwargs: object) -> object:
            return super().__call__(*args, **kwargs)

    @durable_task(app=shop.app, name="observed.flow", base=Observed)
    def flow(ctx: WorkflowContext) -> str:
        return "done"

    handle = env.start(flow)

    assert handle.get() == "done"
    assert handle.describe().delivered


def test_canvas_of_plain_tasks_runs(env: Environment) -> None:
    both = group(shop.charge.s("a", 1), shop.charge.s("b", 2))

    assert both.apply_async().get() == ["pay-a", "pay-b"]
    assert chord(both, shop.collect.s())().get() == "pay-a,pay-b"


def test_what_cannot_be_sent_to_a_broker_cannot_be_sent_here(env: Environment) -> None:
    with pytest.raises(EncodeError):
        shop.charge.delay(object(), 1)


def test_compressed_messages_are_read(env: Environment) -> None:
    assert shop.charge.apply_async(("zipped", 1), compression="zlib").get() == "pay-zipped"


def test_an_app_without_results_has_none_here_either() -> None:
    app = Celery("mute", broker="memory://", set_as_current=False)

    @app.task(name="mute.task")
    def task() -> None: ...

    with Environment(app), pytest.raises(NotImplementedError, match="No result backend"):
        task.delay().get()
