"""Conditions of one run: predicates over the code's own state, and the handles that wait for them.

They are asked when all code waits, in the order in which the waits began. The code's state depends on its inputs only,
so the answers do too, and nothing of them is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from durable_celery.workflow.handles import Handle

__all__ = ["Conditions"]


class Conditions:
    """What a run waits to become true."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Callable[[], object], Handle[None]]] = []

    def wait(self, predicate: Callable[[], object], handle: Handle[None]) -> None:
        """Let a handle wait until a predicate is true; what it raises now, it raises here."""
        if predicate():
            handle.set_result(None)
        else:
            self._waiting.append((predicate, handle))

    def leave(self, handle: Handle[None]) -> bool:
        """Take a handle that is being cancelled out; always true, its wait ends at once."""
        self._waiting = [entry for entry in self._waiting if entry[1] is not handle]
        return True

    def meet(self) -> bool:
        """End the first wait whose condition is true, or can no longer be asked; False if there is none."""
        for predicate, handle in self._waiting:
            try:
                if not predicate():
                    continue
            except Exception as error:  # noqa: BLE001 - it belongs to the code that waits
                handle.fail(error)
            else:
                handle.set_result(None)
            return self.leave(handle)
        return False

    def names(self) -> Iterator[str]:
        """Yield what each waiting handle waits for, for people."""
        for predicate, _ in self._waiting:
            yield getattr(predicate, "__qualname__", None) or repr(predicate)
