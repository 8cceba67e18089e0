"""An app whose payloads are secret: what the canary and forgery suites run on real workers.

The secrets stand in no file: each test makes its own and hands them in as arguments.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery, Task

from durable_celery import RetryPolicy, WorkflowContext, current_step, durable_task
from durable_celery.codec import AesGcm, Deflate

app = Celery("vault", broker=os.environ.get("VAULT_BROKER", "redis://localhost/0"), set_as_current=False)
app.conf.update(
    broker_connection_retry_on_startup=True,
    worker_send_task_events=True,
    task_send_sent_event=True,
    durable_owner_ttl=2.0,
    durable_resend_after=1.0,
    durable_resend_limit=2.0,
)
if store := os.environ.get("VAULT_STORE"):
    app.conf.durable_store = store
if backend := os.environ.get("VAULT_BACKEND"):
    app.conf.update(result_backend=backend, result_extended=True)
if keys := os.environ.get("VAULT_KEYS"):
    app.conf.durable_codec = [Deflate(above=200), AesGcm.from_text(keys)]

if os.environ.get("VAULT_REVEAL"):
    app.conf.durable_reveal_results = True

SOON = RetryPolicy(initial_interval=0.05, backoff_coefficient=1.0, maximum_attempts=3)


@app.task(name="vault.echo")
def echo(word: str, *, note: str = "") -> str:
    return f"{word}{note}"


@app.task(name="vault.fails")
def fails(word: str) -> None:
    local = f"local of {word}"
    raise ValueError(f"no {local}", word)


@app.task(name="vault.stumbles")
def stumbles(word: str) -> str:
    step = current_step()
    assert step is not None
    if step.attempt < 2:
        raise ConnectionError(f"not yet: {word}")
    return word


@app.task(name="vault.retries", bind=True, max_retries=3)
def retries(self: Task, word: str, times: int) -> str:
    if self.request.retries < times:
        raise self.retry(args=(word, times), kwargs={}, countdown=0, exc=ConnectionError(f"again: {word}"))
    return f"{word}{self.request.args[0]}"


@app.task(name="vault.changes", bind=True, max_retries=3)
def changes(self: Task, word: str, times: int) -> str:
    if times:
        raise self.retry(args=(f"{word}+", times - 1), kwargs={}, countdown=0)
    return word


@app.task(name="vault.hold")
def hold(gate: str, word: str) -> str:
    Path(f"{gate}.held").touch()
    while not Path(gate).exists():
        time.sleep(0.02)
    return word


def _local(word: str) -> str:
    return f"{word}!"


def _local_failure(word: str) -> None:
    raise LookupError(word)


@durable_task(app=app, name="vault.child")
def child(ctx: WorkflowContext, word: str) -> str:
    answer: str = ctx.step(echo, word, note="c")
    return answer


@durable_task(app=app, name="vault.everything")
def everything(ctx: WorkflowContext, word: str) -> Any:
    """Carry a word through every place of a run."""
    seen: list[Any] = [ctx.step(echo, word, note=word)]
    for task in (fails,):
        try:
            ctx.step(task, word)
        except ValueError as error:
            seen.append(str(error))
    seen.extend((ctx.options(retry=SOON).step(stumbles, word), ctx.step(retries, word, 1), ctx.step(changes, word, 1)))
    seen.append(ctx.run(_local, word))
    try:
        ctx.run(_local_failure, word)
    except LookupError as error:
        seen.append(str(error))
    seen.append(ctx.step(child, word))
    seen.append(ctx.wait_signal("go"))
    return seen


@durable_task(app=app, name="vault.breaks")
def breaks(ctx: WorkflowContext, word: str) -> None:
    ctx.step(echo, word)
    raise ValueError(f"broken: {word}")


@durable_task(app=app, name="vault.touches")
def touches(ctx: WorkflowContext, word: str) -> None:
    """Reach for the outside world, in words that are secret."""
    Path(f"/nonexistent/{word}").read_text()


@durable_task(app=app, name="vault.waits")
def waits(ctx: WorkflowContext, word: str) -> Any:
    first = ctx.step(echo, word)
    return [first, ctx.wait_signal("go"), ctx.step(echo, word)]


@durable_task(app=app, name="vault.holds")
def holds(ctx: WorkflowContext, gate: str, word: str) -> Any:
    return ctx.step(hold, gate, word)
