"""Runs whose payloads stand elsewhere: every kind of payload, in both forms, warm and cold, and blobs that are gone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from durable_celery.codec import AesGcm, Codec, Deflate, FileBlobs, Offload, Place, chain_of
from durable_celery.errors import ConfigurationError
from durable_celery.events import LocalStepCompleted, RunCompleted, RunStarted, SignalReceived, StepCompleted
from durable_celery.store.protocol import RunStatus
from durable_celery.testing.world import World
from durable_celery.workflow import AsyncWorkflowContext, WorkflowContext

PLACE = Place("w", "call", 1)
LONG = "long " * 100
KEY = os.urandom(32)


def echo(word: str) -> str:
    return f"{word}!"


def fail(word: str) -> None:
    raise ValueError(word)


def child(ctx: WorkflowContext, word: str) -> str:
    return ctx.run(echo, word)


def shop(codec: Codec, form: str, **options: Any) -> tuple[World, Any]:
    """Return a world with a workflow that has a long payload in each place."""
    world = World(codec=codec, processes=2, **options)
    task, failing, kid = world.task(echo), world.task(fail), world.flow(child, "child")

    def blocking(ctx: WorkflowContext, word: str) -> list[str]:
        seen = [ctx.step(task, word), ctx.run(echo, word), ctx.wait_signal("go"), ctx.step(kid, word)]
        try:
            ctx.step(failing, word)
        except ValueError as error:
            seen.append(str(error))
        return seen

    async def awaited(ctx: AsyncWorkflowContext, word: str) -> list[str]:
        seen = [await ctx.step(task, word), await ctx.run(echo, word), await ctx.wait_signal("go")]
        seen.append(await ctx.step(kid, word))
        try:
            await ctx.step(failing, word)
        except ValueError as error:
            seen.append(str(error))
        return seen

    function: Any = {"def": blocking, "async def": awaited}[form]
    return world, world.flow(function, "main")


RESULT = [f"{LONG}!", f"{LONG}!", LONG, f"{LONG}!", LONG]


@pytest.mark.parametrize("form", ["def", "async def"])
@pytest.mark.parametrize("cache_size", [0, 100], ids=["cold", "warm"])
@pytest.mark.parametrize("hides", [False, True], ids=["plain", "encrypted"])
def test_every_kind_of_payload_may_stand_elsewhere(tmp_path: Path, form: str, cache_size: int, *, hides: bool) -> None:
    before: list[Any] = [AesGcm({"k": KEY})] if hides else [Deflate(above=10_000)]
    codec = Codec(chain=[*before, Offload(FileBlobs(tmp_path), above=200)])
    world, main = shop(codec, form, cache_size=cache_size)

    world.start(main, LONG)
    world.signal("go", LONG)
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, RESULT)
    for history in (world.history(), world.history("w/1.3")):
        large = {type(item.event) for item in history if codec.is_reference(item.event.payload)}
        assert large >= {RunStarted, LocalStepCompleted, RunCompleted}
        assert all(len(item.event.payload or "") < 600 for item in history)
    assert {StepCompleted, SignalReceived} <= {
        type(item.event) for item in world.history() if codec.is_reference(item.event.payload)
    }
    stored = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"long long" in data for data in stored) is not hides


@pytest.mark.parametrize("form", ["def", "async def"])
def test_run_whose_blobs_are_gone_is_blocked_with_the_reason_and_goes_on_when_they_are_there(
    tmp_path: Path, form: str
) -> None:
    world, main = shop(Codec(chain=[Offload(FileBlobs(tmp_path / "blobs"), above=200)]), form, cache_size=0)
    world.start(main, LONG)
    world.run()
    before = world.history()
    shutil.move(tmp_path / "blobs", tmp_path / "away")
    world.signal("go", "short")
    world.run(until=lambda: world.record().status is RunStatus.BLOCKED)
    assert "CodecError: payload (start of w): codec ref cannot open it: blob " in world.record().reason
    assert "is not in FileBlobs(" in world.record().reason

    shutil.move(tmp_path / "away", tmp_path / "blobs")
    world.run()

    assert world.outcome() == (RunStatus.COMPLETED, [*RESULT[:2], "short", *RESULT[3:]])
    assert world.history()[: len(before)] == before


def test_blobs_that_cannot_be_stored_leave_no_reference_and_park_the_run(tmp_path: Path) -> None:
    class Full(FileBlobs):
        is_full = True

        def put(self, key: str, data: bytes) -> None:
            if self.is_full:
                raise OSError(28, "No space left on device")
            super().put(key, data)

    codec = Codec(chain=[Offload(Full(tmp_path), above=200)])
    world = World(codec=codec, processes=1)
    task = world.task(echo)
    world.start(world.flow(lambda ctx: ctx.step(task, LONG), "main"))

    world.run(until=lambda: world.record().status is RunStatus.BLOCKED)
    assert "No space left on device" in world.record().reason
    assert [type(item.event) for item in world.history()] == [RunStarted]

    Full.is_full = False
    world.run()
    assert world.outcome() == (RunStatus.COMPLETED, f"{LONG}!")


def test_offload_comes_last_so_that_what_is_stored_outside_is_encrypted(tmp_path: Path) -> None:
    offload = Offload(FileBlobs(tmp_path))
    for wrong in ([offload, AesGcm({"k": KEY})], [offload, Deflate()]):
        with pytest.raises(ConfigurationError, match="Offload is the last of a chain"):
            chain_of(wrong)
    assert chain_of([Deflate(), AesGcm({"k": KEY}), offload])[-1] is offload


def test_limit_counts_what_is_stored_outside_as_well(tmp_path: Path) -> None:
    codec = Codec(1000, chain=[Offload(FileBlobs(tmp_path), above=10)])
    with pytest.raises(Exception, match=r"1002 characters, the limit is 1000 .*durable_celery\.codec\.Offload"):
        codec.encode("x" * 1000, "v", PLACE)
