"""The simulated system: a world whose workers can also stand still in the middle of a store call, and go on later.

A worker that stands still is a greenlet that was left. A *frozen* one is not renewed meanwhile, so that its leases end
and others take over: when it goes on it is a zombie. A *slow* one has a main process that goes on renewing it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import greenlet

from durable_celery.store.protocol import Claim, StepMessage, Timing
from durable_celery.testing.surroundings import Publisher
from durable_celery.testing.watch import Call, Crash
from durable_celery.testing.world import TICK, Message, Process, World, mortal

_TICK = round(TICK * 1000)
#: A little less (ms) than a process lives without being renewed.
_LIFE = round(Timing().owner_ttl * 1000) - 1
#: Longest time (ms) that passes at once: a run that waits for years need not make the simulation wait.
_LONGEST_WAIT = 600_000


class AskAgain(BaseException):
    """What ``self.retry(args=...)`` raises in a Celery task: try again later, with other arguments."""


class Moody(Publisher):
    """A dispatcher whose broker is away now and then."""

    def __init__(self, world: System) -> None:
        super().__init__(world.broker)
        self._world = world

    def publish(self, messages: Sequence[Message]) -> int:
        world = self._world
        if not world.refusals:
            return super().publish(messages)
        world.refusals -= 1
        # It went away when it had taken the first half.
        return super().publish(messages[: len(messages) // 2])


class Slot(greenlet.greenlet):
    """What a worker does now, if it may be left in the middle."""


class Worker(Process):
    """A process that may stand still."""

    world: System
    #: Where it stands still, if it does.
    standing: Slot | None = None
    #: Whether nobody renews it while it stands still.
    is_frozen = False

    def __init__(self, world: System, name: str) -> None:
        super().__init__(world, name)
        self.engine.dispatcher = Moody(world)

    @property
    def is_free(self) -> bool:
        """Whether it can do something else."""
        return self.is_alive and self.standing is None

    def handle(self, message: Message) -> None:
        self._do(partial(super().handle, message))

    def beat(self, *gone: str) -> None:
        self._do(partial(super().beat, *gone))

    def go_on(self) -> None:
        """Go on from where it stands still; a dead one comes to its end there."""
        slot, self.world.running = self.standing, self
        if slot is not None:
            self.standing = None
            slot.parent = greenlet.getcurrent()
            slot.switch()
            self._note(slot)

    def may_stand_still(self) -> bool:
        """Whether what runs in it now can be left."""
        return self.standing is None and isinstance(greenlet.getcurrent(), Slot)

    def act(self, work: Callable[[Worker], object]) -> None:
        """Do something else in this process, as its main process does it at the wish of a client."""
        with mortal(self):
            work(self)

    def stand_still(self, call: Call) -> None:
        """Let the rest of the world go on; to be called by what runs in this process."""
        current = greenlet.getcurrent()
        if isinstance(current, Slot) and current.parent is not None:
            current.parent.switch()
            if not call.caller.is_alive:
                raise Crash

    def _do(self, work: Callable[[], None]) -> None:
        if not self.world.may_pause:
            work()
            return
        slot = Slot(work)
        slot.switch()
        self._note(slot)

    def _note(self, slot: Slot) -> None:
        if not slot.dead:
            self.standing = slot

    def _execute(self, message: StepMessage, claim: Claim) -> None:
        try:
            super()._execute(message, claim)
        except AskAgain as request:
            override = self.world.codec.encode([[request.args[0]], {"is_ready": True}], "arguments")
            self.engine.postpone_step(claim, delay=0.5, error="again", retries=1, override=override)


class System(World):
    """A world of such workers, in which idle time costs little."""

    process_type = Worker
    processes: list[Worker]  # type: ignore[assignment]  # each is of the process type

    def __init__(self, **settings: Any) -> None:
        #: Whether a worker may be asked to stand still in what it does next.
        self.may_pause = False
        #: Messages that are on their way for longer than others.
        self.delayed: list[Message] = []
        #: Called by user code and by deliveries; it may end the process.
        self.mishap: Callable[[], object] = lambda: None
        #: To how many of the next attempts to publish the broker is away.
        self.refusals = 0
        self._beats = 0
        super().__init__(**settings)

    @property
    def is_at_rest(self) -> bool:
        if self.broker or self.delayed or self._actions or self.store.held or self._next_due() is not None:
            return False
        return all(worker.is_free and worker.engine.patience.is_idle for worker in self.processes)

    def free_workers(self) -> list[Worker]:
        """Return who can do something now."""
        return [worker for worker in self.processes if worker.is_free]

    def standing(self) -> list[Worker]:
        """Return who stands still."""
        return [worker for worker in self.processes if worker.standing is not None]

    def calm_down(self) -> None:
        """Let nothing go wrong any more: messages arrive, and whoever stands still goes on."""
        self.watch.hooks.clear()
        self.may_pause = False
        self.refusals = 0
        self.broker.extend(self.delayed)
        self.delayed.clear()
        for worker in self.standing():
            worker.go_on()

    def deliver_to(self, worker: Worker) -> None:
        """Let a worker handle the oldest message."""
        worker.handle(self.broker.popleft())

    def pass_time(self) -> None:
        """Let the clock go to what is due next, while main processes renew, and one worker sweep.

        Only the last beat is watched: what went on before cannot have met anything.
        """
        target = self._next_due()
        if self._actions and (target is None or self._actions[0][0] < target):
            target = self._actions[0][0]
        if not self.broker:
            self._wait_until(self.clock.now + _TICK if target is None else min(target, self.clock.now + _LONGEST_WAIT))
        while self._actions and self._actions[0][0] <= self.clock.now:
            self._actions.pop(0)[1]()
        free = self.free_workers()
        self._beats += 1
        for place, worker in enumerate(free):
            if place == self._beats % len(free) or not worker.engine.patience.is_idle:
                worker.beat()

    def _next_due(self) -> int | None:
        """Return when something falls due that is more than a life or a retention."""
        lives = {process for process in self.store.held if not self._is_renewed(process)}
        dues = [
            due
            for (kind, name, _), due in self.store.agenda.items()
            if kind not in {"owner", "retention"} or (kind == "owner" and name in lives)
        ]
        return min(dues, default=None)

    def _is_renewed(self, process: str) -> bool:
        return any(worker.name == process and _renews(worker) for worker in self.processes)

    def _wait_until(self, instant: int) -> None:
        names = [worker.name for worker in self.processes if _renews(worker)]
        step = _TICK
        while self.clock.now < instant:
            self.clock.now += min(step, instant - self.clock.now)
            self.store.renew(names)
            # Who was alive at the first beat is so at all that follow, as long as they come within a life.
            step = _LIFE

    def revive(self) -> None:
        dead = [worker for worker in self.processes if not worker.is_alive]
        for worker in dead:
            worker.go_on()
        if dead:
            super().revive()


def _renews(worker: Worker) -> bool:
    return worker.is_alive and not (worker.standing is not None and worker.is_frozen)
