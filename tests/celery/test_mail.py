"""`durable_atomic_publish`: a message enters its queue with the commit that makes it due, and is what it always was."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, Task, signals
from kombu.transport import redis as transport

from durable_celery import ConfigurationError, WorkflowContext, durable_task
from durable_celery.app import Binding
from durable_celery.events import StepScheduled
from durable_celery.mail import PostOffice
from durable_celery.store.memory import MemoryStore
from durable_celery.store.protocol import Mail, NewRun, RunMessage, StepKey, StepMessage
from tests.celery.conftest import shop_env
from tests.servers import RedisServer
from tests.workers import CeleryWorker

pytestmark = pytest.mark.skipif(not hasattr(transport, "PublishBatch"), reason="kombu 5.6 has nothing to take it from")

#: What is new in each message.
PASSING = ("sent", "delivery_tag")


class Odd(Task):
    """Publishes in a way of its own."""

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        return super().apply_async(*args, **kwargs)


@pytest.fixture
def app(redis_server: RedisServer) -> Iterator[Celery]:
    app = Celery("mail", broker=redis_server.start().database_url(7), set_as_current=False)
    app.conf.durable_atomic_publish = True

    @app.task(name="add", shared=False)
    def add(left: int, right: int) -> int:
        return left + right

    @app.task(name="odd", base=Odd, shared=False)
    def odd() -> None:
        pass

    with redis_server.client(7) as client:
        client.flushdb()
        yield app
        client.flushdb()
    app.close()


def office_of(app: Celery) -> PostOffice:
    office = Binding(app, store=MemoryStore()).post_office
    assert office is not None
    return office


def binding_at(broker: str, store: str) -> Binding:
    app = Celery("places", broker=broker, set_as_current=False)
    app.conf.update(durable_store=store, durable_atomic_publish=True)
    return Binding(app, store=MemoryStore())


def message(task: str = "add", **changes: Any) -> StepMessage:
    call: dict[str, Any] = {"number": 1, "cause": 1, "task": task, "digest": "", "payload": "[[1,2],{}]", **changes}
    key = StepKey(workflow_id="w", run=1, number=1)
    return StepMessage(key=key, scheduled=StepScheduled(**call), workflow="flow", envelope="{}")


def run_message(**changes: Any) -> RunMessage:
    given: dict[str, Any] = {"workflow_id": "w", "name": "flow", "envelope": "{}", "created_at": 1, **changes}
    return RunMessage(**given)


def content(text: str | bytes) -> dict[str, Any]:
    """Return what a queue holds, without what differs each time."""
    form: dict[str, Any] = json.loads(text)
    form["body"] = json.loads(base64.b64decode(form["body"]))
    form["headers"]["durable"].pop("sent")
    form["properties"].pop("delivery_tag")
    return form


def waiting(server: RedisServer) -> dict[str, list[Any]]:
    """Return what waits in the queues of the broker, by their keys."""
    with server.client(7) as client:
        lists: list[Any] = [key for key in client.scan_iter("*", _type="list") if not key.startswith(b"durable")]
        return {key.decode(): client.lrange(key, 0, -1) for key in lists}


@pytest.mark.parametrize(
    "one",
    [
        message(),
        message("unknown.here"),
        message(options={"queue": "side", "priority": 6, "label": "sum"}),
        run_message(),
        run_message(first=True, envelope='{"queue":"side","priority":3,"link":[],"argsrepr":"(1,)"}'),
    ],
)
def test_mail_is_what_would_have_been_published(
    app: Celery, redis_server: RedisServer, one: RunMessage | StepMessage
) -> None:
    office = office_of(app)
    (mail,) = office.mail_of([one])
    assert waiting(redis_server) == {}

    office.dispatcher.publish([one])
    ((queue, (text,)),) = waiting(redis_server).items()
    assert mail.queue == queue
    assert content(mail.text) == content(text)


def test_a_prefix_of_the_brokers_keys_is_kept(app: Celery, redis_server: RedisServer) -> None:
    app.conf.broker_transport_options = {"global_keyprefix": "mine:"}

    assert [mail.queue for mail in office_of(app).mail_of([message()])] == ["mine:celery"]


def test_many_have_their_order(app: Celery) -> None:
    mail = office_of(app).mail_of([message(payload=f"[[{number},0],{{}}]") for number in range(3)])

    assert [content(one.text)["body"][0] for one in mail] == [[0, 0], [1, 0], [2, 0]]


def test_what_is_published_in_another_way_is_no_mail(app: Celery, redis_server: RedisServer) -> None:
    office = office_of(app)

    assert office.mail_of([message(), message("odd")]) == []
    assert office.mail_of([message(kind="workflow")]) == []
    assert waiting(redis_server) == {}


@pytest.mark.parametrize("signal", [signals.before_task_publish, signals.after_task_publish])
def test_who_listens_to_what_is_published_hears_of_it(app: Celery, signal: Any) -> None:
    def listen(**_: Any) -> None: ...

    signal.connect(listen)
    try:
        assert office_of(app).mail_of([message()]) == []
    finally:
        signal.disconnect(listen)


def test_a_message_that_is_more_than_one_entry_of_a_queue_is_no_mail(app: Celery, redis_server: RedisServer) -> None:
    app.conf.task_send_sent_event = True

    assert office_of(app).mail_of([message()]) == []
    assert waiting(redis_server) == {}


def test_what_a_router_raises_is_told_where_it_is_published(app: Celery, redis_server: RedisServer) -> None:
    def route(*_: Any, **__: Any) -> None:
        raise LookupError

    app.conf.task_routes = [route]

    assert office_of(app).mail_of([message()]) == []


def test_a_channel_publishes_as_ever_afterwards(app: Celery, redis_server: RedisServer) -> None:
    office = office_of(app)
    office.mail_of([message()])
    with app.producer_or_acquire() as producer, producer.batch():
        app.send_task("add", (1, 2), producer=producer)

    assert len(waiting(redis_server)["celery"]) == 1


def test_only_a_start_that_begins_at_once_has_mail(app: Celery) -> None:
    office = office_of(app)
    new: dict[str, Any] = {"workflow_id": "w", "name": "flow", "payload": "[[],{}]", "digest": "d"}

    assert isinstance(office.of_start(NewRun(**new)), Mail)
    assert office.of_start(NewRun(**new, delay=1.0)) is None


def test_a_start_leaves_its_message_and_its_run_in_one_transaction(app: Celery, redis_server: RedisServer) -> None:
    @durable_task(app=app, name="flow")
    def flow(ctx: WorkflowContext, number: int) -> int:
        return number

    with redis_server.client(7) as client, client.monitor() as monitor:
        flow.apply_async((1,), task_id="w", queue="side", priority=3)
        client.echo("done")
        commands: list[Any] = []
        while not commands or commands[-1]["command"] != "ECHO done":
            commands.append(monitor.next_command())
    pushes = [seen for seen in commands if seen["command"].startswith("LPUSH")]

    assert [seen["client_type"] for seen in pushes] == ["lua"]
    ((queue, (text,)),) = waiting(redis_server).items()
    assert queue == "side\x06\x163"
    assert content(text)["headers"]["id"] == "w"


@pytest.mark.parametrize(
    ("broker", "store"),
    [
        ("redis://h:1/0", "redis://h:1/1"),
        ("redis://h:1/0", "redis://h:2/0"),
        ("redis://h:1/0", "redis://other:1/0"),
        ("redis://h:1/0", "redis+cluster://h:1/0"),
        ("redis://h:1/0;redis://i:1/0", "redis://h:1/0"),
        ("redis://h:1/0", "sqlite:///x"),
        ("amqp://h//", "redis://h:1/0"),
        ("amqp://h//", ""),
        ("sqla+sqlite:///x", "sqlite:///y"),
        ("redis+socket:///tmp/a.sock?virtual_host=1", "redis+socket:///tmp/a.sock"),
    ],
)
def test_broker_and_store_in_two_places_are_refused(broker: str, store: str) -> None:
    with pytest.raises(ConfigurationError, match=r"durable_atomic_publish .* not the Redis database of durable_store"):
        binding_at(broker, store)


@pytest.mark.parametrize(
    ("broker", "store"),
    [
        ("redis://h:1/0", ""),
        ("redis://h", "redis://:secret@h:6379/0"),
        ("rediss://h:1/3", "rediss://h:1/3"),
        ("redis+socket:///tmp/a.sock", "redis+socket:///tmp/a.sock?virtual_host=0"),
    ],
)
def test_one_database_may_be_said_in_two_ways(broker: str, store: str) -> None:
    assert binding_at(broker, store).post_office is not None


def test_a_worker_goes_on_with_mail(shop_server: RedisServer, tmp_path: Path, run_python: Callable[..., str]) -> None:
    env = {**shop_env(shop_server, first=9), "SHOP_ATOMIC_PUBLISH": "1"}
    env["SHOP_BROKER"] = env["SHOP_STORE"]
    with CeleryWorker("tests.celery.shop", tmp_path, queues=("celery", "side"), env=env) as worker:
        printed = run_python(
            "from tests.celery.shop import double\n"
            "handles = [double.delay(number) for number in range(20)]\n"
            "print([handle.get(30) for handle in handles])\n",
            **env,
        )
        assert printed.strip() == str([2 * number for number in range(20)])
        assert "Traceback" not in worker.log
    client: redis.Redis = shop_server.client(9)
    assert client.llen("celery") == 0
