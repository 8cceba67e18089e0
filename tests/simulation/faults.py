"""What goes wrong at a store call, as hooks that say what they did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable_celery.testing.watch import Call, Fault, Kind
from tests.simulation.system import Worker

if TYPE_CHECKING:
    from tests.simulation.chaos import Chaos

_KINDS = tuple(Kind)
#: No history has so many calls.
_NEVER = 1_000_000_000


class Brittle(Fault):
    """A fault at the n-th call, which counts itself."""

    def __init__(self, chaos: Chaos, kind: int, number: int, more: int) -> None:
        super().__init__(_KINDS[kind], number, more)
        self._chaos = chaos

    def _strike(self, call: Call) -> None:
        self._chaos.did(f"fault: {self.kind}", f"at call {call.number}, {call.verb} by {call.caller.name}")
        super()._strike(call)


class Aimed(Brittle):
    """A fault at the next call of a verb."""

    def __init__(self, chaos: Chaos, kind: int, verb: str, more: int) -> None:
        super().__init__(chaos, kind, _NEVER, more)
        self.verb = verb

    def before(self, call: Call) -> None:
        if self.number == _NEVER and call.verb == self.verb:
            self.number = call.number
        super().before(call)


class Pause:
    """A hook that lets whoever makes the next call of a verb stand still before or after it."""

    def __init__(self, chaos: Chaos, verb: str, *, is_after: bool, is_frozen: bool) -> None:
        self._chaos, self.verb, self.is_after, self.is_frozen = chaos, verb, is_after, is_frozen
        self.is_spent = False

    def before(self, call: Call) -> None:
        if not self.is_after:
            self._strike(call)

    def after(self, call: Call) -> None:
        if self.is_after:
            self._strike(call)

    def _strike(self, call: Call) -> None:
        worker, world = call.caller, self._chaos.world
        if (
            self.is_spent
            or not world.may_pause
            or call.verb != self.verb
            or not isinstance(worker, Worker)
            or not worker.may_stand_still()
        ):
            return
        self.is_spent = True
        world.watch.hooks.remove(self)
        worker.is_frozen = self.is_frozen
        when = "after" if self.is_after else "before"
        kind = "frozen" if self.is_frozen else "slow"
        self._chaos.did(f"pause: {when} {self.verb}", f"{worker.name} stands still at call {call.number}, {kind}")
        worker.stand_still(call)
