"""Long steps under encryption: progress is hidden and bound to its step; losses need no key to be told."""

from __future__ import annotations

import os
from typing import Any

import pytest

from durable_celery.codec import AesGcm, Codec, rebuild
from durable_celery.current import Pulse
from durable_celery.errors import CodecError, StepLostError, StepTimeoutError
from durable_celery.events import StepFailed
from durable_celery.store.protocol import Claim, StepKey
from durable_celery.testing.world import World
from durable_celery.workflow import WorkflowContext

CODEC = Codec(chain=[AesGcm({"k1": os.urandom(32)})])
KEY = StepKey(workflow_id="w", run=1, number=1)
SECRET = "the account is 4711"  # noqa: S105 - none


class NoKey:
    """A codec that hides payloads, and cannot for now."""

    name, hides = "vault", True

    def encode(self, _data: bytes, _place: object, /) -> bytes:
        raise ConnectionError("the key service is away")

    def decode(self, data: bytes, _place: object, /) -> bytes:
        return data


def claimed(codec: Codec, **options: Any) -> tuple[World, Claim]:
    """Return a world whose first process has claimed a step."""
    world = World(codec=codec, processes=1)
    task = world.task(lambda: None, "task")

    def main(ctx: WorkflowContext) -> str:
        try:
            ctx.options(**options).step(task)
        except (StepLostError, StepTimeoutError) as error:
            return f"{type(error).__name__}: {error}"
        return "done"

    world.start(world.flow(main))
    world.deliver()
    claim = world.processes[0].engine.begin_step(KEY)
    assert isinstance(claim, Claim)
    return world, claim


def saved(world: World) -> str:
    return world.record().steps[0].progress or ""


def test_progress_is_hidden_and_comes_back() -> None:
    world, claim = claimed(CODEC)
    engine = world.processes[0].engine

    Pulse(engine, claim).beat(SECRET)

    assert saved(world).startswith("~")
    assert "4711" not in saved(world)
    engine.postpone_step(claim, delay=0.0, error="x")
    again = engine.begin_step(KEY)
    assert isinstance(again, Claim)
    assert Pulse(engine, again).progress == SECRET


def test_progress_of_another_step_does_not_open() -> None:
    world, claim = claimed(CODEC)
    engine = world.processes[0].engine
    other = StepKey(workflow_id="w", run=1, number=2).place("progress")
    world.store.claim(KEY, claim.owner, progress=CODEC.seal('"theirs"', other))
    engine.postpone_step(claim, delay=0.0, error="x")
    again = engine.begin_step(KEY)
    assert isinstance(again, Claim)

    with pytest.raises(CodecError):
        _ = Pulse(engine, again).progress


def test_a_codec_that_fails_costs_a_heartbeat_and_not_the_step() -> None:
    world, claim = claimed(CODEC)
    engine = world.processes[0].engine
    engine.codec = Codec(chain=[NoKey()])
    pulse = Pulse(engine, claim, clock=iter([0.0, 9.0, 9.0]).__next__)
    pulse.beat(SECRET)
    assert saved(world) == ""

    engine.codec = CODEC
    pulse.beat()

    assert CODEC.open(saved(world), KEY.place("progress")) == f'"{SECRET}"'


def test_a_step_that_may_not_be_repeated_is_lost_when_its_outcome_cannot_be_sealed() -> None:
    world, claim = claimed(CODEC, at_most_once=True, retry=5)
    engine = world.processes[0].engine
    engine.codec = Codec(chain=[NoKey()])

    with pytest.raises(CodecError):
        engine.complete_step(claim, SECRET)

    failed = world.history()[-1].event
    assert isinstance(failed, StepFailed)
    assert SECRET not in (failed.payload or "")
    error = rebuild(failed.payload, CODEC)
    assert isinstance(error, StepLostError)
    assert "has an outcome that no codec here can seal and is not repeated" in str(error)
    engine.codec = CODEC
    world.run()
    assert world.outcome()[1].startswith("StepLostError: step w/1.1 has an outcome")


@pytest.mark.parametrize("limit", ["timeout", "start_timeout", "attempt_timeout"])
def test_a_timeout_that_the_store_records_is_readable(limit: str) -> None:
    world = World(codec=CODEC, processes=1)
    task = world.task(lambda: None, "task")
    options: dict[str, Any] = {limit: 5}

    def main(ctx: WorkflowContext) -> str:
        try:
            ctx.options(**options).step(task)
        except StepTimeoutError as error:
            return str(error)
        return "done"

    world.start(world.flow(main))
    world.deliver()
    if limit == "attempt_timeout":
        world.processes[0].engine.begin_step(KEY)
    world.broker.clear()
    world.clock.advance(5)
    world.run()

    assert f"its {limit} of 5 s" in world.outcome()[1]
