"""Runs under encryption: tampering, missing keys and rotation block the run they concern, and no other."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from durable_celery.codec import AesGcm, Codec, Deflate, Place
from durable_celery.errors import WorkflowConflictError
from durable_celery.events import (
    LocalStepCompleted,
    Recorded,
    RunStarted,
    SignalReceived,
    StepCompleted,
    StepScheduled,
)
from durable_celery.policy import RetryPolicy
from durable_celery.store.protocol import RunStatus
from durable_celery.testing.world import World
from durable_celery.workflow import AsyncWorkflowContext, WorkflowContext

OLD, NEW = os.urandom(32), os.urandom(32)
BEFORE = Codec(chain=[AesGcm({"k1": OLD})])
AFTER = Codec(chain=[AesGcm({"k2": NEW, "k1": OLD})])


def double(number: int) -> int:
    return number * 2


def shop(codec: Codec, **options: Any) -> tuple[World, Any]:
    """Return a world with a workflow that has a payload in each place, and waits twice on its way."""
    world = World(codec=codec, processes=1, **options)
    task, echo = world.task(double), world.flow(child, "child")

    async def main(ctx: AsyncWorkflowContext, number: int) -> list[Any]:
        seen = [await ctx.step(task, number), await ctx.run(double, number), await ctx.wait_signal("go")]
        seen += [await ctx.step(echo, number), await ctx.wait_signal("go"), await ctx.step(task, number + 1)]
        return seen

    return world, world.flow(main)


def child(ctx: WorkflowContext, number: int) -> int:
    return number + ctx.run(double, number)


RESULT = [14, 14, "a", 21, "b", 16]


def tamper(world: World, seq: int, **changes: Any) -> None:
    """Write another event in the place of one, as somebody with access to the store can."""
    run = world.store.run_table["w"]
    index = next(i for i, item in enumerate(run.log) if item.seq == seq)
    run.log[index] = replace(run.log[index], event=replace(run.log[index].event, **changes))


def of_kind(world: World, kind: type, id: str = "w") -> Recorded:  # noqa: A002
    return next(item for item in world.history(id) if isinstance(item.event, kind))


def deploy(world: World, codec: Codec) -> None:
    """Start all processes anew, with another codec."""
    world.codec = codec
    for slot in range(len(world.processes)):
        world.kill(slot)
        world.processes[slot] = world._born(slot)


@pytest.mark.parametrize("cache_size", [0, 100])
@pytest.mark.parametrize("chain", [[AesGcm({"k": OLD})], [Deflate(above=0)], [Deflate(above=0), AesGcm({"k": OLD})]])
def test_run_with_all_kinds_of_payloads_completes(chain: list[Any], cache_size: int) -> None:
    codec = Codec(chain=chain)
    world, main = shop(codec, cache_size=cache_size)
    world.start(main, 7)
    for word in "ab":
        world.signal("go", word)
    world.run()
    assert world.outcome() == (RunStatus.COMPLETED, RESULT)
    assert not codec.hides or all((item.event.payload or "~").startswith("~") for item in world.history())


def test_run_goes_on_under_a_new_key_and_with_old_events_in_its_history() -> None:
    world, main = shop(BEFORE)
    world.start(main, 7)
    world.signal("go", "a")
    world.run()
    deploy(world, AFTER)
    world.signal("go", "b")
    world.run()
    assert world.outcome() == (RunStatus.COMPLETED, RESULT)
    digests = [item.event.digest[:3] for item in world.history() if isinstance(item.event, StepScheduled)]
    assert digests == ["k1:", "k1:", "k2:"]


def test_start_is_repeated_over_a_rotation_and_refused_with_other_arguments() -> None:
    world, main = shop(BEFORE)
    assert world.start(main, 7).created
    deploy(world, AFTER)
    assert not world.start(main, 7).created
    with pytest.raises(WorkflowConflictError):
        world.start(main, 8)


def test_child_that_was_told_twice_over_a_rotation_is_one_child() -> None:
    world, main = shop(BEFORE)
    world.start(main, 7)
    world.signal("go", "a")
    told: Any = world.processes[0].engine.family
    # The process dies after the child was started, and before that is noted.
    told.store = _Forgetful(told.store)
    world.run(until=lambda: world.store.get("w/1.3") is not None)
    deploy(world, AFTER)
    world.signal("go", "b")
    world.run()
    assert world.outcome() == (RunStatus.COMPLETED, RESULT)


class _Forgetful:
    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return (lambda *_, **__: None) if name == "settle" else getattr(self._store, name)


@pytest.mark.parametrize("codec", [Codec(), Codec(chain=[AesGcm({"k9": NEW})])], ids=["no codec", "other key"])
def test_missing_key_blocks_the_run_with_the_reason_and_it_goes_on_when_the_key_is_there(codec: Codec) -> None:
    world, main = shop(BEFORE)
    world.start(main, 7)
    world.run()
    deploy(world, codec)
    world.processes[0].engine.publish(
        [world.store.append("w", SignalReceived(name="x", payload=None), key="k").message]
    )
    world.run(until=lambda: world.record().status is RunStatus.BLOCKED)
    assert "CodecError" in world.record().reason
    assert "codec 'aes' is missing" in world.record().reason or "no key 'k1' here" in world.record().reason
    before = world.history()

    deploy(world, Codec(chain=[AesGcm({"k1": OLD})], accepts_plain=True))
    for word in "ab":
        world.signal("go", word)
    world.run()
    assert world.outcome() == (RunStatus.COMPLETED, RESULT)
    assert world.history()[: len(before)] == before


@pytest.mark.parametrize("kind", [RunStarted, StepCompleted, LocalStepCompleted, SignalReceived])
def test_event_of_another_run_is_refused_the_run_is_blocked_and_others_go_on(kind: type) -> None:
    world, main = shop(BEFORE)
    for id in ("w", "v"):  # noqa: A001 - Celery's word
        world.start(main, 7, id=id)
        world.signal("go", "a", id=id)
    world.run()
    ours, theirs = of_kind(world, kind), of_kind(world, kind, "v")
    tamper(world, ours.seq, payload=theirs.event.payload)
    deploy(world, BEFORE)
    for id in ("w", "v"):  # noqa: A001
        world.signal("go", "b", id=id)
    world.run(until=lambda: world.record("v").status.is_closed and world.record().status is RunStatus.BLOCKED)
    assert world.outcome("v") == (RunStatus.COMPLETED, RESULT)
    assert "its tag is wrong: it was changed, or belongs to another place" in world.record().reason

    tamper(world, ours.seq, payload=ours.event.payload)
    world.run()
    assert world.outcome() == (RunStatus.COMPLETED, RESULT), "blocked is no failure: the mended run goes on"


@pytest.mark.parametrize("payload", [None, "14", '"14"'])
def test_result_that_was_moved_within_its_run_or_put_there_in_plain_is_refused(payload: str | None) -> None:
    world, main = shop(BEFORE)
    world.start(main, 7)
    world.run()
    done, local = of_kind(world, StepCompleted), of_kind(world, LocalStepCompleted)
    tamper(world, done.seq, payload=local.event.payload if payload is None else payload)
    deploy(world, BEFORE)
    world.signal("go", "a")
    world.run(until=lambda: world.record().status is RunStatus.BLOCKED)
    assert "CodecError" in world.record().reason


class Disk:
    """A codec that reads its key from a file each time, and can be away."""

    name, hides = "disk", True

    def __init__(self, path: Path) -> None:
        self.path = path

    def encode(self, data: bytes, _place: Place) -> bytes:
        key = self.path.read_bytes()[0]
        return bytes(byte ^ key for byte in data)

    decode = encode


def test_codec_that_does_io_inside_a_turn_is_no_side_effect_and_its_absence_blocks_the_run(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"k")
    world, main = shop(Codec(chain=[Disk(tmp_path / "key")]), cache_size=0)
    world.start(main, 7)
    world.run()
    (tmp_path / "key").rename(tmp_path / "away")
    world.codec = Codec(chain=[Disk(tmp_path / "away")])
    world.signal("go", "a")
    world.run(until=lambda: world.record().status is RunStatus.BLOCKED)
    assert "codec disk cannot open it" in world.record().reason
    (tmp_path / "away").rename(tmp_path / "key")
    world.codec = Codec(chain=[Disk(tmp_path / "key")])
    world.signal("go", "b")
    world.run()
    assert world.outcome() == (RunStatus.COMPLETED, RESULT)


def test_codec_that_fails_inside_a_verb_does_not_raise_into_workflow_code() -> None:
    class Fickle:
        name, hides, works = "fickle", False, True

        def encode(self, data: bytes, place: Place) -> bytes:
            if place.kind == "call" and not Fickle.works:
                raise ConnectionError("the key service is away")
            return data

        def decode(self, data: bytes, _place: Place) -> bytes:
            return data

    world = World(codec=Codec(chain=[Fickle()]), processes=1)
    task = world.task(double)
    swallowed: list[str] = []

    def main(ctx: WorkflowContext) -> int:
        try:
            result: int = ctx.step(task, 2)
        except Exception as error:  # noqa: BLE001
            swallowed.append(str(error))
            return 0
        return result

    Fickle.works = False
    world.start(world.flow(main))
    world.run(until=lambda: world.record().status is RunStatus.BLOCKED)
    Fickle.works = True
    world.run()
    assert world.outcome() == (RunStatus.COMPLETED, 4)
    assert swallowed == []


def test_outcome_that_cannot_be_sealed_is_worked_out_again() -> None:
    class Fickle:
        name, hides, failures = "fickle", True, 2

        def encode(self, data: bytes, place: Place) -> bytes:
            if place.kind == "outcome" and Fickle.failures:
                Fickle.failures -= 1
                raise ConnectionError("the key service is away")
            return data

        def decode(self, data: bytes, _place: Place) -> bytes:
            return data

    world = World(codec=Codec(chain=[Fickle()]), processes=1)
    task = world.task(double)
    world.start(world.flow(lambda ctx: ctx.step(task, 2), "main"))
    with pytest.raises(Exception, match="key service"):
        world.run()
    with pytest.raises(Exception, match="key service"):
        world.run()
    world.run()
    assert world.outcome() == (RunStatus.COMPLETED, 4)
    assert world.executions["w/1.1"] == 3


def test_errors_of_attempts_and_reasons_of_cancels_are_stored_sealed() -> None:
    world = World(codec=BEFORE, processes=1)

    def moody(word: str) -> None:
        raise ConnectionError(f"not for {word}")

    task = world.task(moody)
    policy = RetryPolicy(initial_interval=3600, maximum_attempts=2)
    world.start(world.flow(lambda ctx, word: ctx.options(retry=policy).step(task, word), "main"), "secret")
    world.run(until=lambda: bool(world.record().steps and world.record().steps[0].error))
    error = world.record().steps[0].error or ""
    assert error.startswith("~aes~")
    assert BEFORE.legible(error, Place("w", "error", 1)) == "ConnectionError('not for secret')"


def test_story_of_a_mismatch_shows_no_arguments() -> None:
    world, _ = shop(BEFORE)
    task = world.task(double)
    world.start(world.flow(lambda ctx, n: [ctx.step(task, n), ctx.wait_signal("x")], "changing"), 123456)
    world.run()
    world.flow(lambda ctx, n: [ctx.step(task, n + 1), ctx.wait_signal("x")], "changing")
    deploy(world, BEFORE)
    world.signal("x")
    world.run(until=lambda: world.record().status is RunStatus.BLOCKED)
    assert "digest of the arguments" in world.record().reason
    assert "123456" not in world.record().reason
    assert "123457" not in world.record().reason
