"""What the outside world says to workflows, through client, handle and functions of the package: callbacks and signals.

A real app in the testing environment: everything but broker, store and clock is as in production.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from textwrap import dedent
from typing import Any, cast

import pytest
from celery import Celery, _state

from durable_celery import (
    CallbackFailedError,
    ConfigurationError,
    HeartbeatTimeoutError,
    Signal,
    WaitTimeoutError,
    WorkflowClosedError,
    WorkflowContext,
    WorkflowHandle,
    WorkflowNotFoundError,
    complete_callback,
    durable_task,
    fail_callback,
    heartbeat_callback,
)
from durable_celery.codec import AesGcm, CallbackToken
from durable_celery.errors import CodecError, InboxFullError, InvalidRequestError, PayloadError, StoreUnavailableError
from durable_celery.events import SignalReceived
from durable_celery.testing import Environment
from durable_celery.testing.system import LocalClient


@dataclass(frozen=True)
class Approval:
    by: str
    amount: int = 0


approved = Signal("approved", Approval)
closed = Signal("closed", None)


class Desk:
    """An app with the workflows of this file, in an environment."""

    def __init__(self, **settings: Any) -> None:
        self.app = Celery("outside", broker="memory://", set_as_current=False)
        self.app.conf.update(settings)
        app = self.app
        self.tokens: list[str] = []

        @app.task(name="outside.submit", shared=False)
        def submit(token: str, order: str) -> str:
            self.tokens.append(token)
            return f"accepted {order}"

        self.submit = submit

        @durable_task(app=app, name="outside.pay")
        def pay(ctx: WorkflowContext, order: str, timeout: float | None = None, heartbeat: float | None = None) -> Any:
            return ctx.wait_callback(submit, order, timeout=timeout, heartbeat=heartbeat)

        self.pay = pay

        @durable_task(app=app, name="outside.declares", signals=[approved, closed, "note"])
        def declares(ctx: WorkflowContext) -> Any:
            approval = ctx.wait_signal(approved)
            return [approval.by, approval.amount]

        self.declares = declares

        @durable_task(app=app, name="outside.takes_all")
        def takes_all(ctx: WorkflowContext) -> Any:
            return ctx.wait_signal("anything")

        self.takes_all = takes_all

        self.environment = Environment(app)

    @property
    def client(self) -> LocalClient:
        client: LocalClient = self.environment.system.binding.client  # type: ignore[assignment]  # it is one in a test
        return client

    def signals(self, run: WorkflowHandle[Any]) -> list[SignalReceived]:
        return [item.event for item in run.history() if isinstance(item.event, SignalReceived)]


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk(durable_inbox_limit=5)
    with desk.environment:
        yield desk


# --------------------------------------------------------------------------- callbacks


def test_a_callback_is_completed_by_its_token(desk: Desk) -> None:
    run = desk.environment.start(desk.pay, "o-1")

    assert run.state == "STARTED"
    assert complete_callback(desk.tokens[0], {"paid": 12}, app=desk.app) is True
    assert run.get() == {"paid": 12}


@pytest.mark.parametrize(("error", "kind"), [("no funds", CallbackFailedError), (ValueError("no funds"), ValueError)])
def test_a_callback_is_failed_with_words_or_an_exception(desk: Desk, error: Any, kind: type[Exception]) -> None:
    run = desk.environment.start(desk.pay, "o-1")

    assert fail_callback(desk.tokens[0], error, app=desk.app) is True
    with pytest.raises(kind, match="no funds"):
        run.get()


def test_the_current_app_answers_where_none_is_named(desk: Desk) -> None:
    run = desk.environment.start(desk.pay, "o-1")
    desk.app.set_current()

    assert complete_callback(desk.tokens[0], 1)
    assert run.get() == 1


def in_a_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(work).result()


def test_a_thread_without_a_current_app_is_told_so_and_takes_the_default_one(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = desk.environment.start(desk.pay, "o-1")
    another = Celery("another", set_as_current=False)
    assert another in _state._get_active_apps()
    monkeypatch.setattr(_state, "default_app", None)
    with pytest.raises(ConfigurationError, match=r"call app\.set_default"):
        in_a_thread(lambda: complete_callback(desk.tokens[0], 1))

    monkeypatch.setattr(_state, "default_app", desk.app)
    assert in_a_thread(lambda: complete_callback(desk.tokens[0], 1))
    assert run.get() == 1


def test_a_thread_without_a_current_app_takes_the_only_one() -> None:
    """As in a web server with threads: the app was made in another one."""
    script = """
        import threading
        from celery import Celery
        from durable_celery import complete_callback
        app = Celery("only", broker="memory://")
        app.conf.durable_store = "nonsense"
        def answer():
            try:
                complete_callback("x")
            except Exception as error:
                print(error)
        thread = threading.Thread(target=answer)
        thread.start()
        thread.join()
    """
    done = subprocess.run([sys.executable, "-c", dedent(script)], capture_output=True, text=True, check=True)

    assert "memory://" in done.stdout


def test_the_first_answer_counts_and_who_comes_later_is_told(desk: Desk) -> None:
    run = desk.environment.start(desk.pay, "o-1")

    answers = [
        desk.client.complete_callback(desk.tokens[0], "first"),
        desk.client.complete_callback(desk.tokens[0], "first"),
        desk.client.complete_callback(desk.tokens[0], "another"),
        desk.client.fail_callback(desk.tokens[0], "refused"),
    ]
    assert answers == [True, False, False, False]
    assert run.get() == "first"
    # Also when the run has ended: a web hook that is delivered twice is no error.
    assert desk.client.complete_callback(desk.tokens[0], "first") is False
    assert len(desk.signals(run)) == 1


def test_signs_of_life_keep_a_callback_waiting(desk: Desk) -> None:
    run = desk.environment.start(desk.pay, "o-1", heartbeat=60)
    for _ in range(5):
        desk.environment.skip(50)
        heartbeat_callback(desk.tokens[0], app=desk.app)
        desk.environment.settle()
    assert run.state == "STARTED"
    desk.environment.skip(61)

    with pytest.raises(HeartbeatTimeoutError, match="no sign of life for 60 s"):
        run.get()


def test_no_answer_in_time_is_a_timeout(desk: Desk) -> None:
    with pytest.raises(WaitTimeoutError, match="no answer within 3600 s"):
        desk.environment.run(desk.pay, "o-1", timeout=3600)

    with pytest.raises(WorkflowClosedError):
        desk.client.complete_callback(desk.tokens[0], "too late")
    with pytest.raises(WorkflowClosedError):
        desk.client.heartbeat_callback(desk.tokens[0])


def test_signs_of_life_are_refused_by_a_full_inbox_and_answers_are_not(desk: Desk) -> None:
    run = desk.environment.start(desk.pay, "o-1")
    for _ in range(5):
        desk.client.heartbeat_callback(desk.tokens[0])
    with pytest.raises(InboxFullError):
        desk.client.heartbeat_callback(desk.tokens[0])

    assert desk.client.complete_callback(desk.tokens[0], "paid")
    assert run.get() == "paid"


def changed(token: str, **changes: Any) -> str:
    return str(replace(CallbackToken.parse(token), **changes))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"secret": "guessed"}, InvalidRequestError),
        ({"secret": ""}, InvalidRequestError),
        ({"number": 2}, InvalidRequestError),
        ({"number": 0}, InvalidRequestError),
        ({"number": 99}, InvalidRequestError),
        ({"cause": 999}, InvalidRequestError),
        ({"run": 2}, WorkflowClosedError),
        ({"workflow_id": "nobody"}, WorkflowNotFoundError),
    ],
    ids=str,
)
def test_a_token_that_the_run_has_not_given_out_writes_nothing(
    desk: Desk, change: dict[str, Any], error: type[Exception]
) -> None:
    run = desk.environment.start(desk.pay, "o-1")
    forged = changed(desk.tokens[0], **change)

    for verb in (desk.client.complete_callback, lambda token: desk.client.fail_callback(token, "x")):
        with pytest.raises(error):
            verb(forged)
    with pytest.raises(error):
        desk.client.heartbeat_callback(forged)
    assert desk.signals(run) == []


def test_the_token_of_a_run_with_the_same_id_in_another_store_is_refused(desk: Desk) -> None:
    desk.pay.apply_async(("o-1",), task_id="order-1")
    desk.environment.settle()
    other = Desk()
    with other.environment:
        other.pay.apply_async(("o-1",), task_id="order-1")
        other.environment.settle()

        with pytest.raises(InvalidRequestError, match="'order-1' has not given out this token"):
            other.client.complete_callback(desk.tokens[0], "paid")


def test_an_answer_that_cannot_be_recorded_is_refused_and_another_may_follow(desk: Desk) -> None:
    run = desk.environment.start(desk.pay, "o-1")

    with pytest.raises(PayloadError, match="the answer to a callback cannot be recorded"):
        desk.client.complete_callback(desk.tokens[0], object())
    assert desk.client.complete_callback(desk.tokens[0], "paid")
    assert run.get() == "paid"


def test_a_signal_cannot_pass_for_an_answer(desk: Desk) -> None:
    run = desk.environment.start(desk.pay, "o-1")

    with pytest.raises(InvalidRequestError, match="are reserved"):
        run.signal("durable:callback:1.1", {"value": "forged"})
    assert desk.signals(run) == []


def test_a_callback_that_is_found_late_in_a_long_history_is_found(desk: Desk) -> None:
    """Inputs may stand between a callback's cause and its record, any number of them."""
    run = desk.environment.start(desk.takes_all)

    @durable_task(app=desk.app, name="outside.late")
    def late(ctx: WorkflowContext) -> Any:
        ctx.gather(*(ctx.timer(1000 + i) for i in range(120)))
        callback = ctx.callback()
        ctx.step(desk.submit, callback.token, "late")
        return callback.result()

    run = desk.environment.start(late)
    desk.environment.skip(timedelta(hours=1))

    assert desk.client.complete_callback(desk.tokens[0], "found")
    assert run.get() == "found"


def test_answers_are_encrypted_and_bound_to_their_callback() -> None:
    desk = Desk(durable_codec=AesGcm({"k1": os.urandom(32)}))
    with desk.environment:
        first, second = (desk.environment.start(desk.pay, order) for order in ("o-1", "o-2"))
        desk.client.complete_callback(desk.tokens[0], "secret word")
        stored = desk.signals(first)[0].payload or ""
        assert "secret word" not in stored
        assert first.get() == "secret word"

        # Moved to the other callback by somebody who can write to the store: it does not open there.
        forged = SignalReceived(name=CallbackToken.parse(desk.tokens[1]).signal, payload=stored)
        desk.client.store.append(second.id, forged, key="forged")
        with pytest.raises(CodecError):
            second.get()


def test_an_answer_that_the_store_did_not_acknowledge_may_be_repeated(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = desk.environment.start(desk.pay, "o-1")
    store: Any = desk.client.store
    append = store.append

    def lose_the_reply(*args: Any, **kwargs: Any) -> Any:
        append(*args, **kwargs)
        raise StoreUnavailableError("the reply is lost")

    with monkeypatch.context() as patch:
        patch.setattr(store, "append", lose_the_reply)
        with pytest.raises(StoreUnavailableError):
            desk.client.complete_callback(desk.tokens[0], "paid")

    assert desk.client.complete_callback(desk.tokens[0], "paid") is False
    assert run.get() == "paid"


# --------------------------------------------------------------------------- typed signals


def test_a_typed_signal_is_sent_by_the_handle_and_built_in_the_workflow(desk: Desk) -> None:
    run = desk.environment.start(desk.declares)
    run.signal(approved, Approval("ann", 12))

    assert run.get() == ["ann", 12]


def test_a_signal_by_name_is_held_against_what_the_workflow_declares(desk: Desk) -> None:
    run = desk.environment.start(desk.declares)

    with pytest.raises(PayloadError, match="amount is of type str in place of int"):
        run.signal("approved", {"by": "ann", "amount": "12"})
    assert desk.signals(run) == []
    run.signal("approved", {"by": "ann", "amount": 12})
    assert run.get() == ["ann", 12]


@pytest.mark.parametrize("name", ["aproved", Signal("aproved", Approval)], ids=["by name", "typed"])
def test_a_signal_that_the_workflow_does_not_take_is_refused_with_those_that_it_takes(desk: Desk, name: Any) -> None:
    run = desk.environment.start(desk.declares)

    with pytest.raises(InvalidRequestError, match=r"takes no signal 'aproved', but .*; was 'approved' meant\?"):
        run.signal(name, Approval("ann"))
    assert desk.signals(run) == []


def test_names_and_signals_without_a_value_may_be_declared_too(desk: Desk) -> None:
    run = desk.environment.start(desk.declares)
    run.signal("note", {"what": "ever"})
    run.signal(closed)
    with pytest.raises(PayloadError):
        run.signal(cast("Any", closed), 0)

    assert [event.name for event in desk.signals(run)] == ["note", "closed"]


def test_a_workflow_that_declares_nothing_takes_any_signal(desk: Desk) -> None:
    run = desk.environment.start(desk.takes_all)
    run.signal("whatever")
    run.signal("anything", [1, (2, 3)])

    assert run.get() == [1, [2, 3]]


def test_a_signal_to_nobody_is_refused_where_signals_are_declared_and_where_not(desk: Desk) -> None:
    with pytest.raises(WorkflowNotFoundError):
        desk.environment.start(desk.declares).client.signal("nobody", approved, Approval("ann"))


def test_what_an_older_sender_did_not_check_fails_the_run_with_the_reason(desk: Desk) -> None:
    run = desk.environment.start(desk.declares)
    event = SignalReceived(name="approved", payload='{"by":3}')
    desk.client.store.append(run.id, event, key="signal:older")

    with pytest.raises(ValueError, match="signal 'approved' came with a value that is not of type Approval"):
        run.get()


def test_two_signals_of_one_name_cannot_be_declared(desk: Desk) -> None:
    with pytest.raises(InvalidRequestError, match="called 'go'"):

        @durable_task(app=desk.app, signals=["go", Signal("go", int)])
        def never(ctx: WorkflowContext) -> None: ...
