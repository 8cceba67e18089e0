"""Workflows whose histories are kept for ever under ``tests/histories/<version>/``, and what happened to them.

Never change a workflow here: add a new one. ``python -m tests.workflow.golden <version>`` writes the histories that
are not there yet, and never touches one that is.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from durable_celery.errors import WaitTimeoutError, WorkflowCancelled
from durable_celery.events import history_to_json
from durable_celery.workflow import AsyncWorkflowContext, WorkflowContext
from tests.workflow.log import EPOCH_MS, Run, charge, child, handlers_of, notify, refund

HISTORIES = Path(__file__).parent.parent / "histories"


def price(items: list[int]) -> int:
    return sum(items)


def decline(order: str) -> None:
    raise ValueError(f"{order} is declined")


def checkout(ctx: WorkflowContext, order: str, items: list[int]) -> list[Any]:
    amount = ctx.run(price, items)
    payment = ctx.options(queue="payments", retry=3, timeout=30, priority=5, name="pay").step(charge, order, amount)
    ctx.sleep(timedelta(days=1))
    try:
        approval = ctx.wait_signal("approve", timeout=3600)
    except WaitTimeoutError:
        approval = ctx.wait_signal("approve")
    first = ctx.race(child=ctx.start(child, order), late=ctx.timer(60), stop=ctx.signal("stop"))
    both = ctx.gather(ctx.spawn(remind, order), ctx.start(notify, order), return_exceptions=True)
    return [payment, approval, first, [str(each) for each in both], ctx.random.randint(0, 999), str(ctx.uuid4())]


def remind(ctx: WorkflowContext, order: str) -> str:
    try:
        ctx.options(retry=2).run(decline, order)
    except ValueError as error:
        return str(error)
    return ""


async def checkout_async(ctx: AsyncWorkflowContext, order: str, items: list[int]) -> list[Any]:
    amount = await ctx.run(price, items)
    async with asyncio.timeout(3600):
        payment = await ctx.options(queue="payments").step(charge, order, amount)
    await asyncio.sleep(86400)
    failed: list[str] = []
    try:
        async with asyncio.TaskGroup() as group:
            for index in range(5):
                group.create_task(ctx.step(notify, order, index))
    except* ValueError as errors:
        failed = [str(error) for error in errors.exceptions]
    handles = {ctx.start(child, index) for index in range(4)}
    done, pending = await asyncio.wait(handles, return_when=asyncio.FIRST_COMPLETED)
    for handle in pending:
        handle.cancel()
    rest = [await each for each in asyncio.as_completed([ctx.step(notify, index) for index in range(3)])]
    return [payment, failed, [await handle for handle in done], rest, str(ctx.uuid4())]


def cancelled(ctx: WorkflowContext) -> None:
    ctx.start(notify)
    try:
        ctx.gather(ctx.start(charge), ctx.spawn(lambda ctx: ctx.sleep(60)))
    except WorkflowCancelled:
        ctx.step(refund)
        raise


def patched(ctx: WorkflowContext) -> str:
    ctx.step(charge)
    side = "new" if ctx.patched("which-side") else "old"
    ctx.step(notify, side)
    return side


def failing(ctx: WorkflowContext) -> None:
    ctx.step(charge)


def delayed(ctx: WorkflowContext) -> str:
    return ctx.now().isoformat()


def conversation(ctx: WorkflowContext, size: int) -> list[str]:
    ctx.state.lines = []
    ctx.publish("phase", "open")
    ctx.wait_until(lambda: len(ctx.state.lines) >= size and not ctx.open_updates)
    return sorted(ctx.state.lines)


@handlers_of(conversation).update
def put(ctx: WorkflowContext, item: str, *, pause: int = 0) -> int:
    ctx.sleep(pause)
    ctx.state.lines.append(ctx.step(charge, item))
    ctx.stream("lines").append({"item": item})
    return len(ctx.state.lines)


@put.validator
def is_wanted(_: Any, item: str, **__: Any) -> None:
    if item == "nothing":
        raise ValueError("nothing is not wanted")


def play_checkout(run: Run) -> None:
    run.start("o-1", [700, 500])
    run.complete(2, "p-1", attempt=2)
    run.signal("stop", "later")
    run.fire(3)
    run.fire(4)
    run.signal("approve", {"by": "eva"})
    run.fail(9, TimeoutError("mail server"))
    run.fire(11)


def play_checkout_async(run: Run) -> None:
    run.start("o-2", [1, 2, 3])
    run.complete(3, "p-2")
    run.fire(5)
    run.complete(6)
    run.fail(8, ValueError("no address"))
    for number in (15, 14, 22, 21, 23):
        run.complete(number, number)


def play_cancelled(run: Run) -> None:
    run.start()
    run.cancel("out of stock")
    run.complete(2, "too late")
    run.complete(6)


def play_patched(run: Run) -> None:
    run.start()
    run.complete(1)
    run.complete(3)


def play_failing(run: Run) -> None:
    run.start()
    run.fail(1, ConnectionError("no route"), attempt=3)


def play_conversation(run: Run) -> None:
    run.start(3, start_at=EPOCH_MS + 60_000)
    run.update("put", "apple", key="early")
    run.now += 60_000
    run.fire(0)
    run.update("put", "pear", key="slow", pause=60)
    run.update("put", "nothing", key="refused")
    run.update("give", key="unknown")
    run.complete(2, "a")
    run.fire(3)
    run.update("put", "plum", key="late")
    run.fail(8, LookupError("no pear"))
    run.complete(9, "c")
    run.update("put", "fig", key="last")
    run.complete(13, "d")


def play_delayed(run: Run) -> None:
    run.start(start_at=EPOCH_MS + 60_000)
    run.now += 60_000
    run.fire(0)


WORKFLOWS: dict[str, tuple[Callable[..., Any], Callable[[Run], None]]] = {
    "checkout": (checkout, play_checkout),
    "checkout_async": (checkout_async, play_checkout_async),
    "cancelled": (cancelled, play_cancelled),
    "patched": (patched, play_patched),
    "failing": (failing, play_failing),
    "delayed": (delayed, play_delayed),
    "conversation": (conversation, play_conversation),
}


def record(name: str) -> dict[str, Any]:
    """Run a workflow through its story and return its history."""
    function, play = WORKFLOWS[name]
    run = Run(function, workflow_id=f"golden-{name}")
    play(run)
    run.execution.evict()
    return history_to_json(run.workflow_id, run.events)


def main(version: str) -> None:
    folder = HISTORIES / version
    folder.mkdir(parents=True, exist_ok=True)
    for name in WORKFLOWS:
        path = folder / f"{name}.json"
        if path.exists():
            print(f"kept     {path}")  # noqa: T201 - a script
            continue
        # Tracebacks name files of this checkout, which is somebody's own affair.
        text = json.dumps(record(name), indent=1).replace(f"{Path(__file__).parents[2]}/", "")
        path.write_text(text + "\n")
        print(f"written  {path}")  # noqa: T201 - a script


if __name__ == "__main__":
    main(sys.argv[1])
