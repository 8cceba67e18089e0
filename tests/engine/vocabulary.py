"""More workflows with all that they need, as in :mod:`tests.engine.programs`: the verbs that are composed of others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from durable_celery.callbacks import CallbackVerbs
from durable_celery.client import Client
from durable_celery.codec import CallbackToken
from durable_celery.current import Pulse
from durable_celery.engine import Engine
from durable_celery.errors import (
    CallbackFailedError,
    CompleteLater,
    EventCancelledError,
    EventConflictError,
    HeartbeatTimeoutError,
    InvalidSignalError,
    StepLostError,
    WaitTimeoutError,
    WorkflowClosedError,
    WorkflowConflictError,
)
from durable_celery.foreign import NotYetError
from durable_celery.named_events import NamedEvent, event
from durable_celery.policy import RetryPolicy
from durable_celery.store.protocol import RunMessage, StepKey
from durable_celery.testing.world import World
from durable_celery.workflow import (
    UPDATE,
    AsyncWorkflowContext,
    ForeignTask,
    Handlers,
    Signal,
    Tolerance,
    WorkflowContext,
)
from durable_celery.workflow.foreign import OUTCOME, SEND
from durable_celery.workflow.named_events import EVENT, EVENT_PREFIX, PUBLISH, TELL, WAIT
from tests.engine.programs import CANCELLED, DONE, FAILED, Outcomes, Program, arithmetic
from tests.workflow.signatures import chain, chord, sig


def batch_of_branches(world: World) -> Outcomes:
    plus, double = arithmetic(world)

    def branch(ctx: WorkflowContext, x: int) -> Any:
        return ctx.step(double, ctx.step(plus, x))

    def main(ctx: WorkflowContext) -> list[int]:
        return ctx.map(branch, range(5), max_concurrency=2).raise_if_failed().results

    world.start(world.flow(main))
    return {"w": (DONE, [2, 4, 6, 8, 10])}


def batch_that_is_decided(world: World) -> Outcomes:
    """Which items end is chance; that enough of them do is not, and nothing goes on afterwards."""
    plus, _ = arithmetic(world)

    async def main(ctx: AsyncWorkflowContext) -> list[Any]:
        async def slow(inner: AsyncWorkflowContext, x: int) -> int:
            await inner.sleep(x * 10)
            return int(await inner.step(plus, x))

        batch = await ctx.map(slow, range(6), max_concurrency=3, tolerate=Tolerance(successes=2))
        return [batch.is_successful, len(batch.results), [str(item.status) for item in batch.items[4:]]]

    world.start(world.flow(main))
    return {"w": (DONE, [True, 2, ["skipped", "skipped"]])}


def saga_that_fails(world: World) -> Outcomes:
    undone: list[int] = []
    plus, _ = arithmetic(world)
    undo = world.task(undone.append, "undo")

    def no() -> None:
        raise ValueError("declined")

    refuse = world.task(no, "no")

    def main(ctx: WorkflowContext) -> None:
        with ctx.saga() as saga:
            saga.compensate(undo, ctx.step(plus, 1))
            saga.compensate(undo, ctx.step(plus, 2))
            ctx.options(retry=RetryPolicy(initial_interval=0.5, maximum_attempts=30)).step(plus, 3)
            ctx.step(refuse)

    world.start(world.flow(main))
    return {"w": (FAILED, "declined")}


def saga_that_is_cancelled(world: World) -> Outcomes:
    plus, double = arithmetic(world)

    def main(ctx: WorkflowContext) -> None:
        with ctx.saga() as saga:
            saga.compensate(double, ctx.step(plus, 1))
            ctx.wait_signal("never")

    world.start(world.flow(main))
    world.at(6, world.cancel)
    return {"w": (CANCELLED, "asked")}


def polled(world: World) -> Outcomes:
    looks: list[int] = []

    def look() -> int:
        looks.append(1)
        return len(looks)

    task = world.task(look, "look")

    def main(ctx: WorkflowContext) -> bool:
        return bool(ctx.poll(task, every=5, until=lambda number: number >= 3, timeout=900) >= 3)

    world.start(world.flow(main))
    return {"w": (DONE, True)}


def conditions(world: World) -> Outcomes:
    plus, _ = arithmetic(world)

    def main(ctx: WorkflowContext) -> list[int]:
        done: list[int] = []

        def branch(inner: WorkflowContext, x: int) -> None:
            done.append(inner.step(plus, x))

        for x in range(3):
            ctx.spawn(branch, x)
        ctx.wait_until(lambda: len(done) == 3, timeout=900)
        return sorted(done)

    world.start(world.flow(main))
    return {"w": (DONE, [1, 2, 3])}


def shielded(world: World) -> Outcomes:
    plus, double = arithmetic(world)

    def main(ctx: WorkflowContext) -> None:
        def must_end(inner: WorkflowContext) -> None:
            inner.sleep(5)
            inner.step(double, inner.step(plus, 1))

        ctx.shield(ctx.spawn(must_end))

    world.start(world.flow(main))
    world.at(3, world.cancel)
    return {"w": (CANCELLED, "asked")}


def children_left(world: World) -> Outcomes:
    """A parent ends, with a child that goes on, one that is cancelled, and one that it waits for."""
    plus, _ = arithmetic(world)

    def child(ctx: WorkflowContext, seconds: float) -> Any:
        ctx.sleep(seconds)
        return ctx.step(plus, 1)

    kid = world.flow(child)

    def main(ctx: WorkflowContext) -> str:
        ctx.options(parent_close="abandon").start(kid, 9)
        ctx.options(parent_close="cancel").start(kid, 90)
        ctx.options(parent_close="wait").start(kid, 4)
        ctx.step(plus, 1)
        return "ended"

    world.start(world.flow(main))
    return {
        "w": (DONE, "ended"),
        "w/1.1": (DONE, 2),
        "w/1.2": (CANCELLED, "cancelled by its parent w"),
        "w/1.3": (DONE, 2),
    }


def child_abandoned_by_a_cancel(world: World) -> Outcomes:
    plus, _ = arithmetic(world)

    def child(ctx: WorkflowContext) -> Any:
        ctx.sleep(8)
        return ctx.step(plus, 1)

    kid = world.flow(child)

    def main(ctx: WorkflowContext) -> None:
        ctx.options(parent_close="abandon").start(kid)
        ctx.wait_signal("never")

    world.start(world.flow(main))
    world.at(3, world.cancel)
    return {"w": (CANCELLED, "asked"), "w/1.1": (DONE, 2)}


def versions(world: World) -> Outcomes:
    """Runs and children of two versions side by side, some with a mark of a change that needs none any more."""
    plus, double = arithmetic(world)

    def old(ctx: WorkflowContext, x: int) -> Any:
        return ctx.step(plus, ctx.step(plus, x))

    async def new(ctx: AsyncWorkflowContext, x: int) -> Any:
        ctx.deprecate_patch("doubled")
        return await ctx.step(double, await ctx.step(plus, x))

    first, second = world.flow(old, "price"), world.flow(new, "price", version=2)

    def main(ctx: WorkflowContext) -> list[Any]:
        return ctx.gather(ctx.start(first, 1), ctx.start(second, 1))

    world.start(world.flow(main))
    world.start(second, 4, id="new")
    world.start(first, 4, id="old")
    return {"w": (DONE, [3, 4]), "new": (DONE, 10), "old": (DONE, 6)}


def told(world: World) -> Outcomes:
    """What is published and streamed is there once, whatever goes wrong."""
    plus, _ = arithmetic(world)

    def main(ctx: WorkflowContext) -> int:
        stream, total = ctx.stream("sums"), 0
        for x in range(3):
            total = ctx.step(plus, total)
            ctx.publish("total", total)
            stream.append(ctx.run(str, x))
        return total

    world.start(world.flow(main))
    return {"w": (DONE, 3)}


def updated(world: World) -> Outcomes:
    """Updates, one refused, one asked for again; their outcomes decide the result."""
    plus, _ = arithmetic(world)
    handlers = Handlers()

    @handlers.update
    def add(ctx: WorkflowContext, x: int) -> int:
        ctx.state.sums.append(ctx.step(plus, x))
        ctx.sleep(1)
        return len(ctx.state.sums)

    @add.validator
    def is_small(_: Any, x: int) -> None:
        if x > 10:
            raise ValueError(x)

    def main(ctx: WorkflowContext) -> list[int]:
        ctx.state.sums = []
        ctx.wait_until(lambda: len(ctx.state.sums) == 2 and not ctx.open_updates)
        return sorted(ctx.state.sums)

    world.start(world.flow(main, handlers=handlers))
    _ask(world, "one", 1)
    world.at(2, lambda: _ask(world, "big", 11))
    world.at(3, lambda: _ask(world, "two", 2))
    return {"w": (DONE, [2, 3])}


def updated_by_async(world: World) -> Outcomes:
    plus, double = arithmetic(world)
    handlers = Handlers(is_async=True)

    @handlers.update(name="add")
    async def add(ctx: AsyncWorkflowContext, x: int) -> int:
        ctx.publish("last", x)
        sums = await asyncio.gather(ctx.step(plus, x), ctx.step(double, x))
        ctx.state.total += sum(sums)
        return int(ctx.state.total)

    async def main(ctx: AsyncWorkflowContext) -> int:
        ctx.state.total = 0
        await ctx.wait_signal("end", timeout=900)
        await ctx.wait_until(lambda: not ctx.open_updates)
        return int(ctx.state.total)

    world.start(world.flow(main, handlers=handlers), delay=2)
    _ask(world, "one", 1)
    world.at(4, lambda: _ask(world, "two", 2))
    world.at(4, lambda: world.signal("end"))
    return {"w": (DONE, 11)}


def updated_and_cancelled(world: World) -> Outcomes:
    plus, _ = arithmetic(world)
    handlers = Handlers()

    @handlers.update
    def add(ctx: WorkflowContext, x: int) -> None:
        ctx.step(plus, x)
        ctx.wait_signal("never")

    def main(ctx: WorkflowContext) -> None:
        try:
            ctx.wait_signal("never")
        finally:
            ctx.step(plus, 7)

    world.start(world.flow(main, handlers=handlers))
    _ask(world, "one", 1)
    world.at(5, world.cancel)
    return {"w": (CANCELLED, "asked")}


def _ask(world: World, key: str, x: int) -> None:
    world.signal(f"{UPDATE}add", [key, [x], {}], key=key)


class Outside(CallbackVerbs):
    """What is outside of a world: it repeats what the store did not acknowledge."""

    def __init__(self, world: World) -> None:
        self.world, self.store, self.codec, self.inbox_limit = world, world.client, world.codec, 0
        self.engine = cast("Engine", self)

    def publish(self, messages: Sequence[RunMessage | None]) -> None:
        for message in messages:
            self.world._publish(message)

    def say(self, verb: Callable[..., object], *args: Any) -> None:
        self.world._insist(partial(verb, *args))

    def _send(self, token: CallbackToken, message: str, key: str, *, room: int = 0) -> bool:
        try:
            added = self.world._insist(partial(super()._send, token, message, key, room=room))
        except WorkflowClosedError:
            # Faults have delayed a sign of life until the run had ended. An answer has its place in the history then.
            assert key.startswith("beat:")
            return False
        if (token.workflow_id, key) not in self.world._signal_keys:
            self.world._signal_keys.add((token.workflow_id, key))
            self.world.signals.append((token.workflow_id, token.signal, json.loads(message)))
        return added

    def later(self, seconds: float, verb: Callable[..., object], *args: Any) -> None:
        self.world.at(seconds, partial(self.say, verb, *args))


def callbacks(world: World) -> Outcomes:
    """Answers that come later, before the step has returned, as a failure, after signs of life, and not at all."""
    outside = Outside(world)
    later = world.task(lambda token, x: outside.later(3, outside.complete_callback, token, x), "later")
    at_once = world.task(lambda token: outside.say(outside.complete_callback, token, "at once"), "at_once")
    refuse = world.task(lambda token: outside.later(3, outside.fail_callback, token, "no funds"), "refuse")

    def slowly(token: str) -> None:
        for seconds in (90, 180, 270):
            outside.later(seconds, outside.heartbeat_callback, token)
        outside.later(300, outside.complete_callback, token, "slowly")

    slow = world.task(slowly, "slowly")

    def main(ctx: WorkflowContext) -> list[Any]:
        seen = [ctx.wait_callback(later, 1, timeout=900), ctx.wait_callback(at_once)]
        try:
            ctx.wait_callback(refuse, timeout=900)
        except CallbackFailedError as error:
            seen.append(str(error))
        seen.append(ctx.wait_callback(slow, timeout=900, heartbeat=150))
        try:
            ctx.callback(heartbeat=5).result()
        except HeartbeatTimeoutError:
            seen.append("silence")
        return seen

    world.start(world.flow(main))
    return {"w": (DONE, [1, "at once", "no funds", "slowly", "silence"])}


def callback_in_a_race(world: World) -> Outcomes:
    """One that is given up, and whose answer comes all the same."""
    outside = Outside(world)
    submit = world.task(lambda token: outside.later(30, outside.complete_callback, token, "too late"), "submit")

    async def main(ctx: AsyncWorkflowContext) -> list[Any]:
        callback = ctx.callback(timeout=900, heartbeat=800)
        await ctx.step(submit, callback.token)
        won = await ctx.race(answer=callback, alarm=ctx.timer(4))
        await ctx.sleep(300)
        return [won.name, callback.cancelled()]

    world.start(world.flow(main))
    return {"w": (DONE, ["alarm", True])}


@dataclass(frozen=True)
class Vote:
    by: str


voted = Signal("voted", Vote)


def typed_signals(world: World) -> Outcomes:
    """The second was not checked by its sender."""
    plus, _ = arithmetic(world)

    def main(ctx: WorkflowContext) -> list[Any]:
        seen: list[Any] = []
        for number in range(3):
            try:
                seen.append(ctx.wait_signal(voted, timeout=900).by)
            except InvalidSignalError:
                seen.append(ctx.step(plus, number))
        return seen

    world.start(world.flow(main))
    for seconds, vote in enumerate(({"by": "ann"}, {"buy": "bob"}, {"by": "tom"})):
        world.at(seconds, partial(world.signal, "voted", vote, key=str(seconds)))
    return {"w": (DONE, ["ann", 2, "tom"])}


def scopes(world: World) -> Outcomes:
    """A block whose time is up while its clean-up goes on, and one that another branch ends."""
    plus, double = arithmetic(world)

    def main(ctx: WorkflowContext) -> list[Any]:
        def stop(inner: WorkflowContext, scope: Any) -> None:
            inner.step(plus, 1)
            scope.cancel()

        cleaned = 0
        with suppress(WaitTimeoutError), ctx.timeout(4):
            try:
                ctx.wait_signal("never")
            except asyncio.CancelledError:
                cleaned = ctx.step(double, 2)
                raise
        with ctx.cancel_scope() as scope:
            ctx.spawn(stop, scope)
            ctx.sleep(9000)
        return [cleaned, scope.cancelled, ctx.step(plus, 5)]

    world.start(world.flow(main))
    return {"w": (DONE, [4, True, 6])}


def scope_that_is_cancelled(world: World) -> Outcomes:
    """The run is cancelled in a scope, about when the scope's time is up."""
    _, double = arithmetic(world)

    def main(ctx: WorkflowContext) -> None:
        with ctx.timeout(6):
            try:
                ctx.sleep(9000)
            except asyncio.CancelledError:
                ctx.sleep(3)
                ctx.step(double, 2)
                raise

    world.start(world.flow(main))
    world.at(6, world.cancel)
    return {"w": (CANCELLED, "asked")}


def children_with_chosen_ids(world: World) -> Outcomes:
    """One that ends, one whose id is taken by a run like it, and one that is cancelled with the parent's end."""
    plus, _ = arithmetic(world)

    def child(ctx: WorkflowContext, x: int) -> Any:
        ctx.sleep(x)
        return ctx.step(plus, x)

    kid = world.flow(child)

    def main(ctx: WorkflowContext) -> list[Any]:
        ctx.options(workflow_id="left", parent_close="cancel").start(kid, 9000)
        done = ctx.options(workflow_id="invoice-7").step(kid, 2)
        try:
            ctx.options(workflow_id="taken").step(kid, 5)
        except WorkflowConflictError as error:
            return [done, error.workflow_id]
        return []

    world.start(kid, 5, id="taken")
    world.start(world.flow(main))
    return {
        "w": (DONE, [3, "taken"]),
        "invoice-7": (DONE, 3),
        "taken": (DONE, 6),
        "left": (CANCELLED, "cancelled by its parent w"),
    }


def canvas(world: World) -> Outcomes:
    """A chord of chains with a child in it, what is linked, and a chain that fails."""
    plus, _ = arithmetic(world)
    linked: list[int] = []
    world.task(sum, "total")
    world.task(linked.append, "link")

    def no(x: int) -> None:
        raise ValueError(f"declined {x}")

    world.task(no, "no")
    kid = world.flow(lambda ctx, x: ctx.step(plus, x), "kid")

    def main(ctx: WorkflowContext) -> list[Any]:
        child = {**sig(kid.name), "durable": True}
        header = [chain(sig(plus.name, 1), child), sig(plus.name, 4, link=sig("link"))]
        total = ctx.step(chord(header, sig("total")))
        try:
            ctx.step(chain(sig(plus.name, 1), sig("no"), sig(plus.name)))
        except ValueError as error:
            return [total, str(error), len(linked) > 0]
        return []

    world.start(world.flow(main))
    return {"w": (DONE, [8, "declined 2", True])}


def foreign(world: World) -> Outcomes:
    """A service that has its outcome some time after it got the last of two messages."""
    sent: list[int] = []

    def send(_name: str, call: list[Any], _options: Any, task_id: str | None = None) -> str:
        sent.append(call[0][0])
        return task_id or "id"

    def outcome(task_id: str) -> Any:
        if len(sent) < 2:
            raise NotYetError(task_id)
        return [task_id, sent[-1]]

    world.task(send, SEND)
    world.task(outcome, OUTCOME)

    def main(ctx: WorkflowContext) -> Any:
        return ctx.step(ForeignTask("billing.charge", resend_after=20), 7)

    world.start(world.flow(main))
    return {"w": (DONE, ["id", 7])}


class Events:
    """Named events of a world: the library's own run and steps, on the engine of whichever process executes them."""

    def __init__(self, world: World) -> None:
        self.world, self.flow = world, world.flow(event, EVENT)
        world.task(lambda name: self.named(name).wait(str(self.step)), WAIT)
        world.task(lambda name, value=None: self.publish(name, value), PUBLISH)
        world.task(self.tell, TELL)

    @property
    def step(self) -> StepKey:
        claim = self.world.running.claim
        assert claim is not None
        return claim.key

    def named(self, name: str) -> NamedEvent:
        engine = self.world.running.engine
        client = Client(store=engine.store, engine=engine, codec=self.world.codec)
        return NamedEvent(name, client, lambda workflow_id: self.world.start(self.flow, id=workflow_id))

    def publish(self, name: str, value: Any) -> None:
        self.named(name).publish(value)

    def tell(self, keys: list[str], *, is_cancelled: bool) -> None:
        self.named(self.step.workflow_id.removeprefix(EVENT_PREFIX)).tell(keys, is_cancelled=is_cancelled)


def named_event(world: World) -> Outcomes:
    """Some wait for it, in both forms; one gives up and waits again, one publishes it twice, one comes later."""
    Events(world)

    def patient(ctx: WorkflowContext) -> Any:
        return ctx.wait_event("paid")

    async def hasty(ctx: AsyncWorkflowContext) -> list[Any]:
        with suppress(WaitTimeoutError):
            await ctx.wait_event("paid", 3)
        won = await ctx.race(event=ctx.event("paid"), alarm=ctx.timer(1100))
        return [won.name, won.value]

    def publisher(ctx: WorkflowContext) -> list[Any]:
        ctx.sleep(30)
        ctx.publish_event("paid", {"by": "card"})
        ctx.publish_event("paid", {"by": "card"})
        try:
            ctx.publish_event("paid", {"by": "cheque"})
        except EventConflictError:
            return [ctx.wait_event("paid")]
        return []

    for flow in (patient, hasty, publisher):
        world.start(world.flow(flow), id=flow.__name__)
    paid = {"by": "card"}
    return {
        "patient": (DONE, paid),
        "hasty": (DONE, ["event", paid]),
        "publisher": (DONE, [paid]),
        f"{EVENT_PREFIX}paid": (DONE, paid),
    }


def named_event_that_is_cancelled(world: World) -> Outcomes:
    Events(world)

    def main(ctx: WorkflowContext) -> list[str]:
        seen = []
        for _ in range(2):
            try:
                ctx.wait_event("paid")
            except EventCancelledError as error:
                seen.append(str(error))
        return seen

    world.start(world.flow(main))
    world.at(30, lambda: world.cancel(f"{EVENT_PREFIX}paid"))
    return {
        "w": (DONE, ["event 'paid' was cancelled: it will not be published"] * 2),
        f"{EVENT_PREFIX}paid": (CANCELLED, "asked"),
    }


def several_runs(world: World) -> Outcomes:
    """Each run takes a signal, leaves one for the next, and a step that nobody waits for."""
    plus, double = arithmetic(world)

    def main(ctx: WorkflowContext, month: int = 1, total: int = 0) -> list[Any]:
        ctx.start(double, month)
        total = ctx.step(plus, total) + ctx.wait_signal("payment")
        if month < 3:
            ctx.continue_as_new(month + 1, total=total)
        return [ctx.info.run, month, total]

    world.start(world.flow(main))
    for number, moment in enumerate((0, 0, 2), 1):
        world.at(moment, lambda number=number: world.signal("payment", 10 * number, key=f"{number}"))  # type: ignore[misc]
    return {"w": (DONE, [3, 3, 63])}


def several_runs_of_async_code_end_by_a_cancel(world: World) -> Outcomes:
    plus, _ = arithmetic(world)

    async def main(ctx: AsyncWorkflowContext, month: int = 1) -> None:
        await ctx.step(plus, month)
        await ctx.sleep(4)
        ctx.continue_as_new(month + 1)

    world.start(world.flow(main))
    world.at(10, world.cancel)
    return {"w": (CANCELLED, "asked")}


def children_of_several_runs(world: World) -> Outcomes:
    """Children that go on, that are cancelled, and that are waited for, each in another run; one goes on itself."""
    plus, _ = arithmetic(world)

    def child(ctx: WorkflowContext, seconds: float, more: int = 0) -> Any:
        ctx.sleep(seconds)
        if more:
            ctx.continue_as_new(seconds, more - 1)
        return ctx.step(plus, ctx.info.run)

    kid = world.flow(child)

    def main(ctx: WorkflowContext, policies: list[str], results: list[int]) -> list[int]:
        if not policies:
            return results
        ctx.options(parent_close=policies[0]).start(kid, 9 if policies[0] == "abandon" else 90)
        results = [*results, ctx.step(kid, 1, 2)]
        return ctx.continue_as_new(policies[1:], results)

    world.start(world.flow(main), ["cancel", "abandon"], [])
    return {
        "w": (DONE, [4, 4]),
        "w/1.1": (CANCELLED, "cancelled by its parent w"),
        "w/1.2": (DONE, 4),
        "w/2.1": (DONE, 2),
        "w/2.2": (DONE, 4),
    }


def progress_of_a_step(world: World) -> Outcomes:
    """Each attempt goes on where an earlier one has stopped; the third one comes to the end."""
    policy = RetryPolicy(initial_interval=0.5, maximum_attempts=30)

    def climb() -> int:
        process = world.running
        assert process.claim is not None
        pulse = Pulse(process.engine, process.claim)
        height = pulse.progress or 0
        if height == 2:
            return int(height)
        pulse.beat(height + 1)
        pulse.check()
        raise ConnectionError(f"at {height}")

    task = world.task(climb)

    def main(ctx: WorkflowContext) -> Any:
        return ctx.options(retry=policy, heartbeat_timeout=600).step(task)

    world.start(world.flow(main))
    return {"w": (DONE, 2)}


def attempts_that_take_too_long(world: World) -> Outcomes:
    """Two attempts go on for longer than they may; what they return is not used."""
    policy = RetryPolicy(initial_interval=0.5, maximum_attempts=30)
    seen: list[int] = []

    def crawl() -> int:
        seen.append(1)
        if len(seen) < 3:
            world.clock.advance(5)
            world.store.sweep()
        return 0 if len(seen) < 3 else 1

    task = world.task(crawl)

    async def main(ctx: AsyncWorkflowContext) -> Any:
        return await ctx.options(retry=policy, attempt_timeout=4).step(task)

    world.start(world.flow(main))
    return {"w": (DONE, 1)}


def told_from_outside(world: World) -> Outcomes:
    """Two steps leave their outcome to others, which comes when it comes; nobody comes for the third."""

    def hand_out() -> None:
        raise CompleteLater

    task = world.task(hand_out)

    def main(ctx: WorkflowContext) -> list[Any]:
        first, second = ctx.start(task), ctx.options(heartbeat_timeout=250).start(task)
        with_timeout = ctx.options(timeout=200).start(task)
        found = ctx.gather(first, second, with_timeout, return_exceptions=True)
        return [*found[:2], type(found[2]).__name__]

    world.start(world.flow(main))
    for seconds in (2, 40, 150):
        for number in (1, 2):
            key = StepKey(workflow_id="w", run=1, number=number)
            world.at(seconds, partial(world.complete, key, f"the {number}."))
    return {"w": (DONE, ["the 1.", "the 2.", "StepTimeoutError"])}


def long_steps_that_outlive_their_run(world: World) -> Outcomes:
    """Each run leaves one step that waits for others, and one that beats and fails; in the next run they are others."""

    def hand_out() -> None:
        raise CompleteLater

    def climb() -> None:
        process = world.running
        assert process.claim is not None
        pulse = Pulse(process.engine, process.claim)
        pulse.beat((pulse.progress or 0) + 1)
        pulse.check()
        raise ConnectionError("no end in sight")

    policy = RetryPolicy(initial_interval=0.5, maximum_attempts=30)
    outside, climbing = world.task(hand_out), world.task(climb)

    def main(ctx: WorkflowContext, month: int = 1) -> Any:
        ctx.options(heartbeat_timeout=90, timeout=900).start(outside)
        ctx.options(retry=policy, heartbeat_timeout=60, attempt_timeout=120).start(climbing)
        told = ctx.step(outside)
        return told if month == 3 else ctx.continue_as_new(month + 1)

    world.start(world.flow(main))
    for seconds in (2, 40, 150, 300, 600):
        for run in (1, 2, 3):
            key = StepKey(workflow_id="w", run=run, number=3)
            world.at(seconds, partial(world.complete, key, f"in run {run}"))
    return {"w": (DONE, "in run 3")}


def at_most_once(world: World) -> Outcomes:
    """Where nothing is lost it is a step like any other; where something is, the workflow hears of it."""
    begun: list[int] = []

    def fire() -> int:
        begun.append(1)
        return len(begun)

    task, (plus, _) = world.task(fire), arithmetic(world)

    def main(ctx: WorkflowContext) -> bool:
        try:
            is_once = ctx.options(at_most_once=True, retry=5).step(task) == 1
        except StepLostError:
            is_once = len(begun) <= 1
        return bool(is_once and ctx.step(plus, 1) == 2)

    world.start(world.flow(main))
    return {"w": (DONE, True)}


VOCABULARY: tuple[Program, ...] = (
    foreign,
    named_event,
    named_event_that_is_cancelled,
    canvas,
    children_with_chosen_ids,
    scopes,
    scope_that_is_cancelled,
    progress_of_a_step,
    attempts_that_take_too_long,
    told_from_outside,
    long_steps_that_outlive_their_run,
    at_most_once,
    batch_of_branches,
    batch_that_is_decided,
    saga_that_fails,
    saga_that_is_cancelled,
    polled,
    conditions,
    shielded,
    children_left,
    child_abandoned_by_a_cancel,
    versions,
    told,
    updated,
    updated_by_async,
    updated_and_cancelled,
    callbacks,
    callback_in_a_race,
    typed_signals,
    several_runs,
    several_runs_of_async_code_end_by_a_cancel,
    children_of_several_runs,
)
