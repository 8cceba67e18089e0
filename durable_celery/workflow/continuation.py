"""Going on as a new run: how the code of a run leaves it, and what goes along.

The decision is kept beside the code, so that nothing the code does afterwards can lose it: ``finally`` blocks run as
for a ``return``, an ``except BaseException`` changes nothing, and only a failure or a cancel on the way out ends the
run otherwise, as it would on a ``return``.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NoReturn

from durable_celery.errors import Continued, InvalidRequestError, WorkflowCancelled

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable_celery.workflow.machine import Machine

__all__ = ["Continuation", "continue_as_new", "leaves"]


class Continuation:
    """Whether a run goes on as a new one, and with what."""

    def __init__(self) -> None:
        #: The JSON text of the next run's ``[args, kwargs]``, once the code has decided.
        self.text: str | None = None
        #: Refuses arguments that the workflow's function does not take.
        self.check: Callable[..., object] = lambda *_args, **_kwargs: None
        #: The task of the workflow's function, once it has begun.
        self.main: asyncio.Task[None] | None = None
        #: The words of the cancel that was asked for, if one was.
        self.cancel: str | None = None
        #: Seqs of what came after the code had ended.
        self.late: list[int] = []


def continue_as_new(machine: Machine, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
    """End this run, and go on as the next one with new arguments.

    Raises:
        TypeError: the arguments do not fit the workflow's signature.
        PayloadError: they cannot be recorded.
        InvalidRequestError: it is called in a branch.
        WorkflowCancelled: the run is to stop: it does not begin anew.
    """
    machine.check()
    continuation = machine.continuation
    if asyncio.current_task(machine.loop) is not continuation.main:
        raise InvalidRequestError(
            "continue_as_new() was called in a branch or task; the workflow function itself calls it, when what it "
            "waits for has come to its end"
        )
    if continuation.cancel is not None:
        raise WorkflowCancelled(*filter(None, [continuation.cancel]))
    text = machine.codec.dumps([list(args), kwargs], f"the arguments of the next run of workflow {machine.name}")
    if not machine.journal.holds_continuation:
        # What is recorded stays good when a deploy changes the signature.
        continuation.check(*args, **kwargs)
    continuation.text = text
    raise Continued


def leaves(error: BaseException) -> bool:
    """Tell whether an exception is nothing but the way out of a run that continues; a task group wraps it."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(Continued)[1] is None
    return isinstance(error, Continued)
