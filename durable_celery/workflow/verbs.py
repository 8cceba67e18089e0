"""The verbs that wait, each written once, as a coroutine over the machine.

``async def`` workflows await them; ``def`` workflows block on the very same coroutines. So the two forms cannot differ.

Invariant: a verb that ends by a cancellation or a timeout leaves nothing of its own behind: what it waited for is
cancelled, and a signal that it had received and not returned goes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from inspect import isawaitable, iscoroutinefunction
from itertools import count
from typing import Any, TypeVar

from durable_celery.errors import InvalidRequestError, WaitTimeoutError, WorkflowCancelled
from durable_celery.policy import seconds, wait_after
from durable_celery.workflow.batch import BatchResult, Tolerance, items_of, run_batch
from durable_celery.workflow.driver import run_awaitable
from durable_celery.workflow.handles import Handle, RaceResult, drop_all
from durable_celery.workflow.machine import Machine
from durable_celery.workflow.notes import check_local_name
from durable_celery.workflow.story import EPOCH
from durable_celery.workflow.tasks import CallOptions, is_function
from durable_celery.workflow.typed_signal import Signal

__all__ = [
    "branch",
    "gather",
    "map_items",
    "poll",
    "race",
    "run",
    "shield",
    "sleep",
    "sleep_until",
    "spawned",
    "timer",
    "tolerant_gather",
    "wait_signal",
    "wait_until",
    "within",
]

T = TypeVar("T")


def timer(machine: Machine, duration: timedelta | float) -> Handle[None]:
    """Return a handle that is done after ``duration``."""
    return machine.timer(machine.now + round(seconds(duration) * 1000))


async def sleep(machine: Machine, duration: timedelta | float) -> None:
    """Wait for ``duration``."""
    await timer(machine, duration)


async def sleep_until(machine: Machine, instant: datetime) -> None:
    """Wait until an instant; one that is past is no wait."""
    if instant.utcoffset() is None:
        raise InvalidRequestError(f"{instant!r} names no instant: give it a time zone")
    await machine.timer(-((EPOCH - instant) // timedelta(milliseconds=1)))


async def gather(machine: Machine, arms: Iterable[Awaitable[Any]], *, return_exceptions: bool) -> list[Any]:
    """Wait for all arms; return their results in the order given, or raise the first failure."""
    futures = [asyncio.ensure_future(arm) for arm in arms]
    until = asyncio.ALL_COMPLETED if return_exceptions else asyncio.FIRST_EXCEPTION
    await _wait(machine, futures, until)
    if return_exceptions:
        return [_outcome(future) for future in futures]
    for future in futures:
        # One that is not done stands behind a failure.
        if future.done() and (future.cancelled() or future.exception() is not None):
            future.result()
    return [future.result() for future in futures]


def _outcome(future: asyncio.Future[Any]) -> Any:
    if future.cancelled():
        return asyncio.CancelledError()
    return future.exception() or future.result()


async def tolerant_gather(
    machine: Machine, arms: Sequence[Awaitable[Any]], tolerate: Tolerance | int
) -> BatchResult[Any]:
    """Wait for all arms, or until what is tolerated is decided; the arms that go on then are cancelled."""
    tolerance = Tolerance.of(tolerate)
    futures = [asyncio.ensure_future(arm) for arm in arms]
    return await run_batch(
        machine, lambda index: futures[index], len(futures), max_concurrency=None, tolerance=tolerance
    )


async def map_items(
    machine: Machine,
    begin: Callable[[Any], Awaitable[Any]],
    items: Iterable[Any],
    *,
    max_concurrency: int | None,
    tolerate: Tolerance | int | None,
) -> BatchResult[Any]:
    """Do one thing for each item, some at a time, and return how each ended; ``begin`` starts one."""
    ordered = items_of(items)
    return await run_batch(
        machine,
        lambda index: begin(ordered[index]),
        len(ordered),
        max_concurrency=max_concurrency,
        tolerance=Tolerance.of(tolerate),
    )


async def race(machine: Machine, arms: Mapping[str, Awaitable[Any]]) -> RaceResult:
    """Wait for the first of the arms; cancel the others, and wait for branches among them to clean up."""
    if not arms:
        raise InvalidRequestError("a race needs at least one arm")
    futures = {name: asyncio.ensure_future(arm) for name, arm in arms.items()}
    await _wait(machine, list(futures.values()), asyncio.FIRST_COMPLETED)
    winner = next(name for name, future in futures.items() if future.done())
    await drop_all([future for name, future in futures.items() if name != winner])
    return RaceResult(winner, futures[winner].result())


async def _wait(machine: Machine, futures: Sequence[asyncio.Future[Any]], until: str) -> None:
    """Wait for futures. Who is cancelled meanwhile takes them along, and goes on when they have cleaned up."""
    try:
        if futures:
            await asyncio.wait(futures, return_when=until)
    except asyncio.CancelledError:
        if not machine.at_rest:
            await drop_all(futures)
        raise


async def shield(machine: Machine, arm: Awaitable[T]) -> T:
    """Wait for something that a cancellation does not touch; one that came meanwhile is raised when it is done.

    Raises:
        CancelledError: a cancellation came while it was going on; what was waited for is done.
    """
    future = asyncio.ensure_future(arm)
    cancel: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            if machine.at_rest:
                raise
            # That of the run counts, whatever scope it stands in.
            cancel = cancel if isinstance(cancel, WorkflowCancelled) else error
    result = future.result()
    if cancel is not None:
        raise cancel
    return result


async def wait_signal(
    machine: Machine,
    signal: Signal[T] | str,
    timeout: timedelta | float | None,  # noqa: ASYNC109 - the verb
) -> T:
    """Wait for a signal and return its value.

    Raises:
        WaitTimeoutError: it did not come within ``timeout``.
        InvalidSignalError: it came with a value of another type.
    """
    limit = None if timeout is None else seconds(timeout)
    handle = machine.signal(signal)
    return await within(machine, handle, limit, f"no signal {handle.name!r} came")


async def wait_until(
    machine: Machine,
    predicate: Callable[[], object],
    timeout: timedelta | float | None,  # noqa: ASYNC109 - the verb
) -> None:
    """Wait until a predicate over the workflow's own state is true; it is asked each time the code has come to rest.

    Raises:
        WaitTimeoutError: it did not become true within ``timeout``.
    """
    limit = None if timeout is None else seconds(timeout)
    handle = machine.until(predicate)
    await within(machine, handle, limit, f"{name_of(predicate)} did not become true")


async def within(machine: Machine, handle: Handle[T], limit: float | None, story: str) -> T:
    """Wait for a handle, but not longer than ``limit`` seconds; one that ends otherwise is dropped."""
    try:
        if limit is None or handle.done():
            return await handle
        alarm = timer(machine, limit)
        try:
            return await _before(handle, alarm, f"{story} within {limit:g} s")
        finally:
            if not machine.at_rest:
                alarm.cancel()
    except BaseException as error:
        if not (machine.at_rest or (handle.done() and not handle.cancelled() and handle.exception() is error)):
            handle.drop()
        raise


async def _before(handle: Handle[T], alarm: Handle[None] | None, story: str) -> T:
    """Wait for a handle, or until the alarm goes off."""
    if alarm is not None:
        both: list[Handle[Any]] = [handle, alarm]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not handle.done():
            raise WaitTimeoutError(story)
    return await handle


async def run(
    machine: Machine, options: CallOptions, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run a function here and now, as a local step; with a retry policy again after durable waits."""
    machine.check()
    options.check_local()
    name = check_local_name(options.name or name_of(function))
    text = machine.codec.dumps([list(args), kwargs], f"the arguments of local step {name}")
    policy = options.retry
    for attempt in count(1):
        try:
            return machine.local_step(name, text, partial(_call, function, args, kwargs))
        except Exception as error:
            wait = wait_after(policy, error, attempt, machine.random.random)
            if machine.at_rest or machine.fault or wait is None:
                raise
        await sleep(machine, wait)
    raise AssertionError  # pragma: no cover - count() does not end


async def poll(
    machine: Machine,
    options: CallOptions,
    check: Any,
    args: tuple[Any, ...],
    *,
    every: timedelta | float,
    until: Callable[[Any], object],
    timeout: timedelta | float | None,  # noqa: ASYNC109 - the verb
) -> Any:
    """Ask again and again, with durable waits between, until an answer satisfies; return that answer.

    Raises:
        InvalidRequestError: ``every`` is 0.
        WaitTimeoutError: no answer satisfied within ``timeout``.
        Exception: what the check failed with for good.
    """
    if not seconds(every):
        raise InvalidRequestError("a poll without a wait between its checks is a busy loop: give every=")
    limit = None if timeout is None else seconds(timeout)
    story = "" if limit is None else f"{name_of(check)} gave no answer that satisfies within {limit:g} s"
    alarm = None if limit is None else timer(machine, limit)
    waiting: Handle[Any] | None = None
    try:
        while True:
            if is_function(check):
                answer = await run(machine, options, check, args, {})
            else:
                waiting = machine.start_step(check, args, {}, options)
                answer = await _before(waiting, alarm, story)
            if until(answer):
                return answer
            waiting = timer(machine, every)
            await _before(waiting, alarm, story)
    finally:
        if not machine.at_rest:
            for handle in filter(None, (waiting, alarm)):
                handle.cancel()


def _call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    value = function(*args, **kwargs)
    return run_awaitable(value) if isawaitable(value) else value


def name_of(function: Any) -> str:
    """Return what people call a function or a task."""
    if isinstance(function, str):
        return function
    for attribute in ("name", "__qualname__"):
        name = getattr(function, attribute, None)
        if isinstance(name, str):
            return name
    wrapped = getattr(function, "func", None)
    return name_of(wrapped) if callable(wrapped) else type(function).__qualname__


def branch(
    machine: Machine, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, blocks: bool
) -> Handle[Any]:
    """Start a concurrent branch of workflow code; it begins when the code that started it next waits."""
    machine.check()
    if iscoroutinefunction(function) is blocks:
        wrong, right = ("an `async def`", "`def`") if blocks else ("a `def`", "`async def`")
        raise InvalidRequestError(
            f"spawn() was given {wrong} function; branches of this workflow are {right} functions"
        )
    coroutine = machine.driver.run_blocking(function, *args, **kwargs) if blocks else function(*args, **kwargs)
    return spawned(machine, coroutine)


def spawned(machine: Machine, coroutine: Coroutine[Any, Any, T]) -> Handle[T]:
    """Run a coroutine beside the code that called this; return what stands for it."""
    task: asyncio.Task[T] = machine.loop.create_task(coroutine)
    handle: Handle[T] = Handle(machine)

    def withdraw() -> bool:
        task.cancel()
        # The branch may have cleaning up to do; the handle is done when it is.
        return False

    def settle(_: object) -> None:
        if handle.done():
            return
        handle.withdraw = None
        if task.cancelled():
            handle.cancel()
        elif (error := task.exception()) is not None:
            handle.fail(error)
        else:
            handle.set_result(task.result())

    handle.withdraw = withdraw
    task.add_done_callback(settle)
    return handle
