"""Sagas: what was done is undone in reverse order when what follows fails (Garcia-Molina and Salem, 1987).

A compensation is a step like any other, with a retry policy that does not give up by itself. It is also done on
cancel, and a cancel that comes meanwhile waits for it.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, NamedTuple, Self

from durable_celery.errors import CompensationError
from durable_celery.policy import RetryPolicy
from durable_celery.workflow.continuation import leaves
from durable_celery.workflow.interrupts import is_interrupt
from durable_celery.workflow.machine import Machine
from durable_celery.workflow.tasks import CallOptions, check_arguments, resolve
from durable_celery.workflow.verbs import shield

__all__ = ["AsyncSaga", "Saga"]

#: How a compensation is tried again where the context has no retry option: until it is done.
UNTIL_DONE = RetryPolicy(maximum_interval=300.0, maximum_attempts=0)


class _Compensation(NamedTuple):
    task: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Saga:
    """What both forms have in common."""

    def __init__(self, machine: Machine, options: CallOptions) -> None:
        self._machine = machine
        self._options = options if options.retry else options.with_(retry=UNTIL_DONE)
        self._compensations: list[_Compensation] = []

    def compensate(self, task: Any, /, *args: Any, **kwargs: Any) -> None:
        """Note the step that undoes what was done, or is about to be done.

        Raises:
            UnknownTaskError: ``task`` is no Celery task.
            TypeError: the arguments do not fit its signature.
            PayloadError: the arguments cannot be recorded.
        """
        self._machine.check()
        name, _ = resolve(task)
        # Found now, while the code can still do something about it, and not when there is something to undo.
        check_arguments(task, args, kwargs)
        self._machine.codec.dumps([list(args), kwargs], f"the arguments of compensation {name}")
        self._compensations.append(_Compensation(task, args, kwargs))

    def _must_undo(self, error: BaseException | None) -> bool:
        is_over = self._machine.at_rest or self._machine.fault is not None
        return error is not None and not (is_over or leaves(error) or is_interrupt(error))

    async def _undo(self) -> None:
        """Do the compensations noted so far, the newest first, each once and one after the other."""
        await shield(self._machine, self._undo_all())

    async def _undo_all(self) -> None:
        stuck: list[str] = []
        while self._compensations:
            task, args, kwargs = self._compensations.pop()
            try:
                await self._machine.start_step(task, args, kwargs, self._options)
            except Exception as error:  # noqa: BLE001 - the others are to be undone all the same
                stuck.append(f"{resolve(task)[0]}: {error!r}")
        if stuck:
            count = "1 compensation" if len(stuck) == 1 else f"{len(stuck)} compensations"
            raise CompensationError(f"{count} failed for good: {'; '.join(stuck)}")


class Saga(_Saga):
    """A saga of a ``def`` workflow: ``with ctx.saga() as saga: ...``."""

    def undo(self) -> None:
        """Do now what was noted to be done on failure.

        Raises:
            CompensationError: some of it failed for good; the rest is done.
        """
        self._machine.wait(self._undo())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._must_undo(error):
            self.undo()


class AsyncSaga(_Saga):
    """A saga of an ``async def`` workflow: ``async with ctx.saga() as saga: ...``."""

    async def undo(self) -> None:
        """Do now what was noted to be done on failure.

        Raises:
            CompensationError: some of it failed for good; the rest is done.
        """
        await self._undo()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._must_undo(error):
            await self.undo()
