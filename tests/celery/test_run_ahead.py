"""A step that runs ahead: when it may, and that its task cannot tell the difference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, Task, signals
from celery._state import _task_stack
from celery.app.trace import build_tracer
from kombu.entity import Queue

from durable_celery.ahead import CLAIM, Begun, RunAhead
from durable_celery.app import Binding, bound
from durable_celery.decorator import durable_task
from durable_celery.dispatch import HEADER, envelope
from durable_celery.engine import Ending
from durable_celery.events import RunCompleted, StepScheduled
from durable_celery.pace import Pace
from durable_celery.steps import wrap_tasks
from durable_celery.store.memory import MemoryStore
from durable_celery.store.protocol import Claim, NewRun, RunMessage, StepKey, StepMessage, Store, Turn
from durable_celery.worker import _measure_lags
from durable_celery.workflow import WorkflowContext
from tests.workers import ROOT


class Odd(Task):
    """Publishes in a way of its own."""

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        return super().apply_async(*args, **kwargs)


class Hiding:
    """A codec that nobody can read without."""

    name, hides = "hiding", True

    def encode(self, data: bytes, place: Any) -> bytes:  # noqa: ARG002 - a codec's signature
        return data[::-1]

    decode = encode


@pytest.fixture
def app() -> Iterator[Celery]:
    """An app whose task ``now`` is running, as in a worker."""
    app = Celery("ahead", broker="memory://", set_as_current=False)
    app.conf.task_routes = {"away": {"queue": "elsewhere"}}

    def noop(*_: Any) -> None:
        pass

    options: dict[str, dict[str, Any]] = {
        "now": {},
        "plain": {},
        "away": {},
        "hard": {"time_limit": 5},
        "soft": {"soft_time_limit": 5},
        "slow": {"rate_limit": "1/s"},
        "first": {"priority": 3},
        "odd": {"base": Odd},
    }
    for name, given in options.items():
        app.task(name=name, shared=False, **given)(noop)
    app.finalize()
    app.amqp.queues.add(Queue("one-by-one", queue_arguments={"x-single-active-consumer": True}))
    app.amqp.queues.select(["celery", "one-by-one"])
    task = app.tasks["now"]
    _task_stack.push(task)
    task.push_request(id="now", timelimit=[None, None], hostname="here")
    yield app
    task.pop_request()
    _task_stack.pop()


def ahead_of(app: Celery, time_slice: float = 60.0) -> RunAhead:
    binding = Binding(app, store=MemoryStore())
    wrap_tasks(binding)
    pace = Pace(time_slice)
    for name in app.tasks:
        pace.note(name, 0.0)
    return RunAhead(binding, pace)


def message(task: str = "plain", number: int = 1, **options: Any) -> StepMessage:
    scheduled = StepScheduled(number=number, cause=1, task=task, payload="[[],{}]", digest="", options=options or None)
    key = StepKey(workflow_id="w", run=1, number=number)
    return StepMessage(key=key, scheduled=scheduled, workflow="flow", envelope="{}")


def claim_of(step: StepMessage) -> Claim:
    return Claim(key=step.key, token=1, owner="p#1", attempt=1, lost=0, retries=0, scheduled=step.scheduled)


@pytest.mark.parametrize(
    "options", [{}, {"label": "a"}, {"queue": "celery"}, {"retry": {"maximum_attempts": 3}}, {"at_most_once": True}]
)
def test_a_plain_step_may_run_ahead(app: Celery, options: dict[str, Any]) -> None:
    assert ahead_of(app).may(message(**options))


@pytest.mark.parametrize("task", ["unknown", "away", "hard", "soft", "slow", "first", "odd", "durable_celery.event"])
def test_a_task_whose_message_matters_gets_one(app: Celery, task: str) -> None:
    assert not ahead_of(app).may(message(task))


@pytest.mark.parametrize(
    "options",
    [
        {"queue": "elsewhere"},
        {"queue": "one-by-one"},
        {"attempt_timeout": 5},
        {"priority": 3},
        {"message": {"expires": 5}},
    ],
)
def test_a_step_whose_message_matters_gets_one(app: Celery, options: dict[str, Any]) -> None:
    assert not ahead_of(app).may(message(**options))


@pytest.mark.parametrize("signal", [signals.before_task_publish, signals.after_task_publish])
def test_where_somebody_listens_to_what_is_published_there_are_messages(app: Celery, signal: Any) -> None:
    def listen(**_: Any) -> None:
        pass

    signal.connect(listen)
    try:
        assert not ahead_of(app).may(message())
    finally:
        signal.disconnect(listen)
    assert ahead_of(app).may(message())


def test_where_somebody_listens_to_what_is_received_there_are_messages(app: Celery) -> None:
    def listen(**_: Any) -> None:
        pass

    ahead = ahead_of(app)
    _measure_lags(ahead.binding)
    assert ahead.may(message())
    signals.task_received.connect(listen)
    try:
        assert not ahead.may(message())
    finally:
        signals.task_received.disconnect(listen)


def test_a_router_that_raises_is_left_to_who_publishes(app: Celery) -> None:
    def route(name: str, *_: Any, **__: Any) -> None:
        raise LookupError(name)

    app.conf.task_routes = (route,)

    assert not ahead_of(app).may(message())


def test_a_task_that_nobody_has_seen_here_gets_a_message() -> None:
    pace = Pace(60.0)
    assert not pace.fits("plain", 60.0)

    pace.note("plain", 0.001)
    assert pace.fits("plain", 60.0)


def test_a_step_gets_a_message_if_its_task_may_take_longer_than_the_slice_has_left(app: Celery) -> None:
    ahead = ahead_of(app, time_slice=1.0)
    ahead.pace.note("plain", 0.9)
    assert ahead.may(message())

    ahead._until = time.monotonic() + 0.5
    assert not ahead.may(message())
    ahead._until = None
    ahead.pace.note("plain", 1.1)
    assert not ahead.may(message())


def test_a_task_that_was_slow_once_runs_ahead_again_after_it_was_quick_for_a_while() -> None:
    pace = Pace(0.05)
    pace.note("plain", 0.2)
    for _ in range(5):
        pace.note("plain", 0.001)
    assert not pace.fits("plain", 0.05)

    for _ in range(15):
        pace.note("plain", 0.001)
    assert pace.fits("plain", 0.05)


def test_how_long_a_step_takes_is_learned_from_its_executions(app: Celery) -> None:
    @app.task(name="sleepy", shared=False)
    def sleepy() -> None:
        time.sleep(0.05)

    app.finalize()
    ahead = ahead_of(app, time_slice=0.04)
    binding, step = ahead.binding, message("sleepy")
    binding.pace = ahead.pace
    assert ahead.may(step)
    with bound(binding):
        task = app.tasks["sleepy"]
        request = binding.dispatcher.request(step, [], {}, "celery")
        task.push_request(**request, **{CLAIM: Begun(claim_of(step))})
        task.run()
        task.pop_request()

    assert not ahead.may(step)


def test_a_pool_process_hears_that_nothing_is_to_run_ahead_any_more() -> None:
    pace = Pace(0.05)
    pace.note("plain", 0.0)
    ears, mouth = os.pipe()
    pid = os.fork()
    if not pid:
        os.read(ears, 1)
        os._exit(pace.fits("plain", 0.05))
    assert pace.halt()
    assert not pace.halt()
    os.write(mouth, b"!")

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_hidden_arguments_go_by_message(app: Celery) -> None:
    app.conf.durable_codec = Hiding()

    assert not ahead_of(app).may(message())


def test_under_a_time_limit_nothing_runs_ahead(app: Celery) -> None:
    app.tasks["now"].request.timelimit = [None, 9]

    assert not ahead_of(app).may(message())


def test_outside_of_a_task_nothing_runs_ahead(app: Celery) -> None:
    ahead = ahead_of(app)
    _task_stack.push(None)
    try:
        assert not ahead.may(message())
    finally:
        _task_stack.pop()


def test_one_step_at_a_time_runs_ahead_and_none_after_the_slice(app: Celery) -> None:
    ahead = ahead_of(app, time_slice=0.05)
    ahead.take(message(), claim_of(message()))
    assert not ahead.may(message(number=2))

    ahead._next = None
    assert ahead.may(message(number=2))
    time.sleep(0.06)
    assert not ahead.may(message(number=2))


def test_a_step_that_cannot_even_begin_is_given_back(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = ahead_of(app)
    postponed: list[Any] = []
    store: Store = ahead.binding.store
    monkeypatch.setattr(store, "postpone", lambda key, owner, **_: postponed.append((str(key), owner)))
    app.tasks["plain"].__trace__ = _stop
    ahead.take(message(), claim_of(message()))

    with pytest.raises(SystemExit):
        ahead.work()

    assert postponed == [("w/1.1", "p#1")]
    assert ahead.may(message(number=2))


def _stop(*_: object) -> None:
    raise SystemExit


def run_message(**envelope: Any) -> RunMessage:
    return RunMessage(workflow_id="w", name="flow", envelope=json.dumps(envelope), created_at=1, first=False)


@pytest.fixture
def flow(app: Celery) -> Any:
    """A workflow of the app."""

    def flow(ctx: WorkflowContext) -> None:
        ctx.sleep(1)

    durable_task(app=app, name="flow")(flow)
    app.finalize()
    return app.tasks["flow"]


def an_end(store: Store) -> Ending:
    """Let a run end, and keep its lease."""
    store.start(NewRun(workflow_id="w", name="flow", payload="[[],{}]", digest="d"))
    turn = store.take("w", "p#1", known=0)
    assert isinstance(turn, Turn)
    end = RunCompleted(payload="1", number=1, cause=1)
    assert store.commit(turn.lease, [end], read=1, waiting="", hold=True).held
    return Ending(run=turn.run, lease=turn.lease, event=end)


def test_an_end_that_its_task_does_not_take_is_given_back(app: Celery, flow: Any) -> None:
    def trace(*_: Any) -> None:
        raise SystemExit

    ahead = ahead_of(app)
    store = ahead.binding.store
    assert ahead.may_deliver(run_message())
    ahead.deliver(an_end(store))
    flow.__trace__ = trace
    with pytest.raises(SystemExit):
        ahead.work()

    run = store.get("w")
    assert run is not None
    assert (run.owner, run.delivered) == (None, False)
    assert ahead.may_deliver(run_message())


def test_an_end_is_delivered_under_the_lease_that_was_kept(app: Celery, flow: Any) -> None:
    ahead = ahead_of(app)
    store = ahead.binding.store
    flow.__trace__ = build_tracer("flow", flow, app=app)
    assert ahead.may_deliver(run_message(ignore_result=True))
    with bound(ahead.binding):
        ahead.deliver(an_end(store))
        ahead.work()

    run = store.get("w")
    assert run is not None
    assert (run.delivered, run.token) == (True, 1)


def test_an_end_is_delivered_where_it_came_about_whether_or_not_steps_run_ahead(app: Celery, flow: Any) -> None:
    ahead = ahead_of(app, time_slice=0.0)
    assert not ahead.may(message())

    assert ahead.may_deliver(run_message())
    ahead.deliver(an_end(ahead.binding.store))
    # One at a time: another one goes by message.
    assert not ahead.may_deliver(run_message())


def test_the_request_of_an_end_is_that_of_its_message(app: Celery, flow: Any) -> None:
    options = {"link": [flow.si()], "root_id": "r", "group_id": "g", "headers": {"tenant": "t"}, "ignore_result": True}
    request = ahead_of(app).binding.dispatcher.run_request(run_message(**json.loads(envelope(options))), "some-queue")

    assert (request["id"], request["task"], request["root_id"], request["group"]) == ("w", "flow", "r", "g")
    assert (request["tenant"], request["ignore_result"], request["args"], request["kwargs"]) == ("t", True, (), {})
    assert [callback["task"] for callback in request["callbacks"]] == ["flow"]
    assert request[HEADER]["first"] is False
    assert request["delivery_info"]["routing_key"] == "some-queue"


@pytest.mark.parametrize("options", [{"queue": "elsewhere"}, {"time_limit": 9}, {"soft_time_limit": 9}])
def test_an_end_whose_message_matters_gets_one(app: Celery, flow: Any, options: dict[str, Any]) -> None:
    assert not ahead_of(app).may_deliver(run_message(**options))


@pytest.mark.parametrize("changes", [{"time_limit": 5}, {"soft_time_limit": 5}, {"Request": "some.where:Else"}])
def test_an_end_of_a_workflow_whose_message_matters_gets_one(app: Celery, flow: Any, changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        setattr(flow, name, value)

    assert not ahead_of(app).may_deliver(run_message())


def test_the_end_of_a_workflow_that_is_not_registered_gets_a_message(app: Celery) -> None:
    assert not ahead_of(app).may_deliver(run_message())


def test_where_somebody_listens_an_end_has_a_message(app: Celery, flow: Any) -> None:
    def listen(**_: Any) -> None:
        pass

    signals.before_task_publish.connect(listen)
    try:
        assert not ahead_of(app).may_deliver(run_message())
    finally:
        signals.before_task_publish.disconnect(listen)


def test_an_end_whose_router_raises_is_left_to_who_publishes(app: Celery, flow: Any) -> None:
    def route(name: str, *_: Any, **__: Any) -> None:
        raise LookupError(name)

    app.conf.task_routes = (route,)

    assert not ahead_of(app).may_deliver(run_message())


def test_a_message_from_outside_brings_no_claim() -> None:
    """What is in a message is JSON: never an object of ours."""
    assert not isinstance({"claim": {}}, Begun)
    assert CLAIM == "durable_claim"


def test_steps_that_run_ahead_are_to_their_tasks_what_steps_by_message_are() -> None:
    """The tests of steps once more, with a worker that runs ahead as far as it may."""
    words = ["-q", "-p", "no:cacheprovider", "tests/celery/test_steps.py", "tests/celery/test_step_failures.py"]
    env = {**os.environ, "SHOP_RUN_AHEAD": "5"}
    env = {name: value for name, value in env.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout
