"""The protocol by which a step takes effect exactly once: its outcome is written in the transaction of its effect.

The user's database holds one row for each step: the newest attempt that has begun, and the outcome once there is one.

1. An attempt notes itself in the row, in a transaction of its own; an outcome that stands there is the step's.
2. The task runs. The last statement of its transaction writes the outcome, under the condition that no newer attempt
   has begun and no outcome stands; where that fails, all of it is rolled back.
3. If the commit fails, or its reply is lost, the row is asked as in 1, which waits for a commit that is on its way.

Invariant: of all attempts of a step, those that come back from the dead included, at most one commits, and none does
after a later one has begun. So what the log says of a step that ended by itself is what the database holds. (What a
workflow gave up, by a timeout or a cancel, may still commit.)

This is the transactional inbox of the literature ("Idempotent Receiver" with its memory in the receiver's database),
with the fencing token of the attempt's number.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from celery.exceptions import Ignore

from durable_celery.errors import RetryAfter
from durable_celery.store.protocol import StepKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable_celery.current import Pulse, StepInfo

__all__ = ["Ledger", "Lost", "perform"]

T = TypeVar("T")

#: How long a database that is away is asked again, and how long a step waits after that, in seconds.
_PATIENCE, _AFTERWARDS = 10.0, 10.0
#: One in so many steps clears rows away that are too old for any message.
_CLEARING = 100


class Ledger(Protocol):
    """Rows of steps in a user's database. Each verb but ``keep`` is a transaction of its own."""

    @property
    def passing(self) -> tuple[type[Exception], ...]:
        """Errors that may pass when a verb is repeated: no answer, a deadlock."""
        ...

    def add(self, key: str, attempt: int) -> bool:
        """Add the row of a step; False if there is one."""
        ...

    def renew(self, key: str, attempt: int) -> bool:
        """Note an attempt in a row that has no outcome and no newer attempt; False if there is no such row."""
        ...

    def find(self, key: str) -> tuple[int, str | None] | None:
        """Return a row: the newest attempt and the outcome."""
        ...

    def work(self, body: Callable[[], T]) -> T:
        """Do something in a transaction, and commit it."""
        ...

    def keep(self, key: str, attempt: int, outcome: str) -> bool:
        """Write the outcome, in the transaction of ``work``; False if a newer attempt has begun, or one stands."""
        ...

    def clear(self) -> None:
        """Delete rows that are too old."""
        ...


class Lost(Ignore):
    """This attempt is not the step's any more: nothing of it was committed."""


def perform(step: StepInfo, ledger: Ledger, body: Callable[[], T]) -> T:
    """Execute an attempt of a step, or return the outcome that an earlier one has left.

    Args:
        step: the current step.
        ledger: the rows in the user's database.
        body: what takes effect in the transaction, and returns the step's result.

    Raises:
        Lost: another attempt has begun.
        RetryAfter: the database does not answer.
        PayloadError: the result cannot be recorded; nothing was committed.
        Exception: what the body raised; nothing was committed.
    """
    pulse, key = step.pulse, StepKey.parse(step.key)
    if pulse is None or key is None:
        # Made by hand, in a test: nobody else executes it.
        return ledger.work(body)
    value: T = _Attempt(step.attempt, key, pulse, ledger).execute(body)
    # From here on nothing that happens to the task changes what was committed.
    pulse.settled = (value,)
    if random.randrange(_CLEARING) == 0:  # noqa: S311 - no secret
        ledger.clear()
    return value


class _Attempt:
    """One attempt of a step."""

    def __init__(self, number: int, key: StepKey, pulse: Pulse, ledger: Ledger) -> None:
        self.number, self.key, self.pulse, self.ledger = number, key, pulse, ledger
        self.place = key.place("outcome")
        # A workflow id may be used again when its run is forgotten; the row of a step then is another one.
        self.row = f"{key}@{pulse.incarnation()}"
        self._is_kept = False

    def execute(self, body: Callable[[], Any]) -> Any:
        """See :func:`perform`."""
        if (outcome := self._standing()) is not None:
            return self._opened(outcome)
        if self.pulse.is_lost:
            # It lost its process too often. Now it is known that none of its attempts took effect, and none will.
            self.pulse.lose()
            raise Lost(f"step {self.key} has no attempt left")
        try:
            return self.ledger.work(lambda: self._with_outcome(body))
        except Exception:
            # Until the outcome was written, nothing can have been committed.
            if not self._is_kept or (outcome := self._standing()) is None:
                raise
            return self._opened(outcome)

    def _with_outcome(self, body: Callable[[], Any]) -> Any:
        value = body()
        sealed = self.pulse.codec.encode(value, f"the result of step {self.key}", self.place)
        if not self.ledger.keep(self.row, self.number, sealed):
            raise Lost(f"another attempt of step {self.key} has begun")
        self._is_kept = True
        return value

    def _standing(self) -> str | None:
        """Note that this attempt begins, or has begun; return the outcome that stands."""
        return _patiently(self.ledger, lambda: _register(self.ledger, self.row, self.number))

    def _opened(self, outcome: str) -> Any:
        return self.pulse.codec.decode(outcome, self.place)


def _register(ledger: Ledger, row: str, attempt: int) -> str | None:
    """Note that an attempt begins; return the outcome that stands.

    Raises:
        Lost: a newer one has begun.
    """
    if attempt == 1 and ledger.add(row, attempt):
        return None
    while not ledger.renew(row, attempt):
        found = ledger.find(row)
        if found is None:
            if ledger.add(row, attempt):
                return None
            continue
        newest, outcome = found
        if outcome is not None:
            return outcome
        if newest > attempt:
            raise Lost(f"attempt {newest} of step {row} has begun, this is {attempt}")
    return None


def _patiently(ledger: Ledger, verb: Callable[[], T]) -> T:
    """Repeat a verb while the database is away.

    Raises:
        RetryAfter: it is away for long.
    """
    deadline, pause = time.monotonic() + _PATIENCE, 0.05
    while True:
        try:
            return verb()
        except ledger.passing as error:
            if time.monotonic() + pause > deadline:
                raise RetryAfter(_AFTERWARDS, f"the database of a transactional step is away: {error!r}") from error
        time.sleep(pause)
        pause = min(pause * 2, 1.0)
