"""Callbacks: a wait for an answer that an outside system gives by a token.

A callback is made of what there is: a local step makes its token, signals of a name of its own bring the answer and
the signs of life, timers bound them. The store keeps the first answer only, because all answers have one key.

Invariant: a callback that is done, or is given up, has no timers and hears nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from secrets import token_urlsafe
from typing import Any

from durable_celery.codec import CallbackToken, error_of
from durable_celery.errors import HeartbeatTimeoutError, InvalidRequestError, WaitTimeoutError
from durable_celery.policy import seconds
from durable_celery.workflow import verbs
from durable_celery.workflow.handles import Handle, drop_all
from durable_celery.workflow.machine import Machine
from durable_celery.workflow.tasks import CallOptions, is_function

__all__ = ["Callback", "open_callback", "wait_callback"]

#: Bytes of a secret.
_SECRET = 16


class Callback(Handle[Any]):
    """Stands for an answer from outside: a value, or a failure. Give its token to who is to answer."""

    def __init__(
        self, machine: Machine, token: CallbackToken, *, timeout: float | None, heartbeat: float | None
    ) -> None:
        super().__init__(machine, self._withdraw)
        #: What the outside system gives back with its answer; whoever has it can answer.
        self.token = str(token)
        self._machine, self._place = machine, token
        self._name = f"callback ({token.number})"
        self._heartbeat, self._heard = heartbeat, machine.now
        self._timers: dict[str, Handle[None]] = {}
        machine.callbacks[token.number] = self
        machine.signals.listen(token.signal, self._hear)
        # Before anybody else can: what waits for the answer finds the timers gone.
        self.add_done_callback(self._clear)
        if timeout is not None:
            late = WaitTimeoutError(f"{self._name} got no answer within {timeout:g} s")
            self._start_timer("timeout", machine.now + round(timeout * 1000), lambda: self.fail(late))
        self._watch()

    def _hear(self, message: Any) -> None:
        """React to what came from outside."""
        if "beat" in message:
            self._heard = self._machine.now
        elif "failure" in message:
            error = error_of(message["failure"])
            error.add_note(f"in {self._name} of {self._place.workflow_id}/{self._place.run}")
            self._end(error, None)
        else:
            self._end(None, message["value"])

    def _end(self, error: Exception | None, value: Any) -> None:
        """End with the first answer that comes while somebody may still want it."""
        if self.done():
            return
        if error is not None:
            self.fail(error)
        else:
            self.set_result(value)

    def _watch(self) -> None:
        """See to it that somebody looks when the next sign of life is overdue: one timer for any number of them."""
        if self._heartbeat is None:
            return
        due_at = self._heard + round(self._heartbeat * 1000)
        if self._machine.now < due_at:
            self._start_timer("heartbeat", due_at, self._watch)
        else:
            self.fail(HeartbeatTimeoutError(f"{self._name} gave no sign of life for {self._heartbeat:g} s"))

    def _start_timer(self, name: str, due_at: int, fire: Callable[[], object]) -> None:
        def ring(timer: Handle[None]) -> None:
            if not (timer.cancelled() or self.done()):
                fire()

        self._timers[name] = timer = self._machine.timer(due_at)
        timer.add_done_callback(ring)

    def _withdraw(self) -> bool:
        self._clear()
        return True

    def _clear(self, _: object = None) -> None:
        self._machine.signals.hush(self._place.signal)
        self._machine.callbacks.pop(self._place.number, None)
        for timer in self._timers.values():
            timer.cancel()


def open_callback(
    machine: Machine, *, timeout: timedelta | float | None, heartbeat: timedelta | float | None
) -> Callback:
    """Make a callback; its token is recorded before it can be anywhere else.

    Raises:
        InvalidRequestError: a limit of 0.
    """
    machine.check()
    limits = {"timeout": timeout, "heartbeat": heartbeat}
    given = {name: None if limit is None else seconds(limit) for name, limit in limits.items()}
    for name, limit in given.items():
        if limit is not None and round(limit * 1000) == 0:
            raise InvalidRequestError(f"a {name} of 0 ends a callback before anybody can answer it")
    token = machine.local_step(CallbackToken.MAKER, "[[],{}]", partial(_make_token, machine))
    return Callback(machine, CallbackToken.parse(token), timeout=given["timeout"], heartbeat=given["heartbeat"])


def _make_token(machine: Machine) -> str:
    place = machine.workflow_id, machine.run, machine.journal.next, machine.cause
    return str(CallbackToken(*place, token_urlsafe(_SECRET)))


async def wait_callback(
    machine: Machine,
    options: CallOptions,
    submit: Any,
    args: tuple[Any, ...],
    *,
    timeout: timedelta | float | None,  # noqa: ASYNC109 - the verb
    heartbeat: timedelta | float | None,
) -> Any:
    """Hand a token out by a step, and wait for the answer, which may come before the step has returned.

    Raises:
        WaitTimeoutError: no answer, or no sign of life, came in time; what is submitted still is cancelled.
        Exception: the answer was a failure, or the step failed before an answer came.
    """
    callback = open_callback(machine, timeout=timeout, heartbeat=heartbeat)
    arms: list[asyncio.Future[Any]] = [callback]
    try:
        if is_function(submit):
            arms.append(asyncio.ensure_future(verbs.run(machine, options, submit, (callback.token, *args), {})))
        else:
            arms.append(machine.start_step(submit, (callback.token, *args), {}, options))
        await asyncio.wait(arms, return_when=asyncio.FIRST_COMPLETED)
        if not callback.done():
            # The step has ended: by its failure, or well, and then the wait goes on.
            arms[1].result()
        return await callback
    finally:
        if not machine.at_rest:
            await drop_all(arms)
