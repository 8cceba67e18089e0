# pyright: reportIncompatibleMethodOverride=false, reportFunctionMemberAccess=false
"""The app of these tests, as a user's module: plain tasks of every kind, and workflows that call them.

The worker imports it with ``-A tests.celery.shop``; tests import it too and configure the app to their servers. All
names are of this app only, so that other apps of a test process do not get its tasks.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from typing import Any

import redis
from celery import Celery, Task, signals
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from pydantic import BaseModel

from durable_celery import (
    DurableTask,
    NonRetryable,
    RetryAfter,
    RetryPolicy,
    WorkflowCancelled,
    WorkflowContext,
    current_step,
    durable_task,
)
from tests.quick import take_all_for_quick

app = Celery("shop", set_as_current=False)
app.conf.update(
    broker_url=os.environ.get("SHOP_BROKER"),
    result_backend=os.environ.get("SHOP_BACKEND") or None,
    durable_store=os.environ.get("SHOP_STORE", ""),
    durable_resend_after=2.0,
    durable_run_ahead=float(os.environ.get("SHOP_RUN_AHEAD", "0")),
    accept_content=["json", "yaml"],
    result_extended=True,
    durable_atomic_publish=bool(os.environ.get("SHOP_ATOMIC_PUBLISH")),
    task_routes={"shop.routed": {"queue": "side"}},
    beat_schedule={"often": {"task": "shop.note_flow", "schedule": 0.5, "args": ["beat"]}},
    result_backend_transport_options={"retry_policy": {"max_retries": 1, "interval_start": 0, "interval_step": 0.1}},
)
if app.conf.durable_run_ahead:
    take_all_for_quick(app)
task = functools.partial(app.task, shared=False)
workflow = functools.partial(durable_task, app=app)


@functools.cache
def notes() -> redis.Redis:
    """Where tasks leave traces for the tests."""
    return redis.Redis.from_url(os.environ.get("SHOP_STORE") or app.conf.durable_store, decode_responses=True)


def note(key: str, text: object = "") -> int:
    return int(notes().rpush(f"notes:{key}", str(text)))


def noted(key: str) -> list[str]:
    return list(notes().lrange(f"notes:{key}", 0, -1))  # type: ignore[arg-type] # as above


# Plain tasks.


@task(name="shop.add")
def add(x: int, y: int) -> int:
    return x + y


@task(name="shop.tell")
def tell(key: str, value: object = "") -> str:
    note(key, value)
    return key


@task(name="shop.collect")
def collect(values: list[Any], key: str) -> list[Any]:
    note(key, values)
    return values


@task(name="shop.on_end")
def on_end(result: object, key: str) -> None:
    note(key, result)


@task(name="shop.on_error")
def on_error(request: Any, exc: object, traceback: object, key: str) -> None:
    note(key, repr(exc))


@task(name="shop.boom")
def boom(text: str = "boom") -> None:
    raise LookupError(text)


@task(name="shop.throttled")
def throttled(key: str, times: int) -> int:
    """Say ``times`` times when to come again."""
    tries = note(f"throttled:{key}", time.time())
    if tries <= times:
        raise RetryAfter(0.2, "too many requests")
    return tries


@task(name="shop.hopeless")
def hopeless(key: str) -> None:
    note(f"hopeless:{key}")
    raise NonRetryable("the card is stolen")


def is_transient(error: BaseException) -> bool:
    return "transient" in str(error)


@task(name="shop.sometimes")
def sometimes(key: str) -> None:
    """Fail for a passing reason, then for one that stays."""
    raise LookupError("transient" if note(f"sometimes:{key}") < 3 else "gone")


class Loud(Task):
    """A base class with everything overridden that users do override."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        note(f"loud:{args[0]}", "call")
        return super().__call__(*args, **kwargs)

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:  # noqa: ARG002 - Celery's signature
        note(f"loud:{args[0]}", "before_start")

    def on_success(self, *rest: Any) -> None:
        note(f"loud:{rest[2][0]}", "on_success")

    def on_failure(self, *rest: Any) -> None:
        note(f"loud:{rest[2][0]}", "on_failure")

    def after_return(self, status: str, *rest: Any) -> None:
        note(f"loud:{rest[2][0]}", f"after_return {status}")

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        note(f"loud:{args[0]}", "apply_async")
        return super().apply_async(args, kwargs, **options)


@task(name="shop.loud", base=Loud)
def loud(key: str, fails: bool = False) -> str:
    if fails:
        raise LookupError(key)
    return f"loud {key}"


@task(name="shop.bound", bind=True)
def bound(self: Task) -> dict[str, Any]:
    request = self.request
    step = current_step()
    return {
        "id": request.id,
        "root": request.root_id,
        "parent": request.parent_id,
        "name": self.name,
        "queue": request.delivery_info["routing_key"],
        "step": step and [step.workflow_id, step.workflow, step.run, step.step, step.attempt, step.key],
    }


@task(name="shop.routed", bind=True)
def routed(self: Task) -> str:
    return str(self.request.delivery_info["routing_key"])


@task(name="shop.moody", bind=True, autoretry_for=(ValueError,), default_retry_delay=0, max_retries=2)
def moody(self: Task, fails: int) -> int:
    if self.request.retries < fails:
        raise ValueError(f"mood {self.request.retries}")
    return int(self.request.retries)


@task(name="shop.growing", bind=True)
def growing(self: Task, number: int, limit: int) -> list[Any]:
    if number < limit:
        raise self.retry(args=(number + 1, limit), countdown=0.2)
    step = current_step()
    return [number, self.request.retries, self.request.id, step and step.attempt]


@task(name="shop.slow", soft_time_limit=1, time_limit=30)
def slow(seconds: float) -> str:
    try:
        time.sleep(seconds)
    except SoftTimeLimitExceeded:
        return "soft"
    return "slept"


@task(name="shop.stuck", time_limit=1, bind=True)
def stuck(self: Task, key: str, until: int) -> int:
    attempt = note(f"stuck:{key}", self.request.id)
    if attempt < until:
        time.sleep(60)
    return attempt


@task(name="shop.limited", rate_limit="2/s")
def limited(number: int) -> float:
    return time.time()


class Order(BaseModel):
    id: str
    amount: int


@task(name="shop.price", pydantic=True)
def price(order: Order) -> Order:
    assert isinstance(order, Order)
    return Order(id=order.id, amount=order.amount * 2)


@task(name="shop.ignores")
def ignores() -> None:
    raise Ignore("nothing to see")


@task(name="shop.rejects", bind=True, acks_late=True)
def rejects(self: Task, key: str, requeue: bool) -> str:
    if note(f"rejects:{key}") == 1:
        raise Reject("no", requeue=requeue)
    return "taken"


@task(name="shop.exits")
def exits(key: str) -> None:
    note(f"exits:{key}")
    sys.exit(3)


@task(name="shop.replaces", bind=True)
def replaces(self: Task) -> Any:
    return self.replace(add.s(1, 2))


@task(name="shop.opaque")
def opaque() -> object:
    return object()


@task(name="shop.big")
def big(size: int) -> str:
    return "x" * size


@task(name="shop.yaml", serializer="yaml")
def in_yaml(x: int) -> int:
    return x + 1


@task(name="shop.quiet", ignore_result=True)
def quiet(x: int) -> int:
    return x + 1


@task(name="shop.starts")
def starts(key: str) -> str:
    """Start a workflow from inside a plain task."""
    return str(note_flow.apply_async((key,), task_id=key).id)


# Signals.


def _listen(name: str) -> None:
    def receiver(sender: Any = None, task_id: str | None = None, request: Any = None, **_: Any) -> None:
        name_of = getattr(sender, "name", "")
        if name_of in {"shop.add", "shop.boom", "shop.moody"}:
            step_id = task_id or getattr(request, "id", None) or sender.request.id
            note(f"signals:{step_id}", name)

    getattr(signals, name).connect(receiver, weak=False)


for _name in ("task_prerun", "task_postrun", "task_success", "task_failure", "task_retry"):
    _listen(_name)


# Workflows.


@workflow(name="shop.one_step")
def one_step(ctx: WorkflowContext, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call one task, by its registered object where there is one, and return its result."""
    known: Any = app.tasks.get(name, name)
    return ctx.step(known, *args, **kwargs)


@workflow(name="shop.tried_step")
def tried_step(ctx: WorkflowContext, tries: int, name: str, *args: Any) -> Any:
    policy = RetryPolicy(maximum_attempts=tries, initial_interval=0.05)
    return ctx.options(retry=policy).step(app.tasks.get(name, name), *args)


@workflow(name="shop.picky_step")
def picky_step(ctx: WorkflowContext, name: str, *args: Any, retryable: list[str] | None = None) -> Any:
    """Call one task, and go on for as long as it fails for a passing reason."""
    policy = RetryPolicy(
        maximum_attempts=9, initial_interval=0.05, retryable=tuple(retryable or ()), retry_if=is_transient
    )
    return ctx.options(retry=policy).step(app.tasks.get(name, name), *args)


@workflow(name="shop.caught")
def caught(ctx: WorkflowContext, name: str, *args: Any) -> list[str]:
    """Call one task and tell how it failed, as the workflow's code sees it."""
    try:
        return ["none", str(ctx.step(app.tasks.get(name, name), *args))]
    except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
        return [type(error).__name__, str(error), *getattr(error, "__notes__", ())]


@workflow(name="shop.by_name")
def by_name(ctx: WorkflowContext, name: str, *args: Any) -> list[str]:
    """Call what has a name, and tell how it failed."""
    try:
        return ["none", str(ctx.step(name, *args))]
    except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
        return [type(error).__name__, str(error)]


@workflow(name="shop.double")
def double(ctx: WorkflowContext, x: int) -> int:
    return int(ctx.step(add, x, x))


@workflow(name="shop.total")
def total(ctx: WorkflowContext, numbers: list[int]) -> int:
    """Take a chord's results."""
    result = 0
    for number in numbers:
        result = ctx.step(add, result, number)
    return result


@workflow(name="shop.note_flow")
def note_flow(ctx: WorkflowContext, key: str, fails: bool = False) -> str:
    ctx.step(tell, f"flow:{key}", ctx.info.workflow_id)
    if fails:
        raise LookupError(key)
    return f"done {key}"


@workflow(name="shop.waits")
def waits(ctx: WorkflowContext, key: str) -> Any:
    """Wait for a signal; clean up with a step when cancelled."""
    try:
        return ctx.wait_signal("go")
    except WorkflowCancelled:
        ctx.step(tell, f"cleanup:{key}", ctx.info.workflow_id)
        raise


@workflow(name="shop.stranded")
def stranded(ctx: WorkflowContext) -> str:
    """Call a step on a queue that no worker consumes."""
    try:
        return str(ctx.options(queue="nobody").step(add, 1, 2))
    except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
        return type(error).__name__


@workflow(name="shop.parent")
def parent(ctx: WorkflowContext, key: str) -> Any:
    return ctx.step(waits, key)


@workflow(name="shop.family")
def family(ctx: WorkflowContext) -> list[Any]:
    """Call a child that tells who its step is, and one that fails."""
    ids = ctx.step(one_step, "shop.bound")
    try:
        ctx.step(one_step, "shop.boom", "child")
    except LookupError as error:
        return [ids, str(error)]
    return [ids, None]


@workflow(name="shop.raises")
def raises(ctx: WorkflowContext, module: str) -> None:
    """Raise an exception that the client can import, or one of Celery's own control flow."""
    if module == "ignore":
        raise Ignore("from a workflow")
    if module == "private":
        raise Private("only the worker has it")
    raise LookupError("gone", 7)


if os.environ.get("SHOP_WORKER"):

    class Private(Exception):  # noqa: N818 - a name
        """A class that only workers have."""


class Selfish(DurableTask[..., Any]):
    """A base class whose hook does not call the one that it overrides."""

    abstract = True

    def after_return(self, status: str, *rest: Any) -> None:
        note(f"selfish:{rest[1]}", status)


@workflow(name="shop.selfish", base=Selfish)
def selfish(ctx: WorkflowContext, x: int) -> int:
    return int(ctx.step(add, x, 1))


@workflow(name="shop.two_halves")
def two_halves(ctx: WorkflowContext, key: str) -> str:
    """Do a step, wait for a signal, do another."""
    ctx.step(tell, f"first:{key}")
    ctx.wait_signal("go")
    return str(ctx.step(tell, f"second:{key}"))


@workflow(name="shop.quiet_flow", ignore_result=True)
def quiet_flow(ctx: WorkflowContext, x: int) -> int:
    return int(ctx.step(add, x, 1))


@workflow(name="shop.counts")
def counts(ctx: WorkflowContext, until: int) -> int:
    ctx.state.total = 0
    ctx.wait_until(lambda: ctx.state.total >= until and not ctx.open_updates)
    return int(ctx.state.total)


@counts.query(name="total")
def total_so_far(state: Any) -> int:
    return int(state.total)


@counts.update
def count_on(ctx: WorkflowContext, number: int) -> int:
    # The step first: other updates go on while it is executed.
    counted = ctx.step(add, number, 0)
    ctx.state.total += counted
    ctx.stream("totals").append(ctx.state.total)
    return int(ctx.state.total)


@workflow(name="shop.awaits")
def awaits(ctx: WorkflowContext, name: str) -> Any:
    return ctx.wait_event(name)


@workflow(name="shop.awaits_async")
async def awaits_async(ctx: Any, name: str) -> Any:
    won = await ctx.race(event=ctx.event(name), alarm=ctx.timer(3600))
    return won.value


@workflow(name="shop.publishes")
def publishes(ctx: WorkflowContext, name: str, value: Any) -> None:
    ctx.publish_event(name, value)


@task(name="shop.ask_total")
def ask_total(workflow_id: str) -> int:
    return int(counts.AsyncResult(workflow_id).query(total_so_far))


@task(name="shop.count_on_from_a_task")
def count_on_from_a_task(workflow_id: str) -> str:
    update = counts.AsyncResult(workflow_id).start_update(count_on, 1, key="from a task")
    try:
        update.result()
    except RuntimeError as error:
        return str(error)
    return "not refused"
