"""What a process signal throws into workflow code ends the turn, and never becomes part of the history."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from durable_celery.events import RunCompleted, RunFailed
from durable_celery.workflow import AsyncWorkflowContext, WorkflowContext
from tests.workflow.log import Run, charge, handlers_of


class SoftTimeLimit(Exception):  # noqa: N818 - named like Celery's
    pass


def shut_down(signum: int, frame: object) -> None:
    sys.exit(1)


def time_out(signum: int, frame: object) -> None:
    raise SoftTimeLimit


class Handler:
    def __call__(self, _signum: int, _frame: object) -> None:
        raise SoftTimeLimit

    def method(self, _signum: int, _frame: object) -> None:
        raise SoftTimeLimit


HANDLERS: dict[str, tuple[Callable[[int, Any], None], type[BaseException]]] = {
    "shutdown": (shut_down, SystemExit),
    "time limit": (time_out, SoftTimeLimit),
    "an object": (Handler(), SoftTimeLimit),
    "a method": (Handler().method, SoftTimeLimit),
    "a partial": (partial(time_out), SoftTimeLimit),
    "Python's own": (signal.default_int_handler, KeyboardInterrupt),
}


@pytest.fixture
def _restored() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


STRUCK: list[int] = []


def strike_once() -> None:
    if not STRUCK:
        STRUCK.append(1)
        signal.raise_signal(signal.SIGUSR1)


def code_sync(ctx: WorkflowContext) -> str:
    ctx.step(charge)
    strike_once()
    return "unharmed"


async def code_async(ctx: AsyncWorkflowContext) -> str:
    await ctx.step(charge)
    strike_once()
    return "unharmed"


async def code_in_task(ctx: AsyncWorkflowContext) -> str:
    async def part() -> None:
        await ctx.step(charge)
        strike_once()

    await asyncio.create_task(part())
    return "unharmed"


async def code_in_callback(ctx: AsyncWorkflowContext) -> str:
    await ctx.step(charge)
    asyncio.get_running_loop().call_soon(strike_once)
    await asyncio.sleep(0)
    return "unharmed"


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("code", [code_sync, code_async, code_in_task, code_in_callback])
@pytest.mark.usefixtures("_restored")
def test_a_signal_in_the_middle_of_workflow_code_records_nothing_and_a_replay_goes_on(
    code: Callable[..., Any], handler: str
) -> None:
    function, kind = HANDLERS[handler]
    signal.signal(signal.SIGUSR1, function)
    STRUCK.clear()
    run = Run(code).start()
    with pytest.raises(kind):
        run.complete(1)
    assert run.execution.take_outputs() == ()
    run.execution = run.new_execution()
    run.react()
    assert isinstance(run.last, RunCompleted)
    assert run.result == "unharmed"


def test_an_exception_of_the_code_itself_is_its_outcome_whatever_its_class() -> None:
    def code(ctx: WorkflowContext) -> None:
        raise SoftTimeLimit

    assert isinstance(Run(code).start().last, RunFailed)


def until_updated(ctx: WorkflowContext) -> str:
    ctx.wait_until(lambda: getattr(ctx.state, "is_done", False))
    return "unharmed"


async def until_updated_async(ctx: AsyncWorkflowContext) -> str:
    await ctx.wait_until(lambda: getattr(ctx.state, "is_done", False))
    return "unharmed"


@handlers_of(until_updated).update(name="in the handler")
def step_and_strike(ctx: WorkflowContext) -> None:
    ctx.step(charge)
    strike_once()
    ctx.state.is_done = True


@handlers_of(until_updated_async).update(name="in the handler")
async def step_and_strike_async(ctx: AsyncWorkflowContext) -> None:
    await ctx.step(charge)
    strike_once()
    ctx.state.is_done = True


@handlers_of(until_updated).update(name="in the validator")
def step(ctx: WorkflowContext) -> None:
    ctx.step(charge)
    ctx.state.is_done = True


@handlers_of(until_updated_async).update(name="in the validator")
async def step_async(ctx: AsyncWorkflowContext) -> None:
    await ctx.step(charge)
    ctx.state.is_done = True


for _update in (step, step_async):
    _update.validator(lambda _: strike_once())


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("code", [until_updated, until_updated_async])
@pytest.mark.parametrize("where", ["in the handler", "in the validator"])
@pytest.mark.usefixtures("_restored")
def test_a_signal_in_the_middle_of_an_update_records_nothing_and_a_replay_goes_on(
    where: str, code: Callable[..., Any], handler: str
) -> None:
    function, kind = HANDLERS[handler]
    signal.signal(signal.SIGUSR1, function)
    STRUCK.clear()
    run = Run(code).start()

    def strike() -> None:
        run.update(where)
        run.complete(1)

    with pytest.raises(kind):
        strike()
    assert run.execution.take_outputs() == ()
    run.execution = run.new_execution()
    run.react()
    if where == "in the validator":
        run.complete(1)
    assert isinstance(run.last, RunCompleted)
    assert run.result == "unharmed"
