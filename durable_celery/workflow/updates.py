"""Updates of one run: requests from outside that its code executes as branches, each with one recorded outcome.

A request is a signal with a reserved name. It begins when all code waits, the workflow's conditions asked: so it always
finds the state that the code left when it came to rest. Whether it is refused is decided once; a replay takes the
decision from the history, so that a validator may change under open runs.

Invariant: a request that has begun gets exactly one note, its refusal or its outcome, unless the run ends first.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, TypeGuard

from durable_celery.codec import RESERVED, failure_text, place_of
from durable_celery.errors import Evicted, UpdateError
from durable_celery.events import LocalStepCompleted, LocalStepFailed, SignalReceived
from durable_celery.workflow.frames import without_own_frames
from durable_celery.workflow.handlers import Handlers
from durable_celery.workflow.interrupts import is_interrupt
from durable_celery.workflow.notes import Note

if TYPE_CHECKING:
    from durable_celery.workflow.context import Context
    from durable_celery.workflow.machine import Machine

__all__ = ["UPDATE", "Updates", "is_update"]

#: Begins the name of the signal that asks for an update; the update's name follows.
UPDATE = f"{RESERVED}update:"


def is_update(event: object) -> TypeGuard[SignalReceived]:
    """Tell whether an event is the request of an update. Payload: ``[key, args, kwargs]``."""
    return isinstance(event, SignalReceived) and event.name.startswith(UPDATE)


@dataclass(frozen=True, slots=True)
class _Request:
    name: str
    key: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    #: The JSON text of the payload, for digests.
    text: str
    #: Where the request stands in the history.
    seq: int


class Updates:
    """The requests of one run that have no outcome yet."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._handlers = Handlers()
        self._context: Context | None = None
        self._held: deque[_Request] = deque()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._keys: set[str] = set()
        self._is_cancelled = False

    @property
    def begun(self) -> int:
        """How many requests have begun and have no outcome yet."""
        return len(self._running)

    @property
    def open(self) -> int:
        """How many requests have come and have no outcome yet."""
        return len(self._held) + len(self._running)

    def receive(self, event: SignalReceived, seq: int) -> None:
        """Take in a request; one whose key was there before is no other request."""
        codec, place = self._machine.codec, place_of(event, self._machine.workflow_id)
        match codec.decode(event.payload, place):
            case [str(key), list(args), dict(kwargs)]:
                if key not in self._keys:
                    self._keys.add(key)
                    text = codec.open(event.payload, place)
                    self._held.append(_Request(event.name.removeprefix(UPDATE), key, tuple(args), kwargs, text, seq))
            case _:
                self._machine.complain(f"{event.name} is no request of an update; it is ignored", None)

    def unbegun(self) -> Iterator[int]:
        """Yield the seq of each request that has not begun: it goes along to the next run."""
        return (request.seq for request in self._held)

    def begin(self, context: Context, handlers: Handlers) -> None:
        """Let requests be served, now that the code begins."""
        self._context, self._handlers = context, handlers

    def begin_next(self) -> bool:
        """Begin the oldest request, now that all code waits; False if there is none."""
        if self._context is None or not self._held:
            return False
        request = self._held.popleft()
        task = self._machine.loop.create_task(self._serve(request, self._context))
        self._running[request.key] = task
        task.add_done_callback(lambda _: self._running.pop(request.key))
        return True

    def cancel(self) -> None:
        """Cancel what goes on, and refuse what comes from now on: the run was asked to stop."""
        self._is_cancelled = True
        for task in self._running.values():
            task.cancel()

    async def _serve(self, request: _Request, context: Context) -> None:
        """Refuse or execute a request, and record which."""
        decided = self._machine.journal.was_refused(Note.REFUSED.name_of(request.key), self._machine.cause)
        if decided:
            self._record(request, Note.REFUSED, "")
            return
        try:
            work = self._accept(request, context, is_new=decided is None)
        except BaseException as error:  # noqa: BLE001 - whatever a validator raises refuses the request
            self._record(request, Note.REFUSED, self._failure(error))
        else:
            await self._execute(request, work)

    def _accept(self, request: _Request, context: Context, *, is_new: bool) -> Callable[[], Awaitable[Any]]:
        """Return the work of a request; what it raises refuses the request."""
        if self._is_cancelled and is_new:
            raise UpdateError(f"workflow {self._machine.workflow_id!r} has been asked to stop")
        update = self._handlers.find_update(request.name, self._machine.name)
        if is_new:
            update.check_arguments(request.args, request.kwargs)
            if update.validate is not None:
                update.validate(self._machine.state, *request.args, **request.kwargs)
        if iscoroutinefunction(update.function):
            return partial(update.function, context, *request.args, **request.kwargs)
        return partial(self._machine.driver.run_blocking, update.function, context, *request.args, **request.kwargs)

    async def _execute(self, request: _Request, work: Callable[[], Awaitable[Any]]) -> None:
        try:
            text = self._machine.codec.dumps(await work(), f"the result of update {request.name!r}")
        except BaseException as error:  # noqa: BLE001 - whatever user code raises is the update's outcome
            if isinstance(error, asyncio.CancelledError):
                error = UpdateError(f"update {request.name!r} of {self._machine.workflow_id!r} was cancelled")
            self._record(request, Note.UPDATED, self._failure(error))
        else:
            self._record(request, Note.UPDATED, text, kind=LocalStepCompleted)

    def _failure(self, error: BaseException) -> str:
        """Return the text of a failure that is the outcome of a request.

        Raises:
            Evicted: it is none: the code is being ended, or a process signal came.
        """
        if isinstance(error, Evicted):
            raise error
        if is_interrupt(error):
            self._machine.stop(error)
        return failure_text(without_own_frames(error), self._machine.codec)

    def _record(
        self,
        request: _Request,
        note: Note,
        text: str,
        *,
        kind: type[LocalStepCompleted | LocalStepFailed] = LocalStepFailed,
    ) -> None:
        machine = self._machine
        if not (machine.fault or machine.at_rest):
            # What a replay must repeat: the request, and whether it succeeded.
            identity = f'["{kind.__name__}",{json.dumps(request.name)},{request.text}]'
            machine.record(kind, note.name_of(request.key), identity, text)
