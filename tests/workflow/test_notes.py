"""Published values, streams and the state, in both forms, kept and replayed in each turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from durable_celery.codec import Codec, rebuild
from durable_celery.errors import InvalidRequestError, NonDeterminismError, PayloadError
from durable_celery.events import LocalStepCompleted, RunFailed
from durable_celery.workflow import AsyncWorkflowContext, WorkflowContext
from tests.workflow.log import CODEC, Run, charge

Code = Callable[..., Any]
Begin = Callable[..., Run]


def telling_sync(ctx: WorkflowContext) -> None:
    words = ctx.stream("words")
    ctx.publish("progress", 0)
    for number in (1, 2):
        words.append({"step": ctx.step(charge, number)})
        ctx.publish("progress", number)
    ctx.publish("end", ctx.now())


async def telling_async(ctx: AsyncWorkflowContext) -> None:
    words = ctx.stream("words")
    ctx.publish("progress", 0)
    for number in (1, 2):
        words.append({"step": await ctx.step(charge, number)})
        ctx.publish("progress", number)
    ctx.publish("end", ctx.now())


telling = pytest.mark.parametrize("code", [telling_sync, telling_async], ids=["def", "async def"])


@telling
def test_what_is_told_is_recorded_once_and_in_order(code: Code, begin: Begin) -> None:
    run = begin(code)
    run.complete(2, "a")
    run.complete(5, "b")

    assert [note[:2] for note in run.notes()] == [
        ("publish", "progress"),
        ("stream", "words"),
        ("publish", "progress"),
        ("stream", "words"),
        ("publish", "progress"),
        ("publish", "end"),
    ]
    assert [value for _, _, value in run.notes()][1:5] == [{"step": "a"}, 1, {"step": "b"}, 2]
    assert run.replayed().take_outputs() == ()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (lambda ctx: ctx.publish("a", 1), lambda ctx: ctx.publish("b", 1)),
        (lambda ctx: ctx.publish("a", 1), lambda ctx: ctx.publish("a", 2)),
        (lambda ctx: ctx.publish("a", 1), lambda ctx: ctx.stream("a").append(1)),
        (lambda ctx: ctx.publish("a", 1), lambda _: None),
        (lambda _: None, lambda ctx: ctx.publish("a", 1)),
    ],
)
def test_telling_something_else_on_replay_is_caught(before: Code, after: Code) -> None:
    says = [before]

    def code(ctx: WorkflowContext) -> None:
        says[0](ctx)
        ctx.step(charge)

    run = Run(code).start()
    says[0] = after
    with pytest.raises(NonDeterminismError):
        run.replayed()


def failing_with(error: type[Exception], words: str, call: Code, begin: Begin) -> None:
    def code(ctx: WorkflowContext) -> None:
        call(ctx)

    run = begin(code)
    assert isinstance(run.last, RunFailed)
    failure = rebuild(run.last.payload, CODEC)
    assert isinstance(failure, error)
    assert words in str(failure)


def test_what_cannot_be_told_is_refused_in_the_code(begin: Begin) -> None:
    failing_with(InvalidRequestError, "the key of a published value", lambda ctx: ctx.publish("", 1), begin)
    failing_with(InvalidRequestError, "the name of a stream", lambda ctx: ctx.stream("a\n"), begin)
    failing_with(PayloadError, "the value published as 'a'", lambda ctx: ctx.publish("a", object()), begin)
    failing_with(PayloadError, "an item of stream 's'", lambda ctx: ctx.stream("s").append(object()), begin)
    long = "x" * Codec().limit
    failing_with(PayloadError, "durable_payload_limit", lambda ctx: ctx.publish("a", long), begin)


def test_a_local_step_cannot_pass_for_a_note(begin: Begin) -> None:
    def call(ctx: WorkflowContext) -> None:
        ctx.options(name="durable:publish:progress").run(int)

    failing_with(InvalidRequestError, "names with 'durable:' are reserved", call, begin)


def test_a_local_step_may_have_any_other_name(begin: Begin) -> None:
    def code(ctx: WorkflowContext) -> int:
        return ctx.options(name="publish:progress").run(int)

    run = begin(code)
    assert run.notes() == []
    assert isinstance(run.outputs[0], LocalStepCompleted)


def test_the_state_belongs_to_the_run(begin: Begin) -> None:
    def code(ctx: WorkflowContext) -> list[Any]:
        ctx.state.seen = [ctx.step(charge)]

        def branch(inner: WorkflowContext) -> None:
            inner.options(queue="q").state.seen.append("branch")

        ctx.spawn(branch).result()
        return [getattr(ctx.state, "other", None), *ctx.state.seen]

    run = begin(code)
    run.complete(1, "step")
    assert run.result == [None, "step", "branch"]


def test_a_name_that_was_not_set_in_the_state_is_named(begin: Begin) -> None:
    failing_with(AttributeError, "has not set 'items' in its state", lambda ctx: ctx.state.items, begin)
