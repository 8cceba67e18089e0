"""Random programs under random schedules, each made by a seed: the same seed is the same history, to the event.

A program is a tree of JSON lists that two workflows interpret, one for each form. What it must return is worked out
from the tree alone. The schedule loses, repeats and reorders messages, kills processes, moves the clock, breaks store
calls, and lets another process act in the middle of a call.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from durable_celery.policy import RetryPolicy
from durable_celery.store.protocol import RunStatus
from durable_celery.testing.watch import At, Fault, Kind
from durable_celery.testing.world import Task, World
from durable_celery.workflow import AsyncWorkflowContext, WorkflowContext
from tests.engine.invariants import check, check_at_rest

Tree = list[Any]

#: So many attempts are allowed that chance does not use them up.
POLICY = RetryPolicy(initial_interval=0.5, maximum_interval=4, maximum_attempts=60)
#: Where another process may act in the middle; most races are about the first ones.
VERBS = [
    *["take", "commit", "finish", "settle"] * 3,
    "claim",
    "start",
    "append",
    "deliver",
    "release",
    "postpone",
    "sweep",
]


class Generator:
    """Makes program trees."""

    def __init__(self, chance: random.Random) -> None:
        self.chance, self.signals = chance, 0

    def tree(self, depth: int = 0) -> Tree:
        leaves: list[Callable[[int], Tree]] = [self.step, self.step, self.flaky, self.local, self.sleep, self.signal]
        nodes = [self.series, self.series, self.parallel, self.child, self.race, self.dropped]
        return self.chance.choice(leaves if depth > 2 or (depth and self.chance.random() < 0.4) else nodes)(depth)

    def step(self, _: int) -> Tree:
        return ["step", self.chance.randrange(100)]

    def flaky(self, _: int) -> Tree:
        return ["flaky", self.chance.randrange(100), self.chance.randrange(3)]

    def local(self, _: int) -> Tree:
        return ["local", self.chance.randrange(100)]

    def sleep(self, _: int) -> Tree:
        return ["sleep", self.chance.choice([0, 0.5, 2, 7])]

    def signal(self, _: int) -> Tree:
        self.signals += 1
        return ["signal", f"s{self.signals}"]

    def series(self, depth: int) -> Tree:
        return ["series", *(self.tree(depth + 1) for _ in range(self.chance.randrange(1, 4)))]

    def parallel(self, depth: int) -> Tree:
        return ["parallel", *(self.tree(depth + 1) for _ in range(self.chance.randrange(1, 4)))]

    def child(self, depth: int) -> Tree:
        return ["child", self.tree(depth + 2)]

    def race(self, _: int) -> Tree:
        return ["race", self.chance.randrange(100), self.chance.choice([0.5, 3])]

    def dropped(self, _: int) -> Tree:
        return ["dropped", self.chance.choice([0, 0.5, 4])]


def value_of(tree: Tree) -> Any:
    """Return what a program must return."""
    match tree:
        case ["step" | "flaky", int(x), *_]:
            return x + 1
        case ["local", x]:
            return x
        case ["signal", name]:
            return f"value of {name}"
        case ["series" | "parallel", *trees]:
            return [value_of(part) for part in trees]
        case ["child", part]:
            return value_of(part)
        case _:
            return tree[0]


def names_of(tree: Tree, path: str = "w") -> set[str]:
    """Return the signals that the run itself, and not a child of it, waits for."""
    match tree:
        case ["signal", name]:
            return {name}
        case ["series" | "parallel", *trees]:
            return set().union(*(names_of(part, path) for part in trees))
        case _:
            return set()


class Code:
    """The tasks and flows that interpret trees in a world."""

    def __init__(self, world: World) -> None:
        self.failed: dict[str, int] = {}
        self.plus = world.task(lambda x: x + 1, "plus")
        self.flaky = world.task(lambda x, times: self.fail_first(world, x, times), "flaky")
        self.forms = [world.flow(self.blocking, "blocking"), world.flow(self.awaiting, "awaiting")]
        self.idle = world.flow(lambda ctx: ctx.wait_signal("never"), "idle")

    def fail_first(self, world: World, x: int, times: int) -> int:
        claim = world.running.claim
        assert claim is not None
        seen = self.failed[str(claim.key)] = self.failed.get(str(claim.key), 0) + 1
        if seen <= times:
            raise ValueError(f"failure {seen}")
        return x + 1

    def form_of(self, tree: Tree) -> Task:
        return self.forms[len(str(tree)) % 2]

    def blocking(self, ctx: WorkflowContext, tree: Tree) -> Any:  # noqa: C901, PLR0911 - one case for each verb
        match tree:
            case ["step", x]:
                return ctx.step(self.plus, x)
            case ["flaky", x, times]:
                return ctx.options(retry=POLICY).step(self.flaky, x, times)
            case ["local", x]:
                return ctx.run(lambda: x)
            case ["sleep", seconds]:
                ctx.sleep(seconds)
            case ["signal", name]:
                return ctx.wait_signal(name)
            case ["series", *trees]:
                return [self.blocking(ctx, part) for part in trees]
            case ["parallel", *trees]:
                return ctx.gather(*[ctx.spawn(self.blocking, part) for part in trees])
            case ["child", part]:
                return ctx.step(self.form_of(part), part)
            case ["race", x, seconds]:
                ctx.race(step=ctx.start(self.plus, x), alarm=ctx.timer(seconds))
            case ["dropped", seconds]:
                handle = ctx.start(self.idle)
                ctx.sleep(seconds)
                handle.cancel()
            case _:
                raise AssertionError(tree)
        return tree[0]

    async def awaiting(self, ctx: AsyncWorkflowContext, tree: Tree) -> Any:  # noqa: C901, PLR0911 - the same
        match tree:
            case ["step", x]:
                return await ctx.step(self.plus, x)
            case ["flaky", x, times]:
                return await ctx.options(retry=POLICY).step(self.flaky, x, times)
            case ["local", x]:
                return await ctx.run(lambda: x)
            case ["sleep", seconds]:
                await asyncio.sleep(seconds)
            case ["signal", name]:
                return await ctx.wait_signal(name)
            case ["series", *trees]:
                return [await self.awaiting(ctx, part) for part in trees]
            case ["parallel", *trees]:
                return await asyncio.gather(*[self.awaiting(ctx, part) for part in trees])
            case ["child", part]:
                return await ctx.step(self.form_of(part), part)
            case ["race", x, seconds]:
                await ctx.race(step=ctx.start(self.plus, x), alarm=ctx.timer(seconds))
            case ["dropped", seconds]:
                handle = ctx.start(self.idle)
                await asyncio.sleep(seconds)
                handle.cancel()
            case _:
                raise AssertionError(tree)
        return tree[0]


class Chaos:
    """One history: a world, a program, and everything that goes wrong."""

    def __init__(self, seed: int) -> None:
        self.seed, self.chance = seed, random.Random(seed)
        # The engine's jitter is chance as well.
        random.seed(seed)
        self.world = World(
            processes=self.chance.choice([2, 3]),
            cache_size=self.chance.choice([0, 1, 100]),
            patience=self.chance.choice([0.0, 5.0]),
            go_on=self.chance.random() < 0.7,
            lost_attempts=60,
        )
        self.code = Code(self.world)
        self.tree = self.program()
        self.is_cancelled = False

    def program(self) -> Tree:
        while True:
            tree = Generator(self.chance).tree()
            # Signals are sent to the outer run only.
            if not _child_waits(tree):
                return tree

    def live(self, moves: int = 40) -> World:
        """Live through the whole history; assert what must be true of it."""
        world = self.world
        world.start(self.code.form_of(self.tree), self.tree)
        for name in sorted(names_of(self.tree)):
            delay = self.chance.choice([0.0, 1.0, 20.0])
            world.at(delay, partial(self.signal, name))
        if self.chance.random() < 0.15:
            world.at(self.chance.choice([0.0, 1.0, 5.0]), self.cancel)
        for _ in range(moves):
            world.revive()
            self.chance.choices(self.moves, self.weights)[0](self)
        world.watch.hooks.clear()
        check(world)
        world.run()
        status, value = world.outcome()
        if not (self.is_cancelled and status is RunStatus.CANCELLED):
            assert (status, value) == (RunStatus.COMPLETED, value_of(self.tree)), world.story()
        check_at_rest(world)
        return world

    def signal(self, name: str) -> None:
        if not self.world.record().status.is_closed:
            self.world.signal(name, f"value of {name}", key=name)

    def cancel(self) -> None:
        self.is_cancelled = True
        self.world.cancel()

    # -- moves -------------------------------------------------------------------------------------------------------

    def deliver(self) -> None:
        """Let a process handle a message, not always the oldest."""
        if self.world.broker:
            if self.chance.random() < 0.3:
                self.world.broker.rotate(self.chance.randrange(5))
            self.world.deliver(self.slot())
        else:
            self.pass_time()

    def pass_time(self) -> None:
        self.world.pass_time()

    def lose(self) -> None:
        if self.world.broker:
            self.world.broker.popleft()

    def duplicate(self) -> None:
        if self.world.broker:
            self.world.broker.append(self.chance.choice(list(self.world.broker)))

    def kill(self) -> None:
        self.world.kill(self.slot())

    def bury(self) -> None:
        """Let a process that knows of a death say so."""
        dead = self.world.processes[self.slot()]
        self.world.kill(self.world.processes.index(dead))
        self.world.revive()
        self.world.processes[0].beat(dead.name)

    def jump(self) -> None:
        """Let time pass in which no heart beats."""
        self.world.clock.advance(self.chance.choice([0.3, 4, 11, 25]))

    def fault(self) -> None:
        number = self.world.watch.count + self.chance.randrange(1, 12)
        fault = Fault(self.chance.choice(list(Kind)), number, self.chance.choice([0, 0, 2]))
        self.world.watch.hooks.append(fault)

    def interleave(self) -> None:
        """Let another process act before or after a call that is yet to come."""
        verb, after = self.chance.choice(VERBS), self.chance.random() < 0.5
        self.world.watch.hooks.append(At(verb, self.act, after=after))

    def act(self) -> None:
        idle = [process for process in self.world.processes if process is not self.world.running and process.is_alive]
        if not idle:
            return
        running, actor = self.world.running, self.chance.choice(idle)
        if self.chance.random() < 0.3:
            self.world.clock.advance(11)
        if self.chance.random() < 0.4:
            self.world.hurry()
        if self.chance.random() < 0.5:
            actor.beat()
        for _ in range(self.chance.randrange(3)):
            # What it does may let yet another process act.
            if self.world.broker:
                actor.handle(self.world.broker.popleft())
        self.world.running = running

    def slot(self) -> int:
        return self.chance.randrange(len(self.world.processes))

    moves = (deliver, pass_time, lose, duplicate, kill, bury, jump, fault, interleave)
    weights = (60, 8, 3, 4, 3, 1, 3, 4, 14)


def _child_waits(tree: Tree) -> bool:
    match tree:
        case ["child", part]:
            return "'signal'" in str(part)
        case ["series" | "parallel", *trees]:
            return any(map(_child_waits, trees))
        case _:
            return False
