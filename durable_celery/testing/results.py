"""A result backend in memory: Celery's own key-value backend over a dictionary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.backends.base import KeyValueStoreBackend
from celery.exceptions import TimeoutError as CeleryTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["LocalBackend"]


class LocalBackend(KeyValueStoreBackend):
    """Keeps results as long as it lives. Who waits for one lets the system run instead of sleeping."""

    persistent = False
    implements_incr = True
    supports_native_join = True

    def __init__(self, app: Any, run_until: Callable[[Callable[[], bool], float | None], bool]) -> None:
        """Begin empty; ``run_until(is_done, seconds)`` lets the system run and tells whether it is done."""
        self._values: dict[Any, Any] = {}
        self._run_until = run_until
        super().__init__(app=app)

    def get(self, key: Any) -> Any:
        """Return what is kept under a key, or None."""
        return self._values.get(key)

    def mget(self, keys: Iterable[Any]) -> list[Any]:
        """Return what is kept under several keys."""
        return [self._values.get(key) for key in keys]

    def set(self, key: Any, value: Any) -> None:
        """Keep a value."""
        self._values[key] = value

    def delete(self, key: Any) -> None:
        """Forget a key."""
        self._values.pop(key, None)

    def incr(self, key: Any) -> int:
        """Count a part of a chord."""
        self._values[key] = int(self._values.get(key) or 0) + 1
        return int(self._values[key])

    def expire(self, key: Any, value: Any) -> None:
        """Keep it: a test is short."""

    # Celery gives the options of these two by name.
    def wait_for(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, task_id: str, timeout: float | None = None, **_: Any
    ) -> Any:
        """Let the system run until a task is ready, and return what is known of it."""
        meta: Any = self._meta_of_ready(task_id)
        if meta is None and self._run_until(lambda: self._meta_of_ready(task_id) is not None, timeout):
            meta = self._meta_of_ready(task_id)
        if meta is None:
            msg = f"task {task_id} did not end within {timeout} s of the test's clock"
            raise CeleryTimeoutError(msg)
        return meta

    def get_many(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, task_ids: Iterable[str], timeout: float | None = None, **_: Any
    ) -> Iterator[tuple[str, Any]]:
        """Let the system run until all of these tasks are ready."""
        for task_id in list(task_ids):
            yield task_id, self.wait_for(task_id, timeout)

    def _meta_of_ready(self, task_id: str) -> Any:
        meta: Any = self._get_task_meta_for(task_id)
        return meta if meta["status"] in self.READY_STATES else None
