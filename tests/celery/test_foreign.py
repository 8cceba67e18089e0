"""A task by name, in a service that does not import this library: a real second worker, the outcome from Celery."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError
from redis import Redis

from durable_celery import ConfigurationError, RemoteError, StepTimeoutError
from durable_celery.app import binding_of
from durable_celery.events import StepScheduled
from tests.servers import RedisServer
from tests.waiting import wait_until
from tests.workers import CeleryWorker

WAIT = 40.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    directory = tmp_path_factory.mktemp("billing-redis")
    with RedisServer(directory, aof="everysec", extra_args=("--maxmemory-policy", "noeviction")) as server:
        yield server


def env(server: RedisServer) -> dict[str, str]:
    return {"BILLING_BROKER": server.database_url(0), "BILLING_BACKEND": server.database_url(1)}


@pytest.fixture(scope="module")
def till(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from tests.celery import till

    urls = env(server)
    till.app.conf.update(broker_url=urls["BILLING_BROKER"], result_backend=urls["BILLING_BACKEND"])
    directory = tmp_path_factory.mktemp("till")
    with CeleryWorker("tests.celery.till", directory, queues=("till",), env=urls) as worker:
        yield till
        print("\n".join(worker.log.splitlines()[-60:]))  # noqa: T201


@pytest.fixture
def billing(server: RedisServer, tmp_path: Path) -> Callable[[], CeleryWorker]:
    return lambda: CeleryWorker("tests.celery.billing", tmp_path, queues=("billing",), env=env(server), pool="threads")


def test_its_result_comes_back_and_its_id_is_that_of_the_step(till: Any, billing: Callable[[], CeleryWorker]) -> None:
    with billing():
        handle, other = till.pay.delay("o-1", 5), till.pay_async.delay("o-2", 6)

        assert handle.get(WAIT) == ["o-1", 5, f"{handle.id}/1.1/foreign", handle.id, False]
        assert other.get(WAIT)[:2] == ["o-2", 6]


def test_its_failure_comes_back_as_far_as_its_class_is_known(till: Any, billing: Callable[[], CeleryWorker]) -> None:
    with billing():
        known, unknown = till.call.delay("billing.decline", "o-1"), till.call.delay("billing.own_error", "o-2")

        with pytest.raises(ValueError, match="o-1 is declined"):
            known.get(WAIT)
        with pytest.raises(RemoteError, match="o-2 is declined") as caught:
            unknown.get(WAIT)
    assert caught.value.type_name == "billing.errors.DeclinedError"


def test_a_retry_policy_sends_it_anew(till: Any, billing: Callable[[], CeleryWorker]) -> None:
    with billing():
        handle = till.call.delay("billing.flaky", retry=3)

        # Two steps and a timer for each attempt: the third has an id of its own.
        assert handle.get(WAIT) == f"{handle.id}/1.7/foreign"


def test_it_is_waited_for_while_its_service_is_down_and_its_waits_leave_nothing_in_the_history(
    till: Any, billing: Callable[[], CeleryWorker]
) -> None:
    handle = till.pay.delay("o-3", 1)
    wait_until(lambda: [step.attempt >= 3 for step in handle.describe().steps] == [True], WAIT)
    before = len(handle.history())

    with billing():
        assert handle.get(WAIT)[0] == "o-3"
    # The outcome and the run's end are all that came.
    assert len(handle.history()) == before + 2


def test_a_lost_message_is_sent_again_where_that_was_asked_for(
    till: Any, billing: Callable[[], CeleryWorker], server: RedisServer
) -> None:
    broker: Any = Redis.from_url(server.database_url(0))
    handle = till.insist.delay("o-4")
    wait_until(lambda: broker.llen("billing") > 0, WAIT)
    broker.delete("billing")

    with billing():
        order, _, task_id, _, _ = handle.get(WAIT)

    assert (order, task_id) == ("o-4", f"{handle.id}/1.1/foreign")
    sent = [item.event for item in handle.history() if isinstance(item.event, StepScheduled)]
    assert [event.task.rpartition("_")[2] for event in sent][:4] == ["send", "outcome", "send", "outcome"]


def test_what_has_no_outcome_ends_by_the_timeout(till: Any, billing: Callable[[], CeleryWorker]) -> None:
    with billing():
        handle = till.call.delay("billing.nobody_has_it", timeout=2.0, retry=5)

        with pytest.raises(StepTimeoutError):
            handle.get(WAIT)


def test_a_task_that_ignores_its_result_has_one_all_the_same(till: Any, billing: Callable[[], CeleryWorker]) -> None:
    with billing():
        assert till.call.delay("billing.silent", timeout=WAIT).get(WAIT) is None


def test_a_revoked_task_fails_the_step(till: Any, billing: Callable[[], CeleryWorker], server: RedisServer) -> None:
    broker: Any = Redis.from_url(server.database_url(0))
    handle = till.call.delay("billing.charge", "o-5")
    wait_until(lambda: broker.llen("billing") > 0, WAIT)
    backend = till.app.backend
    backend.store_result(f"{handle.id}/1.1/foreign", TaskRevokedError("withdrawn"), "REVOKED")

    with pytest.raises(TaskRevokedError, match="withdrawn"):
        handle.get(WAIT)
    broker.delete("billing")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"result_backend": None}, "this app has none that can be asked"),
        ({"result_backend": "rpc://"}, "this app has none that can be asked"),
        ({"result_backend": "cache+memory://", "result_expires": 10}, "result_expires is 10 s"),
    ],
)
def test_a_backend_that_cannot_be_asked_is_an_error_at_once(settings: dict[str, Any], message: str) -> None:
    from durable_celery.foreign import _check

    app = Celery("lacking", set_as_current=False, broker="memory://")
    app.conf.update(durable_store="redis://localhost:1/0", **settings)

    with pytest.raises(ConfigurationError, match=message):
        _check(app, "billing.charge")


def test_hidden_payloads_do_not_leave_by_a_foreign_task() -> None:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from durable_celery.codec import AesGcm
    from durable_celery.foreign import _check

    app = Celery("hiding", set_as_current=False, broker="memory://", backend="cache+memory://")
    app.conf.update(durable_store="redis://localhost:1/0", durable_codec=AesGcm({"k": AESGCM.generate_key(256)}))
    assert binding_of(app).hides_ends

    with pytest.raises(ConfigurationError, match="durable_reveal_results"):
        _check(app, "billing.charge")
