"""A broker that is away: what it did not take is published when it is back, and not only when the agenda repeats it."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from durable_celery.settings import Settings
from durable_celery.store.protocol import RunStatus
from durable_celery.testing.surroundings import Message, Publisher
from durable_celery.testing.world import Process, World
from durable_celery.worker import Heart
from durable_celery.workflow import WorkflowContext
from tests.engine.invariants import check_at_rest


class Moody(Publisher):
    """A broker that takes ``room`` messages, and is away then; None is always there."""

    room: int | None = None

    def publish(self, messages: Sequence[Message]) -> int:
        taken = super().publish(messages[: self.room])
        self.room = None if self.room is None else self.room - taken
        return taken


@pytest.fixture
def world() -> World:
    """Return a world with three runs, whose first messages are lost and due again, and a broker that is away."""
    world = World(processes=1)
    plus = world.task(lambda x: x + 1, "plus")

    def main(ctx: WorkflowContext) -> Any:
        return ctx.step(plus, 1)

    flow = world.flow(main)
    for name in ("a", "b", "c"):
        world.start(flow, id=name)
    world.broker.clear()
    world.clock.advance(10.1)
    return world


def away(process: Process, room: int = 0) -> Moody:
    broker = Moody(process.world.broker)
    broker.room = room
    process.engine.dispatcher = broker
    return broker


@pytest.mark.parametrize("room", [0, 1, 2])
def test_what_the_broker_did_not_take_is_published_as_soon_as_it_is_back(world: World, room: int) -> None:
    process = world.processes[0]
    broker = away(process, room)

    process.beat()
    assert len(world.broker) == room

    broker.room = None
    process.beat()
    assert sorted(message.workflow_id for message in world.broker if not hasattr(message, "key")) == ["a", "b", "c"]
    world.drain()
    assert {world.record(name).status for name in "abc"} == {RunStatus.COMPLETED}
    check_at_rest(world)


def test_a_message_that_falls_due_again_meanwhile_is_published_once(world: World) -> None:
    process = world.processes[0]
    broker = away(process)

    for _ in range(3):
        process.beat()
        world.clock.advance(60)

    broker.room = None
    process.beat()
    assert len(world.broker) == 3
    process.beat()
    assert len(world.broker) == 3


def test_what_a_process_kept_and_took_along_is_repeated_by_the_agenda(world: World) -> None:
    away(world.processes[0])
    world.processes[0].beat()

    world.kill(0)
    world.run()

    assert {world.record(name).status for name in "abc"} == {RunStatus.COMPLETED}
    check_at_rest(world)


def test_the_heart_waits_a_second_for_a_broker_that_is_away(world: World) -> None:
    process = world.processes[0]
    broker = away(process)
    binding = SimpleNamespace(engine=process.engine, store=process.engine.store, settings=Settings())
    heart = Heart(cast("Any", binding))

    assert heart.sweep() == 1.0
    broker.room = None
    assert heart.sweep() == Settings().sweep_interval
