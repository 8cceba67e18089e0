"""``@transactional_step`` for Django: the task runs in ``transaction.atomic``, which also holds its outcome."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

from django.db import IntegrityError, InterfaceError, OperationalError, ProgrammingError, connections, transaction

from durable_celery.contrib.django.tables import missing
from durable_celery.current import current_step
from durable_celery.errors import ConfigurationError
from durable_celery.transactions import perform

__all__ = ["transactional_step"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_MONTH = timedelta(days=30)


def transactional_step(
    *, using: str = "default", keep: timedelta = _MONTH
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Run a task in a transaction that also holds the step's outcome: it takes effect exactly once.

    Stands below ``@app.task`` or ``@shared_task``. What the task does with the ORM is committed together with its
    result, or not at all; a repeat after a crash finds the result and does nothing. ``transaction.on_commit`` and
    nested ``atomic`` blocks work as ever. Called by no workflow, the task is a function in ``transaction.atomic``.
    (worker)

    Args:
        using: the database.
        keep: after how long rows are deleted. Must be longer than any message or worker may be late.

    Raises:
        ConfigurationError: when it is executed: the table is missing.
        RuntimeError: when it is executed within a transaction.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if inspect.iscoroutinefunction(function):
            raise ConfigurationError(f"{function.__qualname__} is `async def`, and Django's transactions are not")

        @functools.wraps(function)
        def entry(*args: P.args, **kwargs: P.kwargs) -> R:
            ledger, step = _DjangoLedger(using, keep), current_step()

            def body() -> R:
                return function(*args, **kwargs)

            return ledger.work(body) if step is None else perform(step, ledger, body)

        entry.durable_settles = True  # type: ignore[attr-defined] # tells the worker that it knows what was lost
        return entry

    return decorate


class _DjangoLedger:
    """The rows of outcomes in a Django database."""

    passing: tuple[type[Exception], ...] = (OperationalError, InterfaceError)

    def __init__(self, using: str, keep: timedelta) -> None:
        self.using, self._keep = using, keep

    def add(self, key: str, attempt: int) -> bool:
        """See :meth:`Ledger.add`."""
        at = round(time.time() * 1000)
        try:
            self._apart(lambda: self._rows.create(step=key, attempt=attempt, at=at))
        except IntegrityError:
            return False
        return True

    def renew(self, key: str, attempt: int) -> bool:
        """See :meth:`Ledger.renew`."""
        mine = {"step": key, "attempt__lte": attempt, "outcome__isnull": True}
        return bool(self._apart(lambda: self._rows.filter(**mine).update(attempt=attempt)))

    def find(self, key: str) -> tuple[int, str | None] | None:
        """See :meth:`Ledger.find`."""
        found: tuple[int, str | None] | None = self._apart(
            lambda: self._rows.filter(step=key).values_list("attempt", "outcome").first()
        )
        return found

    def clear(self) -> None:
        """See :meth:`Ledger.clear`."""
        before = round((time.time() - self._keep.total_seconds()) * 1000)
        self._apart(lambda: self._rows.filter(at__lt=before).delete())

    def work(self, body: Callable[[], T]) -> T:
        """See :meth:`Ledger.work`."""
        atomic: Any = transaction.atomic
        with atomic(using=self.using, durable=True):
            return body()

    def keep(self, key: str, attempt: int, outcome: str) -> bool:
        """See :meth:`Ledger.keep`."""
        mine = {"step": key, "attempt": attempt, "outcome__isnull": True}
        return bool(self._rows.filter(**mine).update(outcome=outcome))

    @property
    def _rows(self) -> Any:
        # Models can be imported only when Django has its settings.
        from durable_celery.contrib.django.models import Outcome

        model: Any = Outcome
        return model.objects.using(self.using)

    def _apart(self, body: Callable[[], T]) -> T:
        """Do something in a transaction of its own, on a connection that lives."""
        connection = connections[self.using]
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()
        try:
            return self.work(body)
        except (ProgrammingError, OperationalError) as error:
            if not connection.is_usable() or "durable_outcomes" in connection.introspection.table_names():
                raise
            raise ConfigurationError(missing(self.using, "durable_outcomes")) from error
