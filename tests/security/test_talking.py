"""Queries, updates and progress under encryption: nothing is in plain, what was moved does not open, keys rotate."""

# Celery carries no types: to pyright a task is the function that it was made of.
# pyright: reportArgumentType=false, reportFunctionMemberAccess=false

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from durable_celery.codec import AesGcm, Codec
from durable_celery.errors import CodecError
from durable_celery.events import LocalStepCompleted, LocalStepFailed, SignalReceived, encode
from durable_celery.store.protocol import RunStatus
from durable_celery.testing import Environment
from durable_celery.testing.world import World
from durable_celery.workflow import UPDATE, Handlers, Note, WorkflowContext, read_note
from tests.testing import talking

OLD, NEW = os.urandom(32), os.urandom(32)
WORD = "vanilla-4711"


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Iterator[Environment]:
    monkeypatch.setitem(talking.app.conf, "durable_codec", AesGcm({"k1": OLD}))
    with Environment(talking.app) as environment:
        yield environment


def with_keys(env: Environment, **keys: bytes) -> Any:
    """Return a client with other keys."""
    codec = Codec(chain=[AesGcm(dict(keys))])
    return replace(env.system.binding.client, codec=codec)


def test_a_conversation_works_and_leaves_nothing_in_plain(env: Environment) -> None:
    handle = env.start(talking.basket, WORD)
    assert handle.update(talking.put, WORD, key="k") == 1
    assert handle.update(talking.put, WORD, key="k") == 1
    with pytest.raises(ValueError, match=WORD):
        handle.update(talking.put, WORD, count=0)

    assert handle.query(talking.lines) == [talking.Line(WORD, 1)]
    assert [value["item"] for _, value in handle.stream("lines", follow=False)] == [WORD]
    assert handle.published("phase") == "open"
    lines = [encode(item.event) for item in handle.history()]
    assert not [line for line in lines if WORD in line or "open" in line]


def test_a_caller_without_the_keys_is_told_so(env: Environment) -> None:
    handle = env.start(talking.basket, WORD)
    handle.update(talking.put, "apple", key="k")
    handle.client = with_keys(env, other=NEW)

    for call in (
        lambda: handle.query(talking.lines),
        lambda: handle.update(talking.put, "apple", key="k"),
        handle.published,
        lambda: list(handle.stream("lines", follow=False)),
    ):
        with pytest.raises(CodecError):
            call()


def test_keys_rotate_while_a_run_is_talked_to(env: Environment) -> None:
    handle = env.start(talking.basket, "ann")
    handle.update(talking.put, "apple", key="k")
    handle.client = with_keys(env, k2=NEW, k1=OLD)

    assert handle.query(talking.lines) == [talking.Line("apple", 1)]
    assert handle.update(talking.put, "apple", key="k") == 1
    assert handle.published("phase") == "open"


def test_a_note_that_was_moved_does_not_open(env: Environment) -> None:
    handle = env.start(talking.basket, "ann", 1)
    handle.update(talking.put, "apple")
    log = env.system.store.run_table[handle.id].log
    published = [
        index
        for index, item in enumerate(log)
        if isinstance(item.event, LocalStepCompleted) and read_note(item.event) == (Note.PUBLISHED, "phase")
    ]
    first, last = published
    event = replace(log[last].event, payload=log[first].event.payload)
    log[last] = replace(log[last], event=event)

    with pytest.raises(CodecError):
        handle.published("phase")


def test_a_request_that_was_given_another_name_blocks_the_run_and_does_nothing() -> None:
    codec = Codec(chain=[AesGcm({"k1": OLD})])
    world, done = World(codec=codec, processes=1), []
    handlers = Handlers()
    handlers.update(lambda _, x: done.append(x), name="pay")
    handlers.update(lambda _, x: done.append(x), name="refund")

    def main(ctx: WorkflowContext) -> None:
        ctx.wait_signal("never")

    world.start(world.flow(main, handlers=handlers))
    world.drain()
    world.signal(f"{UPDATE}pay", ["k", [1], {}])
    run = world.store.run_table["w"]
    assert isinstance(run.log[-1].event, SignalReceived)
    run.log[-1] = replace(run.log[-1], event=replace(run.log[-1].event, name=f"{UPDATE}refund"))
    world.drain()

    assert world.record().status is RunStatus.BLOCKED
    assert done == []


def test_the_outcome_of_an_update_is_bound_to_its_place(env: Environment) -> None:
    handle = env.start(talking.basket, "ann")
    handle.update(talking.put, "apple", key="one")
    with pytest.raises(ValueError, match="asked for 0"):
        handle.update(talking.put, "pear", 0, key="two")
    log = env.system.store.run_table[handle.id].log
    outcome = next(item.event for item in log if read_note(item.event) == (Note.UPDATED, "one"))
    index = next(i for i, item in enumerate(log) if isinstance(item.event, LocalStepFailed))
    log[index] = replace(log[index], event=replace(log[index].event, payload=outcome.payload))

    with pytest.raises(CodecError):
        handle.update(talking.put, "pear", 0, key="two")
