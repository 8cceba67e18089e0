"""What reads program trees as workflow code, in both forms, and the Celery tasks that it calls.

Each task counts its effects by token and idempotency key, as a database of the outside world would.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from datetime import timedelta
from typing import Any, cast

from durable_celery.errors import StepLostError, WaitTimeoutError, WorkflowCancelled
from durable_celery.policy import RetryPolicy
from durable_celery.testing.world import Task
from durable_celery.workflow import AsyncWorkflowContext, WorkflowContext
from tests.simulation.programs import LIVES, Tree
from tests.simulation.system import AskAgain, System
from tests.simulation.verbs import TWICE, VERBS, play_awaiting, play_blocking

#: So many attempts are allowed that chance does not use them up.
POLICY = RetryPolicy(initial_interval=0.5, maximum_interval=4, maximum_attempts=10_000)


class RevokedError(Exception):
    """A step was revoked by a client."""


class Code:
    """The tasks and flows that read trees, and their effects."""

    def __init__(self, world: System) -> None:
        self.world = world
        #: token -> idempotency key -> how often the effect was had.
        self.effects: dict[int, Counter[str]] = defaultdict(Counter)
        self._failed: Counter[str] = Counter()
        self._asked: Counter[int] = Counter()
        self.plus = world.task(self._plus, "plus")
        self.flaky = world.task(self._flaky, "flaky")
        self.broken = world.task(self._broken, "broken")
        self.again = world.task(self._again, "again")
        self.undo = world.task(self._plus, "undo")
        self.asked = world.task(self.ask, "asked")
        self.draw = world.task(lambda token, *_drawn: self._plus(token) - 1, "draw")
        self.forms = [world.flow(self.blocking, "blocking"), world.flow(self.awaiting, "awaiting")]
        self.idle = world.flow(lambda ctx: ctx.wait_signal("never"), "idle")
        #: It ends at about the time when it is cancelled, or when its parent ends.
        self.brief = world.flow(lambda ctx: ctx.sleep(0.5), "brief")

    def form_of(self, tree: Tree, form: int) -> Task:
        """Return the form in which the child of a node runs."""
        return self.forms[form if tree[2] == "same" else 1 - form]

    # -- effects -----------------------------------------------------------------------------------------------------

    def _key(self) -> str:
        claim = self.world.running.claim
        return str(claim.key) if claim is not None else "no claim"

    def _plus(self, token: int) -> int:
        self.effects[token][self._key()] += 1
        self.world.mishap()
        return token + 1

    def _flaky(self, token: int, times: int) -> int:
        key = self._key()
        self._failed[key] += 1
        if self._failed[key] <= times:
            raise ValueError(f"failure {self._failed[key]}")
        return self._plus(token)

    def _broken(self, token: int) -> None:
        self._plus(token)
        raise KeyError(token)

    def _again(self, token: int, *, is_ready: bool = False) -> int:
        if not is_ready:
            raise AskAgain(token)
        return self._plus(token)

    def _local(self, token: int, times: int) -> int:
        """Be a local step; its effects are counted under no key."""
        self._failed[f"local {token}"] += 1
        if self._failed[f"local {token}"] <= times:
            raise ValueError("local failure")
        self.effects[token]["local"] += 1
        self.world.mishap()
        return token

    def ask(self, token: int) -> int:
        """Tell how often this was asked; a question has no effect that counts."""
        self._asked[token] += 1
        self.world.mishap()
        return self._asked[token]

    # -- forms -------------------------------------------------------------------------------------------------------

    def blocking(self, ctx: WorkflowContext, tree: Tree, done: list[Any] | None = None) -> Any:  # noqa: C901, PLR0911, PLR0912 - one case for each kind of node
        match tree:
            case ["lives", part, *parts]:
                done = [*(done or []), self.blocking(ctx, part)]
                if parts:
                    # Nobody waits for it, and it must not ring in the next run.
                    ctx.timer(1)
                    ctx.continue_as_new([LIVES, *parts], done=done)
                return done
            case ["child", part, _]:
                return ctx.step(self.form_of(tree, 0), part)
            case ["series", *trees]:
                return [self.blocking(ctx, part) for part in trees]
            case ["parallel" | "group" | "queue" | "event", *trees]:
                return ctx.gather(*[ctx.spawn(self.blocking, part) for part in trees])
            case ["race branch" | "timeout" | "wait for", part, limit]:
                won = ctx.race(branch=ctx.spawn(self.blocking, part), alarm=ctx.timer(limit))
                return won.value if won.name == "branch" else "too late"
            case ["guarded", part, token]:
                try:
                    return self.blocking(ctx, part)
                except WorkflowCancelled:
                    ctx.step(self.undo, token)
                    raise
            case ["sleep", seconds]:
                ctx.sleep(seconds)
            case ["until", seconds]:
                ctx.sleep_until(ctx.now() + timedelta(seconds=seconds))
            case ["dropped step" | "dropped child", *_, seconds]:
                handle = self._start_dropped(ctx, tree)
                try:
                    ctx.sleep(seconds)
                finally:
                    handle.cancel()
            case ["forgotten step" | "forgotten child", _]:
                self._start_dropped(ctx, tree)
            case _:
                return self._blocking_leaf(ctx, tree)
        return tree[0]

    def _blocking_leaf(self, ctx: WorkflowContext, tree: Tree) -> Any:  # noqa: C901, PLR0911 - one case for each verb
        match tree:
            case ["broken" | "revocable" | "late", *_]:
                try:
                    return self._start_risky(ctx, tree).result()
                except (KeyError, StepLostError, RevokedError, TimeoutError) as error:
                    return _excuse(tree, error)
            case ["handles", *tokens]:
                return ctx.gather(*[ctx.start(self.plus, token) for token in tokens])
            case ["local", token, times]:
                return ctx.options(retry=POLICY).run(self._local, token, times)
            case ["signal", name, _]:
                return ctx.wait_signal(name)
            case ["maybe", name, limit, _]:
                try:
                    return ctx.wait_signal(name, timeout=limit)
                except WaitTimeoutError:
                    return "none"
            case ["race", token, limit]:
                return list(ctx.race(step=ctx.start(self.plus, token), alarm=ctx.timer(limit)))
            case ["patched", number]:
                return ctx.patched(f"change {number}")
            case [kind, *_] if kind in VERBS:
                return play_blocking(VERBS[kind].steps(self, ctx, tree))
            case _:
                return self._start_plain(ctx, tree).result()

    async def awaiting(self, ctx: AsyncWorkflowContext, tree: Tree, done: list[Any] | None = None) -> Any:  # noqa: C901, PLR0911, PLR0912 - as above
        match tree:
            case ["lives", part, *parts]:
                done = [*(done or []), await self.awaiting(ctx, part)]
                if parts:
                    # Nobody waits for it, and it must not ring in the next run.
                    ctx.timer(1)
                    ctx.continue_as_new([LIVES, *parts], done=done)
                return done
            case ["child", part, _]:
                return await ctx.step(self.form_of(tree, 1), part)
            case ["series", *trees]:
                return [await self.awaiting(ctx, part) for part in trees]
            case ["parallel", *trees]:
                return await ctx.gather(*[ctx.spawn(self.awaiting, part) for part in trees])
            case ["group" | "queue" | "event", *_] | ["race branch" | "timeout" | "wait for", *_]:
                return await self._plain_asyncio(ctx, tree)
            case ["guarded", part, token]:
                try:
                    return await self.awaiting(ctx, part)
                except WorkflowCancelled:
                    await ctx.step(self.undo, token)
                    raise
            case ["sleep", seconds]:
                await asyncio.sleep(seconds)
            case ["until", seconds]:
                await ctx.sleep_until(ctx.now() + timedelta(seconds=seconds))
            case ["dropped step" | "dropped child", *_, seconds]:
                handle = self._start_dropped(ctx, tree)
                try:
                    await ctx.sleep(seconds)
                finally:
                    handle.cancel()
            case ["forgotten step" | "forgotten child", _]:
                self._start_dropped(ctx, tree)
            case _:
                return await self._awaiting_leaf(ctx, tree)
        return tree[0]

    async def _awaiting_leaf(self, ctx: AsyncWorkflowContext, tree: Tree) -> Any:  # noqa: C901, PLR0911 - as above
        match tree:
            case ["broken" | "revocable" | "late", *_]:
                try:
                    return await self._start_risky(ctx, tree)
                except (KeyError, StepLostError, RevokedError, TimeoutError) as error:
                    return _excuse(tree, error)
            case ["handles", *tokens]:
                return await asyncio.gather(*[ctx.start(self.plus, token) for token in tokens])
            case ["local", token, times]:
                return await ctx.options(retry=POLICY).run(self._local, token, times)
            case ["signal", name, _]:
                return await ctx.wait_signal(name)
            case ["maybe", name, limit, _]:
                try:
                    return await ctx.wait_signal(name, timeout=limit)
                except WaitTimeoutError:
                    return "none"
            case ["race", token, limit]:
                return list(await ctx.race(step=ctx.start(self.plus, token), alarm=ctx.timer(limit)))
            case ["patched", number]:
                return ctx.patched(f"change {number}")
            case [kind, *_] if kind in VERBS:
                return await play_awaiting(VERBS[kind].steps(self, ctx, tree))
            case _:
                return await self._start_plain(ctx, tree)

    async def _plain_asyncio(self, ctx: AsyncWorkflowContext, tree: Tree) -> Any:  # noqa: PLR0911 - as above
        """Wait by what asyncio offers, and not by verbs of the context."""
        match tree:
            case ["group", *trees]:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self.awaiting(ctx, part)) for part in trees]
                return [task.result() for task in tasks]
            case ["queue", *trees]:
                return await self._by_queue(ctx, trees)
            case ["event", *trees]:
                return await self._by_event(ctx, trees)
            case ["race branch", part, limit]:
                won = await ctx.race(branch=ctx.spawn(self.awaiting, part), alarm=ctx.timer(limit))
                return won.value if won.name == "branch" else "too late"
            case ["timeout", part, limit]:
                try:
                    async with asyncio.timeout(limit):
                        return await self.awaiting(ctx, part)
                except TimeoutError:
                    return "too late"
            case [_, part, limit]:
                try:
                    return await asyncio.wait_for(self.awaiting(ctx, part), limit)
                except TimeoutError:
                    return "too late"
            case _:
                raise AssertionError(tree)

    async def _by_queue(self, ctx: AsyncWorkflowContext, trees: list[Tree]) -> list[Any]:
        """Put results into a queue of one place, and take them out in another task."""
        queue: asyncio.Queue[Any] = asyncio.Queue(1)

        async def produce() -> None:
            for part in trees:
                await queue.put(await self.awaiting(ctx, part))

        producer = asyncio.ensure_future(produce())
        try:
            return [await queue.get() for _ in trees]
        finally:
            producer.cancel()

    async def _by_event(self, ctx: AsyncWorkflowContext, trees: list[Tree]) -> list[Any]:
        """Do the first part, and let an event say to the others that it is done."""
        event = asyncio.Event()

        async def follow(part: Tree) -> Any:
            await event.wait()
            return await self.awaiting(ctx, part)

        async def lead() -> Any:
            value = await self.awaiting(ctx, trees[0])
            event.set()
            return value

        return await asyncio.gather(lead(), *[follow(part) for part in trees[1:]])

    # -- what both forms call the same way ---------------------------------------------------------------------------

    def _start_plain(self, ctx: WorkflowContext | AsyncWorkflowContext, tree: Tree) -> Any:
        match tree:
            case ["flaky", token, times]:
                return ctx.options(retry=POLICY).start(self.flaky, token, times)
            case ["again", token]:
                return ctx.start(self.again, token)
            case ["draw", token]:
                drawn = [ctx.random.randrange(1000), str(ctx.uuid4()), ctx.now().isoformat()]
                return ctx.start(cast("Any", self.draw), token, *drawn)
            case ["step", token]:
                return ctx.start(self.plus, token)
            case _:
                raise AssertionError(tree)

    def _start_risky(self, ctx: WorkflowContext | AsyncWorkflowContext, tree: Tree) -> Any:
        match tree:
            case ["broken", token]:
                return ctx.options(retry=TWICE).start(self.broken, token)
            case ["late", token, limit]:
                return ctx.options(timeout=limit, name="in time", priority=3).start(self.plus, token)
            case _:
                return ctx.start(self.plus, tree[1])

    def _start_dropped(self, ctx: WorkflowContext | AsyncWorkflowContext, tree: Tree) -> Any:
        match tree:
            case ["dropped step" | "forgotten step", token, *_]:
                return ctx.start(self.plus, token)
            case ["dropped child", "idle", _]:
                # It never ends by itself, and the code may be stopped before it drops it.
                return ctx.options(parent_close="cancel").start(self.idle)
            case _:
                return ctx.start(self.brief)


def _excuse(tree: Tree, error: Exception) -> str:
    """Return what a node whose step failed gives in place of its result."""
    excuses = {"broken": (KeyError, StepLostError), "revocable": (RevokedError,), "late": (TimeoutError,)}
    if not isinstance(error, excuses[tree[0]]):
        raise error
    return {"broken": "gave up", "revocable": "revoked", "late": "late"}[tree[0]]
