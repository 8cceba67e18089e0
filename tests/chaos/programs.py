"""Random programs: seeded trees that two workflows of a real app interpret, and what they must do by the tree alone.

The app writes its operations (`tests.chaos.operations`) into the directory that its configuration names, and each task
notes its executions there as well.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celery import Celery

import durable_celery.app
from durable_celery import AsyncWorkflowContext, RetryPolicy, WorkflowContext, current_step, durable_task
from durable_celery.app import Binding, open_store
from durable_celery.settings import Settings
from tests.chaos.operations import Phase, RecordedStore, Recorder

Tree = list[Any]

#: Where the app writes its operations; taken out of the configuration before Celery sees it.
OPERATIONS = "operations_directory"
#: So many attempts are allowed that chance does not use them up.
POLICY = RetryPolicy(initial_interval=0.2, maximum_interval=2.0, maximum_attempts=60)
#: Workflows that wait for ever; they are there to be cancelled.
IDLE = "idle"


class NotYetError(Exception):
    """An attempt that is to fail."""


class Author:
    """Writes programs."""

    def __init__(self, chance: random.Random) -> None:
        """Draw from a source of chance."""
        self.chance, self.signals = chance, 0

    def program(self) -> Tree:
        """Return a tree whose signals are all for the outer run."""
        while "signal" in str(_children_of(tree := self.tree())):
            self.signals = 0
        return tree

    def tree(self, depth: int = 0) -> Tree:
        """Return a tree, less deep the deeper it stands."""
        leaves: list[Callable[[int], Tree]] = [self.step, self.step, self.flaky, self.local, self.sleep, self.signal]
        nodes = [self.series, self.series, self.parallel, self.child, self.race, self.dropped]
        return self.chance.choice(leaves if depth > 2 or (depth and self.chance.random() < 0.4) else nodes)(depth)

    def step(self, _: int) -> Tree:
        return ["step", self.chance.randrange(100), self.chance.choice([0, 0.05, 0.3, 1.0, 2.5])]

    def flaky(self, _: int) -> Tree:
        return ["flaky", self.chance.randrange(100), self.chance.randrange(3)]

    def local(self, _: int) -> Tree:
        return ["local", self.chance.randrange(100)]

    def sleep(self, _: int) -> Tree:
        return ["sleep", self.chance.choice([0, 0.1, 0.5, 2])]

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
        return ["race", self.chance.randrange(100), self.chance.choice([0.1, 0.5])]

    def dropped(self, _: int) -> Tree:
        return ["dropped", self.chance.choice([0, 0.1, 1])]


def _children_of(tree: Tree) -> list[Tree]:
    match tree:
        case ["child", part]:
            return [part]
        case ["series" | "parallel", *parts]:
            return [child for part in parts for child in _children_of(part)]
        case _:
            return []


def value_of(tree: Tree) -> Any:
    """Return what a program must return."""
    match tree:
        case ["step" | "flaky", int(x), *_]:
            return x + 1
        case ["local", x]:
            return x
        case ["signal", name]:
            return f"value of {name}"
        case ["series" | "parallel", *parts]:
            return [value_of(part) for part in parts]
        case ["child", part]:
            return value_of(part)
        case _:
            return tree[0]


def signals_of(tree: Tree) -> list[str]:
    """Return the signals that a run waits for."""
    match tree:
        case ["signal", name]:
            return [name]
        case ["series" | "parallel", *parts]:
            return [name for part in parts for name in signals_of(part)]
        case _:
            return []


def steps_of(tree: Tree) -> int:
    """Return how many steps, child runs included, a run itself schedules."""
    match tree:
        case ["step" | "flaky" | "race" | "child" | "dropped", *_]:
            return 1
        case ["series" | "parallel", *parts]:
            return sum(map(steps_of, parts))
        case _:
            return 0


def runs_of(tree: Tree) -> int:
    """Return how many runs a program makes, itself included."""
    match tree:
        case ["child", part]:
            # The child interprets its part of the tree; the run that calls it is counted by who called that.
            return 1 + runs_of(part)
        case ["dropped", *_]:
            return 2
        case ["series" | "parallel", *parts]:
            return 1 + sum(runs_of(part) - 1 for part in parts)
        case _:
            return 1


def form_of(tree: Tree) -> str:
    """Return the name of the workflow that interprets a tree: both forms have their share."""
    return ("blocking", "awaiting")[len(str(tree)) % 2]


# -- the app ---------------------------------------------------------------------------------------------------------


def make_app(config: Mapping[str, Any]) -> Celery:
    """Return an app of its own, whose store writes down what it is asked."""
    settings = dict(config)
    recorder = Recorder(Path(settings.pop(OPERATIONS)))
    app = Celery("programs", set_as_current=False)
    app.conf.update(settings)
    code = Code(app, recorder)
    for task in (code.plus, code.flaky):
        # Of a method, Celery would ask a caller for one argument more.
        app.task(name=task.__name__, shared=False, typing=False)(task)
    durable_task(name="blocking", app=app, shared=False)(code.blocking)
    durable_task(name="awaiting", app=app, shared=False)(code.awaiting)
    durable_task(name=IDLE, app=app, shared=False)(code.idle)
    app.finalize()
    store: Any = RecordedStore(open_store(app, Settings.of(app)), recorder)
    durable_celery.app._bindings[app] = Binding(app, store=store)
    return app


class Code:
    """The tasks and workflows that interpret trees."""

    def __init__(self, app: Celery, recorder: Recorder) -> None:
        self.app, self.recorder = app, recorder

    # -- tasks

    def plus(self, x: int, pause: float) -> int:
        with self.execution():
            time.sleep(pause)
            return x + 1

    def flaky(self, x: int, times: int) -> int:
        with self.execution() as attempt:
            if attempt <= times:
                raise NotYetError(attempt)
            return x + 1

    @contextmanager
    def execution(self) -> Generator[int, None, None]:
        """Note that a step's task begins and, if it comes to that, ends: the step's effect."""
        step = current_step()
        assert step is not None
        call = self.recorder.call()
        place: dict[str, Any] = {"workflow": step.workflow_id, "step": step.step, "token": step.attempt}
        self.recorder.write(call, "execute", Phase.INVOKE, **place)
        try:
            yield step.attempt
        except NotYetError:
            self.recorder.write(call, "execute", Phase.FAIL, **place)
            raise
        self.recorder.write(call, "execute", Phase.OK, **place)

    # -- workflows

    def idle(self, ctx: WorkflowContext) -> Any:
        return ctx.wait_signal("never")

    def form(self, tree: Tree) -> Any:
        return self.app.tasks[form_of(tree)]

    def blocking(self, ctx: WorkflowContext, tree: Tree) -> Any:  # noqa: C901, PLR0911 - one case for each verb
        match tree:
            case ["step", x, pause]:
                return ctx.step("plus", x, pause)
            case ["flaky", x, times]:
                return ctx.options(retry=POLICY).step("flaky", x, times)
            case ["local", x]:
                return ctx.run(int, x)
            case ["sleep", seconds]:
                ctx.sleep(seconds)
            case ["signal", name]:
                return ctx.wait_signal(name)
            case ["series", *parts]:
                return [self.blocking(ctx, part) for part in parts]
            case ["parallel", *parts]:
                return ctx.gather(*[ctx.spawn(self.blocking, part) for part in parts])
            case ["child", part]:
                return ctx.step(self.form(part), part)
            case ["race", x, seconds]:
                ctx.race(step=ctx.start("plus", x, 0.3), alarm=ctx.timer(seconds))
            case ["dropped", seconds]:
                handle = ctx.start(self.app.tasks[IDLE])
                ctx.sleep(seconds)
                handle.cancel()
            case _:
                raise AssertionError(tree)
        return tree[0]

    async def awaiting(self, ctx: AsyncWorkflowContext, tree: Tree) -> Any:  # noqa: C901, PLR0911 - the same
        match tree:
            case ["step", x, pause]:
                return await ctx.step("plus", x, pause)
            case ["flaky", x, times]:
                return await ctx.options(retry=POLICY).step("flaky", x, times)
            case ["local", x]:
                return await ctx.run(int, x)
            case ["sleep", seconds]:
                await asyncio.sleep(seconds)
            case ["signal", name]:
                return await ctx.wait_signal(name)
            case ["series", *parts]:
                return [await self.awaiting(ctx, part) for part in parts]
            case ["parallel", *parts]:
                return await asyncio.gather(*[self.awaiting(ctx, part) for part in parts])
            case ["child", part]:
                return await ctx.step(self.form(part), part)
            case ["race", x, seconds]:
                await ctx.race(step=ctx.start("plus", x, 0.3), alarm=ctx.timer(seconds))
            case ["dropped", seconds]:
                handle = ctx.start(self.app.tasks[IDLE])
                await asyncio.sleep(seconds)
                handle.cancel()
            case _:
                raise AssertionError(tree)
        return tree[0]
