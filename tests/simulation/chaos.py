"""One history: a system, a program, and everything that goes wrong, all made of choices; see :mod:`.chance`.

``Chaos(seed).live()`` lives through it and raises :class:`ViolationError` if anything is not as it must be. The same
seed is the same history, to the event, in every process; ``Chaos(seed, choices)`` is the history of these choices.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from durable_celery.events import StepScheduled
from durable_celery.store.protocol import StepKey
from durable_celery.testing.watch import Call
from tests.simulation import rest
from tests.simulation.chance import Chance, Choices
from tests.simulation.code import Code, RevokedError
from tests.simulation.monitor import Monitor, target_of
from tests.simulation.moves import end, table_of
from tests.simulation.programs import Generator, Tree, nodes
from tests.simulation.rules import RuledStore
from tests.simulation.stores import MEMORY, Place
from tests.simulation.system import System, Worker

#: A history that has not come to rest after so many deliveries and waits of the calm end will not.
_LONGEST = 3_000


class ViolationError(AssertionError):
    """A history in which something is not as it must be."""

    def __init__(self, chaos: Chaos, found: list[str]) -> None:
        super().__init__(f"seed {chaos.chance.seed}: " + "\n".join(found))
        self.chaos, self.found = chaos, found

    @property
    def kind(self) -> str:
        """Which invariant is broken: the first word of what was found first."""
        return self.found[0].partition(" ")[0]


class Chaos:
    """One history."""

    def __init__(self, seed: int, choices: Choices | None = None, *, place: Place = MEMORY) -> None:
        self.seed, self.place = seed, place
        self.chance = Chance(seed, choices)
        #: What happened, by name: moves that did something, faults, calls.
        self.tally: Counter[str] = Counter()
        #: Told of each move and fault, for a story.
        self.narrate: Callable[[str], object] | None = None
        self.monitor = Monitor()
        # The engine's jitter is chance as well.
        random.seed(seed)
        self.world = self._system()
        self.table = table_of(self.chance.shape)
        self.code = Code(self.world)
        self.tree: Tree = Generator(self.chance.program).program()
        self.is_cancelled = False
        self.is_gated = False
        self.deaths_to_come = 0

    def _system(self) -> System:
        shape = self.chance.shape
        world = System(
            processes=shape.pick((2, 3, 1)),
            cache_size=shape.pick((100, 0, 1)),
            patience=shape.pick((5.0, 0.0, 0.0)),
            go_on=shape.pick((True, True, False)),
            # Where kills are the only trouble, a step may lose dozens of processes.
            lost_attempts=10_000,
            make_store=self.place.make,
        )
        world.runs_ahead = self.seed % 2 == 1
        world.watch.witness = self._witness
        if isinstance(world.store, RuledStore):
            world.store.found = self.monitor.found
        world.mishap = self.die_now
        world.on_delivery = lambda _process, _ending: self.die_now()
        return world

    def live(self) -> System:
        """Live through the whole history.

        Raises:
            ViolationError: something is not as it must be.
        """
        try:
            return self._live()
        except ViolationError:
            raise
        except Exception as error:
            found = [*self.monitor.found, f"what must not be raised: {type(error).__name__}: {error}"]
            raise ViolationError(self, found) from error
        finally:
            self._end_code()

    def _end_code(self) -> None:
        """End all code that is still suspended, so that garbage collection does not end it within another history."""
        for worker in self.world.processes:
            if worker.standing is not None:
                worker.is_alive = False
                with suppress(Exception):
                    worker.go_on()
            worker.engine.cache.clear()

    def _live(self) -> System:
        self._begin()
        world, moves = self.world, self.chance.moves
        while (move := moves.pick(self.table)) is not end:
            world.revive()
            if world.is_at_rest:
                break
            move(self)
            self._check()
        self.say("from here on nothing goes wrong any more")
        world.calm_down()
        self.deaths_to_come = 0
        self._check()
        self._come_to_rest()
        self.require(rest.violations(self))
        self._count()
        return world

    def _begin(self) -> None:
        shape, world = self.chance.shape, self.world
        waits: dict[str, Any] = {}
        if shape.below(12) == 11:
            waits = {"delay": shape.pick((0.0, 2.0, 20.0)), "expires": shape.pick((60.0, 10.0))}
            self.is_gated = True
        if shape.below(8) == 7:
            world.at(shape.pick((5.0, 1.0, 0.0)), self.cancel)
        self.form = shape.below(2)
        self.waits = waits
        world.start(self.code.forms[self.form], self.tree, **waits)
        for node in nodes(self.tree):
            match node:
                case ["signal", name, delay] | ["maybe", name, _, int(delay)]:
                    world.at(delay, partial(self.send, name))
                case ["revocable", token, delay]:
                    world.at(delay, partial(self.revoke, token))
                case _:
                    pass

    def _come_to_rest(self) -> None:
        world = self.world
        for turn in range(_LONGEST):
            if world.is_at_rest:
                return
            world.revive()
            if world.broker:
                world.deliver_to(world.processes[turn % len(world.processes)])
            else:
                world.pass_time()
            self._check()
        self.require(["I5: it does not come to rest"])

    # -- looking -----------------------------------------------------------------------------------------------------

    def _witness(self, call: Call) -> None:
        if self.narrate is not None:
            self.narrate(f"    {call.caller.name}: {call.verb} {target_of(call) or ''}".rstrip())
        if self.place.is_cheap:
            self.monitor.look(self.place.rows(self.world.store), self.world.store.agenda, call)

    def _check(self) -> None:
        if not self.place.is_cheap:
            self.monitor.look(self.place.rows(self.world.store), self.world.store.agenda, None)
        if self.monitor.found or self.world.watch.stale_writes:
            self.require([*self.monitor.found, *(f"I4: {write}" for write in self.world.watch.stale_writes)])

    def require(self, violations: list[str]) -> None:
        if violations:
            raise ViolationError(self, violations)

    def say(self, what: str) -> None:
        if self.narrate is not None:
            self.narrate(what)

    def did(self, what: str, detail: str = "") -> None:
        """Count what happened, and tell of it."""
        self.tally[what] += 1
        if self.narrate is not None:
            self.narrate(f"{what} {detail}".rstrip())

    def _count(self) -> None:
        world, tally = self.world, self.tally
        tally["store calls"] += world.watch.count
        tally["events"] += self.monitor.events
        tally["runs"] += len(self.monitor.tracks)
        tally["steps executed"] += sum(world.executions.values())
        tally["steps executed again"] += sum(count - 1 for count in world.executions.values())
        for node in nodes(self.tree):
            tally[f"verb: {node[0]}"] += 1
        for what, count in world.watch.refusals.items():
            tally[f"refused: {what}"] += count
        for count in world.watch.claims.values():
            if count > 1:
                tally["steps claimed again"] += count - 1
        tally["cancelled" if self.is_cancelled else "not cancelled"] += 1

    # -- what clients do ---------------------------------------------------------------------------------------------

    def send(self, name: str) -> None:
        if not self.world.record().status.is_closed:
            self.did("client sends", f"signal {name}")
            for _ in range(self.chance.moves.pick((1, 2))):
                # A client that got no answer sends it again.
                self.world.signal(name, f"value of {name}", key=name)

    def cancel(self) -> None:
        self.is_cancelled = True
        self.did("client cancels")
        self.world.cancel()

    def revoke(self, token: int) -> None:
        """Revoke a step, wherever it is, as Flower's button does."""
        form = f"[[{token}],{{}}]"
        for name in list(self.world.store.run_table):
            run = self.world.record(name).run
            for item in self.world.history(name, run):
                if isinstance(item.event, StepScheduled) and item.event.payload == form and item.event.task == "plus":
                    key = StepKey(workflow_id=name, run=run, number=item.event.number)
                    free = self.world.free_workers()
                    if free:
                        self.did("client revokes", str(key))
                        free[0].act(partial(_revoke, key))

    def die_now(self) -> None:
        """Let the process whose user code runs die, if it was so decided."""
        if self.deaths_to_come:
            self.deaths_to_come -= 1
            self.did("dies in user code", self.world.running.name)
            self.world.running.crash()


def _revoke(key: StepKey, worker: Worker) -> None:
    worker.engine.revoke_step(key, RevokedError("revoked"))


def live(seed: int, choices: Choices | None = None, **settings: Any) -> Chaos:
    """Live through one history and return it."""
    chaos = Chaos(seed, choices, **settings)
    chaos.live()
    return chaos
