"""What is too much is refused before anything is written, or stops one run clearly."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from durable_celery.engine import HistoryLimits
from durable_celery.errors import InboxFullError
from durable_celery.events import SignalReceived
from durable_celery.store.protocol import NewRun, RunStatus
from durable_celery.testing.world import World
from durable_celery.workflow import WorkflowContext


def ticking(world: World, limits: HistoryLimits) -> None:
    """Start a run that writes for ever, and cleans up when it is cancelled."""
    for process in world.processes:
        process.engine.limits = limits

    def main(ctx: WorkflowContext) -> None:
        try:
            while True:
                ctx.sleep(1)
        finally:
            ctx.run(len, "clean-up")

    world.start(world.flow(main))


@pytest.mark.parametrize("limits", [HistoryLimits(events=50), HistoryLimits(size=3500)], ids=["events", "bytes"])
def test_history_at_its_limit_blocks_the_run_which_goes_on_under_a_higher_one(limits: HistoryLimits) -> None:
    world = World(processes=1)
    ticking(world, limits)
    world.run(until=lambda: world.record().status is RunStatus.BLOCKED)
    assert 40 <= world.record().length <= 60
    assert "durable_history_limit" in world.record().reason

    world.processes[0].engine.limits = HistoryLimits(events=100)
    world.run(until=lambda: world.record().status is RunStatus.BLOCKED and world.record().length > 90)
    world.cancel()
    world.run()
    assert world.record().status is RunStatus.CANCELLED, "a run at its limit can be cancelled, and cleans up"
    assert "LocalStepCompleted" in world.kinds()[-4:]


def test_long_history_is_warned_of_once_for_each_doubling(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durable_celery.engine.limits.WARN_EVENTS", 20)
    world = World(processes=1)
    ticking(world, HistoryLimits())
    with caplog.at_level(logging.WARNING, "durable_celery.engine.limits"):
        world.run(until=lambda: world.record().length >= 100)
    assert len([line for line in caplog.messages if "the history of workflow w has" in line]) == 3


def test_full_inbox_refuses_before_anything_is_written_and_takes_again_after_a_turn(any_store: Any) -> None:
    store = any_store
    store.start(NewRun(workflow_id="w", name="flow", payload="[[],{}]", digest="d"))
    for number in range(4):
        store.append("w", SignalReceived(name="s"), key=f"signal:{number}", room=5)
    before = store.history("w")
    with pytest.raises(InboxFullError, match="5 events that no turn has read") as caught:
        store.append("w", SignalReceived(name="s"), key="signal:4", room=5)
    assert (caught.value.workflow_id, caught.value.unread) == ("w", 5)
    assert store.history("w") == before
    assert not store.append("w", SignalReceived(name="s"), key="signal:3", room=5).added, "a repetition is no more"

    turn = store.take("w", "p#1", known=0)
    store.commit(turn.lease, (), read=5, waiting="", hold=False)
    assert store.append("w", SignalReceived(name="s"), key="signal:4", room=5).added


def test_client_s_signals_have_the_room_of_the_setting(vault_without_worker: Any) -> None:
    vault = vault_without_worker
    vault.start("waits", "x", workflow_id="full")
    for _ in range(2):
        vault.client.signal("full", "go", 1)
    with pytest.raises(InboxFullError, match="durable_inbox_limit"):
        vault.client.signal("full", "go", 1)
    vault.client.cancel("full")
    assert [type(item.event).__name__ for item in vault.client.history("full")][-1] == "CancelRequested"
