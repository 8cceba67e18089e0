"""Random workflow programs over all verbs, in both forms, and random inputs for them.

A program is a tree of plain tuples. One generator interprets it for both forms: it yields each verb call, and the
form either makes the call or awaits it. So the two forms differ in nothing but that.

As a script it prints the histories of some programs: run under several PYTHONHASHSEEDs they must be the same.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import random
import sys
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from typing import Any

from durable_celery.codec import CallbackToken, failure_of, failure_text
from durable_celery.errors import DurableError
from durable_celery.events import (
    CancelRequested,
    Event,
    LocalStepCompleted,
    Output,
    RunContinued,
    SignalReceived,
    StepCompleted,
    StepFailed,
    StepScheduled,
    TimerFired,
    TimerStarted,
    encode,
)
from durable_celery.workflow import Signal, Tolerance, WorkflowContext
from tests.workflow.log import CODEC, Run, child, handlers_of, request
from tests.workflow.signatures import chain, chord, group, sig

Body = tuple[Any, ...]
Calls = Generator[Callable[[], Any], Any, None]

#: Verbs of both forms, with how many bodies they contain.
LEAVES = (
    "step",
    "start",
    "sleep",
    "wait",
    "run",
    "run_fails",
    "patched",
    "deprecate_patch",
    "chance",
    "race_signal",
    "gather",
    "cancel_last",
    "map",
    "poll",
    "publish",
    "stream",
    "until_updated",
    "typed",
    "callback",
    "wait_callback",
    "child",
    "event",
    "canvas",
    "continue",
    "limited",
)
BRANCHES = (
    "spawn",
    "join",
    "race",
    "gather_branches",
    "cancel_branch",
    "try",
    "group",
    "asyncio_wait",
    "timeout",
    "map_branches",
    "until",
    "saga",
    "limit",
    "scope",
)
NAMES = ("a", "b")
TYPED = (Signal("a", int), Signal("b", str), Signal("b", int | None))
#: Steps whose arguments or result hold a secret.
SECRET = ("submit", "submit_here", CallbackToken.MAKER)
#: How often local steps really ran.
ran: list[int] = []


def local(value: int) -> int:
    ran.append(value)
    return value + 1


def failing(value: int) -> int:
    ran.append(value)
    raise ValueError(f"local {value}")


def submit_here(token: str) -> str:
    ran.append(0)
    return "submitted"


class Interpreter:
    """Runs one program; ``trace`` is what it saw, and its result."""

    def __init__(self, ctx: Any, trace: list[Any]) -> None:
        self.ctx, self.trace = ctx, trace
        self.is_async = not isinstance(ctx, WorkflowContext)
        self.handles: list[Any] = []

    def body(self, body: Body) -> Calls:
        for operation in body:
            name, *rest = operation
            try:
                yield from getattr(self, f"do_{name}")(*rest)
            except (ValueError, TimeoutError, DurableError, ExceptionGroup) as error:
                self.trace.append([name, type(error).__name__, str(error)])

    def spawn(self, body: Body) -> Any:
        return self.ctx.spawn(branch_async if self.is_async else branch_sync, self.trace, body)

    def result(self, handle: Any) -> Callable[[], Any]:
        return (lambda: handle) if self.is_async else handle.result

    def do_step(self, value: int) -> Calls:
        self.trace.append((yield lambda: self.ctx.step("task", value)))

    def do_start(self, value: int) -> Calls:
        self.handles.append(self.ctx.options(queue="q", retry=value + 1).start("started", value))
        yield lambda: self.ctx.sleep(0)

    def do_limited(self, value: int) -> Calls:
        limits = {"start_timeout": value + 1, "attempt_timeout": value + 2, "heartbeat_timeout": 0.5}
        self.trace.append(
            (yield lambda: self.ctx.options(at_most_once=value % 2 == 0, retry=2, **limits).step("limited", value))
        )

    def do_cancel_last(self, _: int) -> Calls:
        if self.handles:
            self.trace.append(self.handles.pop().cancel())
        yield lambda: self.ctx.sleep(0)

    def do_sleep(self, value: int) -> Calls:
        yield lambda: self.ctx.sleep(value)
        self.trace.append(self.ctx.now().isoformat())

    def do_wait(self, value: int) -> Calls:
        timeout = None if value % 3 == 0 else value
        self.trace.append((yield lambda: self.ctx.wait_signal(NAMES[value % 2], timeout)))

    def do_typed(self, value: int) -> Calls:
        # What comes is a number, which is not always what is waited for.
        handle = self.ctx.signal(TYPED[value % 3])
        self.handles.append(handle)
        yield lambda: self.ctx.sleep(value % 2)
        if handle.done():
            self.trace.append((yield self.result(self.handles.pop(self.handles.index(handle)))))

    def do_callback(self, value: int) -> Calls:
        callback = self.ctx.callback(timeout=value or None, heartbeat=1 + value % 3 if value % 2 else None)
        self.handles.append(callback)
        arms = {"callback": callback, "step": self.ctx.start("submit", callback.token)}
        self.trace.append(list((yield lambda: self.ctx.race(**arms))))

    def do_wait_callback(self, value: int) -> Calls:
        submit = submit_here if value % 2 else "submit"
        self.trace.append((yield lambda: self.ctx.wait_callback(submit, timeout=5, heartbeat=value % 4 or None)))

    def do_run(self, value: int) -> Calls:
        self.trace.append((yield lambda: self.ctx.run(local, value)))

    def do_run_fails(self, value: int) -> Calls:
        yield lambda: self.ctx.options(retry=1 + value % 2).run(failing, value)

    def do_patched(self, value: int) -> Calls:
        if self.ctx.patched(f"change-{value % 3}"):
            yield from self.do_step(value)

    def do_deprecate_patch(self, value: int) -> Calls:
        self.ctx.deprecate_patch(f"change-{value % 3}")
        yield from self.do_step(value)

    def do_chance(self, _: int) -> Calls:
        self.trace += [self.ctx.random.random(), str(self.ctx.uuid4())]
        yield lambda: self.ctx.sleep(0)

    def do_race_signal(self, value: int) -> Calls:
        arms = {
            "signal": self.ctx.signal(NAMES[value % 2]),
            "step": self.ctx.start("racing"),
            "timer": self.ctx.timer(3),
        }
        self.trace.append(list((yield lambda: self.ctx.race(**arms))))

    def do_gather(self, value: int) -> Calls:
        handles = [self.ctx.start("gathered", index) for index in range(value % 4)]
        results = yield lambda: self.ctx.gather(*handles, return_exceptions=value % 2 == 0)
        self.trace.append([str(result) for result in results])

    def do_continue(self, value: int) -> Calls:
        # In a branch it is refused, and the program goes on; a third of the rest is left as it is.
        if value % 3 == 0:
            yield self.ctx.continue_as_new

    def do_map(self, value: int) -> Calls:
        tolerate = [None, 0, Tolerance(percent=40), Tolerance(successes=2)][value % 4]
        batch = yield lambda: self.ctx.map("mapped", range(value), max_concurrency=1 + value % 3, tolerate=tolerate)
        self.trace.append([str(item.status) for item in batch.items])

    def do_child(self, value: int) -> Calls:
        policy = [None, "cancel", "abandon", "wait"][value % 4]
        handle = self.ctx.options(workflow_id=f"child-{value}", parent_close=policy).start(child, value)
        self.trace.append(handle.workflow_id)
        if value % 2:
            self.trace.append((yield self.result(handle)))
        else:
            self.handles.append(handle)

    def do_event(self, value: int) -> Calls:
        name = NAMES[value % 2]
        if value % 3 == 0:
            yield lambda: self.ctx.publish_event(name, value)
        self.handles.append(self.ctx.event(name))
        self.trace.append((yield lambda: self.ctx.wait_event(name, value or None)))

    def do_canvas(self, value: int) -> Calls:
        failing = sig("linked", link=sig("link"), link_error=sig("errback", immutable=True))
        parts = [
            sig("alone", value),
            chain(sig("first"), sig("second", countdown=value), failing),
            group(sig("one"), chain(sig("two"), sig("three")), failing),
        ]
        canvas = [*parts, chord(parts, sig("body"))][value % 4]
        if value % 3:
            self.trace.append((yield lambda: self.ctx.step(canvas, value)))
        else:
            self.handles.append(self.ctx.start(canvas))

    def do_poll(self, value: int) -> Calls:
        timeout = None if value % 2 else 4
        self.trace.append(
            (yield lambda: self.ctx.poll("polled", every=1, until=lambda answer: answer % 3 == 0, timeout=timeout))
        )

    def do_publish(self, value: int) -> Calls:
        self.ctx.publish(NAMES[value % 2], [value, len(self.trace)])
        yield lambda: self.ctx.sleep(0)

    def do_stream(self, value: int) -> Calls:
        self.ctx.stream(NAMES[value % 2]).append(self.ctx.now().isoformat())
        yield lambda: self.ctx.sleep(0)

    def do_until_updated(self, value: int) -> Calls:
        """Wait for an update that comes, or for all that go on."""
        seen, timeout = len(self.trace), 1 + value
        done = (lambda: self.ctx.open_updates == 0) if value % 2 else (lambda: len(self.trace) > seen)
        yield lambda: self.ctx.wait_until(done, timeout)

    def do_map_branches(self, body: Body) -> Calls:
        def sync(ctx: Any, part: Body) -> str:
            return branch_sync(ctx, self.trace, part)

        async def plain(ctx: Any, part: Body) -> str:
            return await branch_async(ctx, self.trace, part)

        parts = [body[:1], body[1:], body[:2]]
        batch = yield lambda: self.ctx.map(plain if self.is_async else sync, parts, max_concurrency=2, tolerate=1)
        self.trace.append(batch.results)

    def do_until(self, body: Body) -> Calls:
        seen = len(self.trace)
        self.handles.append(self.spawn(body))
        yield lambda: self.ctx.wait_until(lambda: len(self.trace) > seen, timeout=len(body))

    def do_saga(self, body: Body) -> Calls:
        saga = self.ctx.saga()
        try:
            for number, operation in enumerate(body):
                saga.compensate("undo", number)
                yield from self.body((operation,))
            yield lambda: self.ctx.step("the last of a saga")
        except BaseException as error:
            if not isinstance(error, GeneratorExit):
                yield saga.undo
            raise

    def do_spawn(self, body: Body) -> Calls:
        self.handles.append(self.spawn(body))
        yield lambda: self.ctx.sleep(0)

    def do_join(self, body: Body) -> Calls:
        self.trace.append((yield self.result(self.spawn(body))))

    def do_race(self, body: Body) -> Calls:
        arms = {"branch": self.spawn(body), "step": self.ctx.start("racing")}
        self.trace.append((yield lambda: self.ctx.race(**arms)).name)

    def do_gather_branches(self, body: Body) -> Calls:
        handles = [self.spawn(body[:1]), self.spawn(body[1:]), self.ctx.timer(2)]
        self.trace.append((yield lambda: self.ctx.gather(*handles)))

    def do_cancel_branch(self, body: Body) -> Calls:
        handle = self.spawn(body)
        yield lambda: self.ctx.step("before the cancel")
        self.trace.append(handle.cancel())
        try:
            yield self.result(handle)
        except asyncio.CancelledError:
            self.trace.append("branch cancelled")

    def within(self, scope: Any, body: Body) -> Calls:
        """Do a body in a scope's block, whose beginning and end are called as verbs are."""
        yield scope.__aenter__ if self.is_async else scope.__enter__
        leave = scope.__aexit__ if self.is_async else scope.__exit__
        try:
            yield from self.body(body)
        except GeneratorExit:
            raise
        except BaseException as error:
            kind, left = type(error), error
            if not (yield lambda: leave(kind, left, None)):
                raise
        else:
            yield lambda: leave(None, None, None)

    def do_limit(self, body: Body) -> Calls:
        yield from self.within(self.ctx.timeout(len(body)), body)

    def do_scope(self, body: Body) -> Calls:
        scope = self.ctx.cancel_scope()

        def sync(ctx: Any) -> bool:
            ctx.wait_signal(NAMES[0], 3)
            return bool(scope.cancel())

        async def plain(ctx: Any) -> bool:
            await ctx.wait_signal(NAMES[0], 3)
            return bool(scope.cancel())

        self.handles.append(self.ctx.spawn(plain if self.is_async else sync))
        yield from self.within(scope, body)
        self.trace.append(scope.cancelled)

    def do_try(self, body: Body) -> Calls:
        try:
            yield from self.body(body)
        except asyncio.CancelledError:
            self.trace.append("cleaning up")
            yield lambda: self.ctx.step("clean up")
            raise
        finally:
            self.trace.append("finally")

    # In a ``def`` workflow the nearest thing to what only asyncio has.

    def do_group(self, body: Body) -> Calls:
        if not self.is_async:
            yield from self.do_gather_branches(body)
            return

        async def group() -> None:
            async with asyncio.TaskGroup() as tasks:
                for part in (body[:1], body[1:]):
                    tasks.create_task(branch_async(self.ctx, self.trace, part))
                for index in range(3):
                    tasks.create_task(self.ctx.step("in a group", index))

        yield group

    def do_asyncio_wait(self, body: Body) -> Calls:
        if not self.is_async:
            yield from self.do_race(body)
            return

        async def wait() -> None:
            steps = {self.ctx.start("in a set", index) for index in range(4)}
            done, pending = await asyncio.wait({*steps, self.spawn(body)}, return_when=asyncio.FIRST_COMPLETED)
            for handle in pending:
                handle.cancel()
            self.trace.append(len(done))
            awaited = [branch_async(self.ctx, self.trace, (operation,)) for operation in body]
            for future in asyncio.as_completed(awaited):
                await future

        yield wait

    def do_timeout(self, body: Body) -> Calls:
        if not self.is_async:
            yield from self.do_race(body)
            return

        async def limited() -> None:
            async with asyncio.timeout(2):
                await branch_async(self.ctx, self.trace, body)

        yield limited


def branch_sync(ctx: Any, trace: list[Any], body: Body) -> str:
    code = Interpreter(ctx, trace).body(body)
    go: Callable[[], Any] = partial(next, code)
    while True:
        try:
            call = go()
        except StopIteration:
            return "done"
        try:
            go = partial(code.send, call())
        except BaseException as error:  # noqa: BLE001 - whatever it is, the code gets it
            go = partial(code.throw, error)


async def branch_async(ctx: Any, trace: list[Any], body: Body) -> str:
    code = Interpreter(ctx, trace).body(body)
    go: Callable[[], Any] = partial(next, code)
    while True:
        try:
            call = go()
        except StopIteration:
            return "done"
        try:
            value = call()
            go = partial(code.send, await value if inspect.isawaitable(value) else value)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the code gets it
            go = partial(code.throw, error)


def workflow_of(body: Body, *, is_async: bool) -> Callable[..., Any]:
    """Return a workflow that runs a program; its update runs the same one once more, if it is accepted."""

    def sync(ctx: Any) -> list[Any]:
        trace: list[Any] = []
        ctx.state.trace = trace
        branch_sync(ctx, trace, body)
        return trace

    async def plain(ctx: Any) -> list[Any]:
        trace: list[Any] = []
        ctx.state.trace = trace
        await branch_async(ctx, trace, body)
        return trace

    def update_sync(ctx: Any, value: int) -> list[Any]:
        branch_sync(ctx, ctx.state.trace, body[: value % 3])
        return list(ctx.state.trace)

    async def update_plain(ctx: Any, value: int) -> list[Any]:
        await branch_async(ctx, ctx.state.trace, body[: value % 3])
        return list(ctx.state.trace)

    def is_odd(state: Any, value: int) -> None:
        if value % 5 == 4:
            raise ValueError(f"{value} after {len(state.trace)}")

    workflow = plain if is_async else sync
    update = handlers_of(workflow).update(update_plain if is_async else update_sync, name="u")
    update.validator(is_odd)
    return workflow


def possible_inputs(run: Run) -> list[Event]:
    """Return inputs that could come next: of open commands, of closed ones, signals."""
    length = len(run.events)
    inputs: list[Event] = [SignalReceived(name=name, payload=str(length)) for name in NAMES]
    inputs.append(request("u", length, key=f"k{length}"))
    for event in run.outputs:
        if isinstance(event, LocalStepCompleted) and event.name == CallbackToken.MAKER:
            name = CallbackToken.parse(CODEC.decode(event.payload)).signal
            failure = failure_text(ValueError(f"callback {event.number}"), CODEC)
            answers = ('{"beat":null}', f'{{"value":{event.number}}}', f'{{"failure":{failure}}}')
            inputs += [SignalReceived(name=name, payload=answer) for answer in answers]
        elif isinstance(event, StepScheduled):
            inputs.append(StepCompleted(number=event.number, payload=str(event.number * 10)))
            failure = failure_of(ValueError(f"step {event.number}"), CODEC)
            inputs.append(StepFailed(number=event.number, payload=failure))
        elif isinstance(event, TimerStarted):
            inputs.append(TimerFired(number=event.number))
    given = [(type(item.event), getattr(item.event, "number", None)) for item in run.events]
    # Now and then an input comes a second time, or for a command that nobody waits for.
    return [event for event in inputs if (type(event), getattr(event, "number", 0)) not in given or len(given) % 7 == 0]


def choose_input(run: Run, choice: int) -> Event:
    if choice % 23 == 22:
        return CancelRequested(reason=f"choice {choice}")
    inputs = possible_inputs(run)
    # The newest commands are the likeliest to be waited for.
    return inputs[-1 - (choice % len(inputs))]


def run_program(body: Body, choices: list[int], *, is_async: bool, echo: bool = False) -> tuple[Run, list[int]]:
    """Run a program with one input a turn; return the run and the lengths of its history after each turn."""
    run = Run(workflow_of(body, is_async=is_async))
    run.echo = echo
    run.start()
    ends = [len(run.events)]
    for choice in choices:
        run.now += 500
        event = choose_input(run, choice)
        if isinstance(event, TimerFired):
            run.fire(event.number)
        else:
            run.turn(event)
        ends.append(len(run.events))
    return run, ends


def canonical(run: Run) -> list[str]:
    """Return the outputs with their causes counted in inputs: what must not depend on batches.

    The traceback text of a failure names lines and ids of objects, and is left out. So is what holds the secret of a
    callback, which is another one in each run.
    """
    ordinal: dict[int, int] = {}
    for item in run.events:
        if not isinstance(item.event, Output):
            ordinal[item.seq] = len(ordinal) + 1
    lines = []
    for event in run.outputs:
        payload = event.payload
        if payload and '"traceback":' in payload:
            form = json.loads(payload)
            payload = json.dumps({**form, "traceback": ""})
        counted: Output = replace(event, cause=ordinal[event.cause], payload=payload)
        if isinstance(counted, RunContinued):
            # What came after the code had ended is named here or added by the store, as the batches were.
            counted = replace(counted, kept=[ordinal[seq] for seq in counted.kept if seq <= event.cause])
        name = getattr(event, "task", getattr(event, "name", ""))
        lines.append(f"{event.number} {name}" if name in SECRET else encode(counted))
    return lines


def random_body(source: random.Random, depth: int = 3) -> Body:
    operations: list[Any] = []
    for _ in range(source.randint(1, 4)):
        if depth and source.random() < 0.4:
            operations.append((source.choice(BRANCHES), random_body(source, depth - 1)))
        else:
            operations.append((source.choice(LEAVES), source.randint(0, 6)))
    return tuple(operations)


def main(count: int) -> None:
    for seed in range(count):
        source = random.Random(seed)
        body = random_body(source)
        choices = [source.randint(0, 200) for _ in range(15)]
        for is_async in (False, True):
            run, _ = run_program(body, choices, is_async=is_async)
            print(json.dumps([seed, is_async, canonical(run)]))  # noqa: T201 - a script
            run.execution.evict()


if __name__ == "__main__":
    main(int(sys.argv[1]))
