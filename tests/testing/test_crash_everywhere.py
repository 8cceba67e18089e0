"""``crash_everywhere``: workflows that stand every fault pass; those that do not are told apart, with a story."""

# Celery carries no types: to pyright a task is the function that it was made of.
# pyright: reportArgumentType=false, reportFunctionMemberAccess=false, reportCallIssue=false

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest

from durable_celery import NonDeterminismError, WorkflowContext, current_step, durable_task
from durable_celery.testing import Environment, NotCrashProofError, NothingLeftError, crash_everywhere, fails, returns
from durable_celery.testing.broker import Message
from durable_celery.testing.faults import CLEAN, Carriage, Case, Hand, cases_of
from durable_celery.testing.watch import Kind
from tests.testing import shop

app = shop.app

#: What the tasks leave behind.
paid: list[tuple[str, int]] = []
keyed: dict[str, int] = {}
counter = itertools.count()


@app.task
def pay_blindly(order_id: str, amount: int) -> str:
    paid.append((order_id, amount))
    return f"pay-{order_id}"


@app.task
def pay_by_key(order_id: str, amount: int) -> str:
    step = current_step()
    assert step is not None
    keyed.setdefault(step.key, amount)
    return f"pay-{order_id}"


@app.task
def number() -> int:
    return next(counter)


@durable_task(app=app)
def blind(ctx: WorkflowContext, order_id: str, amount: int) -> str:
    ctx.step(shop.send, order_id, "x")
    return str(ctx.step(pay_blindly, order_id, amount))


@durable_task(app=app)
def careful(ctx: WorkflowContext, order_id: str, amount: int) -> list[str]:
    return [ctx.step(pay_by_key, order_id, amount + part) for part in range(5)]


@durable_task(app=app)
def counted(ctx: WorkflowContext) -> int:
    return int(ctx.step(number))


@durable_task(app=app)
def everything(ctx: WorkflowContext, order_id: str) -> dict[str, Any]:
    """Use children, branches, timers, signals and local steps."""
    first, second = ctx.start(pay_by_key, order_id, 1), ctx.start(shop.checkout, order_id, 2)
    decision = ctx.wait_signal("decision")
    ctx.sleep(3600)
    return {"paid": ctx.gather(first, second), "decision": decision, "local": ctx.run(str.upper, order_id)}


@durable_task(app=app)
def hasty(ctx: WorkflowContext, order_id: str) -> str:
    """Give a step less time than a worker's death takes."""
    winner = ctx.race(step=ctx.start(shop.charge, order_id, 1), late=ctx.timer(0.05))
    return winner.name


@durable_task(app=app)
def stoppable(ctx: WorkflowContext, order_id: str) -> str:
    """Pay unless somebody stops it first."""
    winner = ctx.race(paid=ctx.start(pay_by_key, order_id, 1), stopped=ctx.signal("stop"))
    return winner.name


@pytest.fixture(autouse=True)
def empty() -> None:
    paid.clear()
    keyed.clear()


def test_an_idempotent_workflow_passes() -> None:
    report = crash_everywhere(careful, "o-1", 100, effects=keyed)

    assert report.faults > 70
    assert report.struck == report.faults
    assert report.runs == report.faults + 2
    assert report.executed_again[f"{__name__}.pay_by_key"] >= 5
    assert str(report).endswith("times")


def test_every_verb_stands_every_fault() -> None:
    report = crash_everywhere(everything, "o-1", signals={"decision": "yes"}, effects=keyed)

    assert report.struck == report.faults > 100


def test_an_effect_without_a_key_is_found_and_told() -> None:
    with pytest.raises(NotCrashProofError) as caught:
        crash_everywhere(blind, "o-1", 100, effects=paid)

    story = str(caught.value)
    assert story.startswith(f"{__name__}.blind('o-1', 100) is not the same with a fault (run ")
    assert "the fault   the worker dies before it records the outcome of a step: number 2, " in story
    assert ", and what the workflow decided then\n" in story
    assert "  clean   [('o-1', 100)]\n  here    [('o-1', 100), ('o-1', 100)]" in story
    assert f"{__name__}.pay_blindly was executed 2 times under one key, crash-everywhere/1.2." in story
    assert "make its effect depend on current_step().key" in story
    assert "step 2     " in story


def test_without_effects_only_the_librarys_own_promise_is_checked() -> None:
    assert crash_everywhere(blind, "o-1", 100).executed_again[f"{__name__}.pay_blindly"] > 0


def test_effects_may_be_a_function_with_the_state_brought_back_before() -> None:
    crash_everywhere(careful, "o-1", 100, effects=lambda: sorted(keyed.items()), before=keyed.clear)

    with pytest.raises(NotCrashProofError, match="it leaves other effects behind"):
        crash_everywhere(blind, "o-1", 100, effects=lambda: Counter(paid), before=paid.clear)


def test_effects_that_pile_up_ask_for_a_fresh_state() -> None:
    with pytest.raises(NotCrashProofError, match="two runs without any fault differ") as caught:
        crash_everywhere(blind, "o-1", 100, effects=lambda: list(paid))

    assert "give before=..." in str(caught.value)


def test_what_a_test_had_put_into_its_effects_is_there_in_each_run() -> None:
    paid.append(("older", 1))

    with pytest.raises(NotCrashProofError, match=r"clean   \[\('older', 1\), \('o-1', 100\)\]"):
        crash_everywhere(blind, "o-1", 100, effects=paid)


def test_a_result_that_is_never_the_same_cannot_be_compared_but_a_part_of_it_can() -> None:
    with pytest.raises(NotCrashProofError, match="it ends otherwise") as caught:
        crash_everywhere(counted)
    assert "compare a part (outcome=...)" in str(caught.value)

    crash_everywhere(counted, outcome=type)
    crash_everywhere(counted, steps={number: 7})


def test_a_script_means_the_same_in_each_run() -> None:
    steps = {pay_blindly: returns("first").then("wrong"), shop.send: "sent"}

    crash_everywhere(blind, "o-1", 100, steps=steps)


def test_a_tasks_own_retries_stand_the_faults() -> None:
    report = crash_everywhere(shop.any_step, "tests.testing.shop.fetch", "u", steps={shop.fetch: fails(2).then("ok")})

    # One fault makes at most one execution more; what the task asked for itself is not counted.
    assert 0 < report.executed_again["tests.testing.shop.fetch"] < report.struck


def test_a_workflow_that_fails_must_fail_alike() -> None:
    assert crash_everywhere(shop.failing, "o-1").runs > 10


def test_a_workflow_whose_end_depends_on_how_long_a_worker_takes_is_found() -> None:
    with pytest.raises(NotCrashProofError, match="it ends otherwise") as caught:
        crash_everywhere(hasty, "o-1")

    assert "('RunCompleted', 'step')" in str(caught.value)
    assert "('RunCompleted', 'late')" in str(caught.value)


def test_a_workflow_that_waits_for_ever_says_so() -> None:
    with pytest.raises(NothingLeftError, match="waits for signal decision"):
        crash_everywhere(shop.approval, "o-1")

    crash_everywhere(shop.approval, "o-1", signals=[("decision", "yes")])


def test_a_signal_does_not_overtake_a_step_whose_message_is_lost() -> None:
    assert crash_everywhere(stoppable, "o-1", signals={"stop": None}).struck > 20


def test_code_that_is_not_deterministic_is_found() -> None:
    with pytest.raises(NonDeterminismError):
        crash_everywhere(shop.fickle)


def test_a_limit_spreads_the_faults() -> None:
    report = crash_everywhere(careful, "o-1", 100, limit=20)

    assert report.runs <= 22
    assert report.faults > 70


def test_the_faults_are_every_kind_at_every_place() -> None:
    hand = Hand(CLEAN)
    hand.calls, hand.messages = ["takes a turn of the run", "records what the workflow decided"], ["of the run (x)"]

    cases = cases_of(hand)

    expected: dict[object, int] = {**dict.fromkeys(Kind, 2), **dict.fromkeys(Carriage, 1)}
    assert Counter(case.kind for case in cases) == expected
    assert [case.tell(hand) for case in cases][:2] == [
        "the store does not answer when the worker takes a turn of the run",
        "the store does it, and reports a failure, when the worker takes a turn of the run",
    ]
    assert cases[-1].tell(hand) == "the message of the run (x) comes 30 seconds late"


@pytest.mark.parametrize(
    ("kind", "delays"), [(Carriage.LOST, []), (Carriage.TWICE, [0.0, 0.0]), (Carriage.LATE, [30.0])]
)
def test_the_second_message_is_lost_or_comes_twice_or_late(kind: Carriage, delays: list[float]) -> None:
    hand = Hand(Case(kind, 2))
    plain, durable = message({}), message({"durable": {"id": "w", "run": 1, "step": 1}})

    carried = [hand.carry(one) for one in (plain, durable, plain, durable, durable)]

    assert [[delay for _, delay in one] for one in carried] == [[0.0], [0.0], [0.0], delays, [0.0]]
    assert hand.has_struck


def message(headers: dict[str, Any]) -> Message:
    return Message(
        headers={"task": "shop.charge", "id": "1", **headers},
        properties={},
        body=b"[[], {}, {}]",
        content_type="application/json",
        content_encoding="utf-8",
        exchange="",
        routing_key="celery",
    )


def test_the_app_is_given_back() -> None:
    with Environment(app) as env:
        crash_everywhere(careful, "o-1", 1)
        assert env.run(careful, "o-2", 1) == ["pay-o-2"] * 5
        assert env.executions == {f"{__name__}.pay_by_key": 5}
