"""Whoever can write to the broker can wake runs, and no more: no message changes a history or ends a worker."""

from __future__ import annotations

import base64
import json
import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_celery import WorkflowContext, durable_task
from durable_celery.codec import check_id, check_name
from durable_celery.errors import InvalidIdError, InvalidRequestError
from tests.security.conftest import Vault, new_key
from tests.servers import RedisServer
from tests.waiting import wait_until
from tests.workers import CeleryWorker

HUGE = 10**400
HOSTILE_IDS = [
    "",
    "{0}",
    "a}b{c",
    "a\nb",
    "a\0b",
    "a*",
    "x" * 10_000,
    "ключ",
    "\ud800",
    " ",
    "../../x",
    "%s%n",
    "'; DROP",
]
JSON = "application/json"


class Post:
    """Pushes raw messages into the worker's queue, as anybody with access to the broker can."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server

    def raw(self, message: bytes) -> None:
        with self.server.client() as client:
            client.lpush("celery", message)

    def send(self, body: bytes, headers: Any, content_type: str = JSON, **properties: Any) -> None:
        properties = {
            "correlation_id": "x",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "celery"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": f"tag-{random.random()}",
        } | properties
        message = {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "utf-8",
            "content-type": content_type,
            "headers": headers,
            "properties": properties,
        }
        self.raw(json.dumps(message).encode())

    def task(self, name: str, task_id: Any, durable: Any = None, args: Any = (), **headers: Any) -> None:
        """Send a message of protocol 2."""
        given = {"lang": "py", "task": name, "id": task_id, "root_id": task_id, "parent_id": None, "retries": 0}
        given |= {"group": None, "argsrepr": "()", "kwargsrepr": "{}", "origin": "evil", "timelimit": [None, None]}
        if durable is not None:
            given["durable"] = durable
        self.send(json.dumps([list(args), {}, {}]).encode(), {**given, **headers})


class Flag:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


@pytest.fixture(params=["", "codec"], ids=["plain", "codec"])
def vault(request: pytest.FixtureRequest, server: RedisServer, tmp_path: Any) -> Vault:
    return Vault(server.url, tmp_path, new_key("k1") if request.param else "")


@pytest.fixture
def worker(vault: Vault) -> Iterator[CeleryWorker]:
    with vault.worker(concurrency=2) as worker:
        yield worker


def forgeries(post: Post, victim: str, pickled: str) -> None:
    """Send all of them."""
    step = {"id": victim, "run": 1, "name": "vault.waits", "queue": "celery"}
    # Steps that are finished, that never were, of other runs, and of no run.
    numbers: list[Any] = [1, 2, 3, 99, 0, -1, HUGE, "1", None, [], {}]
    for number in numbers:
        post.task("vault.echo", f"{victim}/1.{number}"[:300], {**step, "step": number}, ["forged"])
    for run in (0, 2, -1, HUGE, "1", None):
        post.task("vault.echo", f"{victim}/1.1", {**step, "run": run, "step": 1}, ["forged"])
    # A message for one step that carries the task of another, or no task that there is.
    post.task("vault.fails", f"{victim}/1.1", {**step, "step": 1}, ["forged"])
    post.task("vault.nobody", f"{victim}/1.2", {**step, "step": 2}, ["forged"])
    # Headers that are none, and outcomes that nobody asked for.
    for header in (1, "x", [], [1], {}, {"step": 1}, {"id": 7, "run": 1, "step": 1}, {"first": "x", "at": "y"}):
        post.task("vault.echo", f"{victim}/1.1", header, ["forged"])
        post.task("vault.waits", victim, header, ["forged"])
    outcome = {**step, "step": 1, "result": "forged", "outcome": "StepCompleted", "payload": '"forged"', "token": 1}
    post.task("vault.echo", f"{victim}/1.1", {**outcome, "sealed": "call"}, ['"forged"'])
    # The run's own message, with other arguments, other names, and ids that cannot be.
    post.task("vault.waits", victim, None, ["forged"])
    post.task("vault.breaks", victim, None, ["forged"])
    post.task("vault.everything", victim, {"first": True, "at": 0}, ["forged"])
    for workflow_id in (*HOSTILE_IDS, 7, None):
        post.task("vault.waits", workflow_id, {"first": True, "at": 1}, [])
        post.task("vault.waits", workflow_id, None, ["forged"])
        post.task("vault.echo", workflow_id, {**step, "id": workflow_id, "step": 1}, ["forged"])
    # Bodies that are no bodies.
    for body in (b"", b"null", b"[]", b"[[], {}]", b'{"a": 1}', random.randbytes(200), b"[" * 100_000):
        post.send(body, {"lang": "py", "task": "vault.waits", "id": victim, "durable": {"first": False, "at": 1}})
    payload = pickle.dumps([[Flag(pickled)], {}, {}])
    for kind in ("application/x-python-serialize", "application/x-yaml", "application/nobody", JSON):
        post.send(payload, {"lang": "py", "task": "vault.echo", "id": victim, "durable": {**step, "step": 2}}, kind)


def test_forged_messages_change_no_history_and_the_worker_goes_on(
    vault: Vault, worker: CeleryWorker, server: RedisServer, tmp_path: Any
) -> None:
    def wait_for_signal(name: str) -> None:
        wait_until(lambda: "signal go" in vault.client.describe(name).waiting, 30, lambda: worker.log)

    for name in ("victim", "other"):
        vault.start("waits", "word", workflow_id=name)
        wait_for_signal(name)
    before = {name: vault.client.history(name) for name in ("victim", "other")}
    pid = worker.pid

    forgeries(Post(server), "victim", str(tmp_path / "pickled"))
    with server.client() as client:
        wait_until(lambda: client.llen("celery") == 0, 60, lambda: f"an empty queue\n{worker.log[-3000:]}")
    # A run that comes after all of them has its end after all of them.
    vault.start("child", "last", workflow_id="last")
    vault.wait("last", "completed", log=lambda: worker.log[-6000:])

    assert {name: vault.client.history(name) for name in before} == before
    assert worker.is_running
    assert worker.pid == pid
    assert "Unrecoverable error" not in worker.log
    assert not (tmp_path / "pickled").exists()

    for name in before:
        vault.client.signal(name, "go", "on")
        vault.wait(name, "completed", log=lambda: worker.log[-6000:])
        assert vault.result(name) == ["word", "on", "word"]


def test_arguments_of_an_open_step_cannot_be_forged_under_encryption(server: RedisServer, tmp_path: Any) -> None:
    vault = Vault(server.url, tmp_path, new_key("k1"))
    vault.start("child", "mine", workflow_id="mine")
    vault.start("child", "theirs", workflow_id="theirs")
    header = {"id": "mine", "run": 1, "step": 1, "name": "vault.child", "queue": "celery"}
    post = Post(server)
    for sealed in ("call", "override", "x", None, 7):
        for args in (
            ["forged"],
            ['"forged"'],
            ["~aes~AAAA"],
            [],
            [1, 2],
            [vault.binding.codec.encode([["f"], {}], "x")],
        ):
            post.task("vault.echo", "mine/1.1", {**header, "sealed": sealed}, args)
    with vault.worker(concurrency=1) as worker:
        vault.wait("mine", "completed", log=lambda: worker.log[-6000:])
        vault.wait("theirs", "completed", log=lambda: worker.log[-6000:])
    assert (vault.result("mine"), vault.result("theirs")) == ("minec", "theirsc")


def test_arguments_and_task_of_an_open_step_cannot_be_forged_without_encryption(
    server: RedisServer, tmp_path: Any
) -> None:
    vault = Vault(server.url, tmp_path)
    vault.start("child", "mine", workflow_id="plain")
    header = {"id": "plain", "run": 1, "step": 1, "name": "vault.child", "queue": "celery"}
    post = Post(server)
    with server.client() as client:
        # The true messages are lost, so that the forged ones come first.
        client.delete("celery")
    post.task("vault.child", "plain", {"first": True, "at": 1}, [])
    for task, forged in (("vault.echo", header), ("vault.echo", {**header, "sealed": "call"}), ("vault.waits", header)):
        for args in (["forged"], ['[["forged"],{}]'], []):
            post.task(task, "plain/1.1", forged, args)
    with vault.worker(concurrency=1) as worker:
        vault.wait("plain", "completed", log=lambda: worker.log[-6000:])
        assert "other arguments than the log" in worker.log
    assert vault.result("plain") == "minec"


# -- ids ---------------------------------------------------------------------------------------------------------------


def may_be_an_id(text: str) -> bool:
    return 0 < len(text) <= 255 and all("!" <= sign <= "~" and sign not in "{}" for sign in text)


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Vault, RedisServer]]:
    """Give an app with one run in its store, and no worker."""
    directory = tmp_path_factory.mktemp("ids")
    with RedisServer(directory / "redis") as server:
        vault = Vault(server.url, directory)
        vault.start("waits", "x", workflow_id="there")
        yield vault, server


def keys_of(server: RedisServer) -> set[Any]:
    with server.client() as client:
        return set(client.scan_iter())


@pytest.mark.parametrize("text", [text for text in HOSTILE_IDS if not may_be_an_id(text)])
def test_hostile_ids_are_refused_at_start_signal_and_look(still: tuple[Vault, RedisServer], text: str) -> None:
    vault, server = still
    before = keys_of(server)
    app = vault.client_app("")

    def waits(ctx: WorkflowContext, word: str) -> None: ...

    task: Any = durable_task(app=app, name="vault.waits", shared=False)(waits)
    client = vault.client
    verbs: list[Callable[[], object]] = [
        lambda: client.signal(text, "go"),
        lambda: client.cancel(text),
        lambda: client.describe(text),
        lambda: client.history(text),
        lambda: client.wait(text, 0),
        lambda: task.AsyncResult(text),
        *([lambda: task.apply_async(("x",), task_id=text)] if text else []),
    ]
    for verb in verbs:
        with pytest.raises(InvalidIdError, match="cannot be a workflow id"):
            verb()
    assert keys_of(server) == before


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=300))
def test_any_text_is_refused_or_is_a_safe_id(still: tuple[Vault, RedisServer], text: str) -> None:
    vault, _ = still
    if may_be_an_id(text):
        assert check_id(text) == text
        return
    with pytest.raises(InvalidIdError):
        vault.client.signal(text, "go")


@settings(max_examples=100, deadline=None)
@given(text=st.text("!$%&'*?[]()^\"\\:;/.,|~<>=+-_#@`a1", min_size=1, max_size=60))
def test_ids_of_signs_with_a_meaning_elsewhere_name_one_run_only(still: tuple[Vault, RedisServer], text: str) -> None:
    vault, _ = still
    before = vault.client.history("there")
    workflow_id = f"i{text}"
    vault.start("waits", text, workflow_id=workflow_id)
    vault.client.signal(workflow_id, text, text, key=text)
    vault.client.signal(workflow_id, text, text, key=text)
    history = vault.client.history(workflow_id)
    assert [type(item.event).__name__ for item in history[:2]] == ["RunStarted", "SignalReceived"]
    assert vault.client.describe(workflow_id).workflow_id == workflow_id
    assert vault.client.history("there") == before


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31m", "x" * 256, "\ud800", "\u202e", 7, None])
def test_names_of_signals_that_would_deceive_a_reader_are_refused(still: tuple[Vault, RedisServer], name: Any) -> None:
    vault, _ = still
    before = vault.client.history("there")
    with pytest.raises(InvalidRequestError, match="name of a signal"):
        vault.client.signal("there", name)
    if name is not None:
        with pytest.raises(InvalidRequestError, match="key of a signal"):
            vault.client.signal("there", "go", key=name)
    assert vault.client.history("there") == before
    assert check_name("zusätzlich ☃", "x") == "zusätzlich ☃"
