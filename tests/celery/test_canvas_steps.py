"""Canvas as a step, and as a workflow by ``durable``: the results are those that Celery itself gives."""

# Celery carries no types: to pyright a task is the function that it was made of.
# pyright: reportFunctionMemberAccess=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, chain, chord, group

from durable_celery import AsyncWorkflowContext, WorkflowContext, durable, durable_task
from durable_celery.errors import UnknownTaskError
from durable_celery.events import StepScheduled
from durable_celery.testing import Environment

app = Celery("canvas", set_as_current=False, broker="memory://", backend="cache+memory://")


@app.task(shared=False)
def add(x: int, y: int = 0, *, times: int = 1) -> int:
    return (x + y) * times


@app.task(shared=False)
def total(numbers: Any) -> int:
    return int(sum(sum(n) if isinstance(n, list) else n for n in numbers))


@app.task(shared=False)
def fail(*_: Any) -> None:
    raise ValueError("failed")


@app.task(shared=False)
def note(*args: Any) -> None:
    noted.append(list(args))


@durable_task(app=app)
def doubled(ctx: WorkflowContext, x: int) -> int:
    return int(ctx.step(add, x, x))


@durable_task(app=app)
def run(ctx: WorkflowContext, name: str, *args: Any) -> Any:
    return ctx.step(CANVASES[name](), *args)


@durable_task(app=app)
async def run_async(ctx: AsyncWorkflowContext, name: str, *args: Any) -> Any:
    return await ctx.start(CANVASES[name](), *args)


noted: list[Any] = []

CANVASES: dict[str, Callable[[], Any]] = {
    "a task": lambda: add.s(1, 2),
    "a task with keywords": lambda: add.s(1, y=2, times=3),
    "an immutable task": lambda: add.si(1, 2),
    "a chain": lambda: chain(add.s(1, 2), add.s(3), add.s(4)),
    "a chain by pipes": lambda: add.s(1, 2) | add.s(3, times=2) | add.s(4),
    "a chain that forgets": lambda: chain(add.s(1, 2), add.si(5, 6), add.s(7)),
    "a chain of one": lambda: chain(add.s(1, 2)),
    "a chain in a chain": lambda: chain(add.s(1, 2), chain(add.s(3), add.s(4)), add.s(5)),
    "a group": lambda: group(add.s(1, 2), add.s(3, 4), add.s(5, 6)),
    "a group of a generator": lambda: group(add.s(n, n) for n in range(4)),
    "a group of one": lambda: group(add.s(1, 2)),
    "a group of nothing": group,
    "a group in a group": lambda: group(add.s(1, 2), group(add.s(3, 4), add.s(5, 6)), add.s(7, 8)),
    "a group of chains": lambda: group(add.s(1, 2) | add.s(3), add.s(4, 5) | add.s(6)),
    "a group of chords": lambda: group(chord([add.s(1, 2), add.s(3, 4)], total.s()), add.s(5, 6)),
    "a chain that ends in a group": lambda: add.s(1, 2) | group(add.s(3), add.s(4), add.si(5, 6)),
    "a chain that begins with a group": lambda: group(add.s(1, 2), add.s(3, 4)) | total.s(),
    "a chain with a group of one": lambda: chain(add.s(1, 2), group(add.s(3)), add.s(4)),
    "a chain with a group of nothing": lambda: chain(add.s(1, 2), group(), add.s(4)),
    "a chain with a chord": lambda: add.s(1, 2) | group(add.s(3), add.s(4)) | total.s() | add.s(5),
    "two groups in a row": lambda: group(add.s(1, 2), add.s(3, 4)) | group(total.s(), total.s()) | total.s(),
    "a chord": lambda: chord([add.s(n, n) for n in range(3)], total.s()),
    "a chord of nothing": lambda: chord([], total.s()),
    "a chord with an immutable body": lambda: chord([add.s(1, 2)], add.si(3, 4)),
    "a chord with a chain as body": lambda: chord([add.s(1, 2), add.s(3, 4)], total.s() | add.s(5)),
    "a chord in a chord": lambda: chord([chord([add.s(1, 2)], total.s()), add.s(3, 4)], total.s()),
    "a chord of chains": lambda: chord([add.s(1, 2) | add.s(3), add.s(4, 5)], total.s()),
    "a map": lambda: total.map([[1, 2], [3, 4]]),
    "a starmap": lambda: add.starmap([(1, 2), (3, 4)]),
    "chunks": lambda: add.chunks([(n, n) for n in range(5)], 2),
    "a chunks in a chain": lambda: chain(add.s(1, 2), add.starmap([(1, 2), (3, 4)]), total.s()),
    "an immutable group": lambda: chain(add.s(1, 2), _immutable(group(add.s(3, 4), add.s(5, 6)))),
    "options": lambda: add.s(1, 2).set(queue="celery", priority=3, task_id="mine", time_limit=60) | add.s(3),
}  # fmt: skip
#: What is given besides, which Celery puts before the arguments of the first tasks.
GIVEN = {
    "a task given one": (lambda: add.s(2), (1,)),
    "a task given one that it ignores": (lambda: add.si(2), (1,)),
    "a chain given one": (lambda: add.s(2) | add.s(3), (1,)),
    "a group given one": (lambda: group(add.s(2), add.si(3), group(add.s(4))), (1,)),
    "a chord given one": (lambda: chord([add.s(2), add.s(3)], total.s()), (1,)),
}
CANVASES.update({name: make for name, (make, _) in GIVEN.items()})


MAPS = {"celery.map", "celery.starmap"}


def _immutable(canvas: Any) -> Any:
    canvas.set_immutable(True)
    return canvas


@pytest.fixture
def env() -> Iterator[Environment]:
    noted.clear()
    with Environment(app) as environment:
        yield environment


def by_celery(name: str, *args: Any) -> Any:
    app.conf.task_always_eager = True
    try:
        done = CANVASES[name]()
        # A map is Celery's own task, which needs no worker in between.
        return done.apply(args).get() if done.task in MAPS else done.apply_async(args).get()
    finally:
        app.conf.task_always_eager = False


@pytest.mark.parametrize("name", CANVASES)
def test_a_canvas_gives_the_result_that_celery_gives(name: str) -> None:
    args = GIVEN.get(name, (None, ()))[1]
    expected = by_celery(name, *args)

    with Environment(app) as env:
        assert env.run(run, name, *args) == expected
        assert env.run(run_async, name, *args) == expected
        # Without Celery's classes, as it comes out of a log.
        assert durable(CANVASES[name]()).apply_async(args).get() == expected


def test_a_task_of_a_canvas_that_is_durable_is_a_child_run(env: Environment) -> None:
    for canvas, number in (
        (add.s(1, 2) | doubled.s() | add.s(1), 2),
        (chord([doubled.s(1), add.s(2, 3)], total.s()), 1),
    ):
        handle = durable(canvas).delay()

        assert handle.get() == 7
        assert doubled.AsyncResult(f"{handle.id}/1.{number}").get() in {2, 6}


def test_a_durable_canvas_is_part_of_another(env: Environment) -> None:
    handle = durable(chain(add.s(1, 2), durable(add.s(3) | add.s(4)), add.s(5))).delay()

    assert handle.get() == 15


def test_a_durable_canvas_is_a_task_of_celerys_own_chain(env: Environment) -> None:
    (add.s(1, 2) | durable(add.s(3) | add.s(4)) | note.s()).delay()
    env.settle()

    assert noted == [[10]]


def test_what_is_no_signature_is_not_made_durable() -> None:
    for wrong in (add, "add", 7, {"task": "add"}):
        with pytest.raises(UnknownTaskError, match="takes a signature"):
            durable(wrong)


def test_a_durable_canvas_is_plain_json() -> None:
    signature = durable(group(add.s(n, n) for n in range(2)) | doubled.s())

    assert json.loads(json.dumps(signature.kwargs)) == signature.kwargs


@durable_task(app=app)
def failing(ctx: WorkflowContext, name: str) -> Any:
    return ctx.step(FAILING[name]())


FAILING: dict[str, Callable[[], Any]] = {
    "a chain stops at its first failure": lambda: add.s(1, 2) | fail.s() | note.s(),
    "a chord whose header fails has no body": lambda: chord([fail.s(), add.s(1, 2)], note.s()),
    "a group fails with its first failure": lambda: group(add.s(1, 2), fail.s()),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_canvas_fails_with_the_exception_of_its_task(env: Environment, name: str) -> None:
    with pytest.raises(ValueError, match="failed"):
        env.run(failing, name)

    assert noted == []


@durable_task(app=app)
def linked(ctx: WorkflowContext, name: str) -> Any:
    try:
        return ctx.step(LINKED[name]())
    except ValueError as error:
        return str(error)


def _linked(canvas: Any, *, link: Any = None, link_error: Any = None) -> Any:
    if link is not None:
        canvas.link(link)
    if link_error is not None:
        canvas.link_error(link_error)
    return canvas


LINKED: dict[str, Callable[[], Any]] = {
    "a task's link gets its result": lambda: _linked(add.s(1, 2), link=note.s("linked")),
    "a link that forgets": lambda: _linked(add.s(1, 2), link=note.si("linked")),
    "a chain's link gets the last result": lambda: _linked(add.s(1, 2) | add.s(3), link=note.s("linked")),
    "a link that fails": lambda: _linked(add.s(1, 2), link=fail.s()),
    "a link that is a chain": lambda: _linked(add.s(1, 2), link=add.s(1) | note.s()),
    "a failed task's errback": lambda: _linked(fail.s(), link=note.s("no"), link_error=note.si("failed")),
    "a failed chain's errback": lambda: _linked(fail.s() | add.s(3), link_error=note.si("failed")),
    "a failed header's errback": lambda: chord([fail.s()], _linked(total.s(), link_error=note.si("failed"))),
    "an errback of what succeeds": lambda: _linked(add.s(1, 2), link_error=note.si("failed")),
}
EXPECTED: dict[str, tuple[Any, list[Any]]] = {
    "a task's link gets its result": (3, [[3, "linked"]]),
    "a link that forgets": (3, [["linked"]]),
    "a chain's link gets the last result": (6, [[6, "linked"]]),
    "a link that fails": (3, []),
    "a link that is a chain": (3, [[4]]),
    "a failed task's errback": ("failed", [["failed"]]),
    "a failed chain's errback": ("failed", [["failed"]]),
    "a failed header's errback": ("failed", [["failed"]]),
    "an errback of what succeeds": (3, []),
}


@pytest.mark.parametrize("name", LINKED)
def test_what_is_linked_is_done_as_a_step_and_changes_no_result(env: Environment, name: str) -> None:
    assert (env.run(linked, name), noted) == EXPECTED[name]


@durable_task(app=app)
def beside(ctx: WorkflowContext) -> Any:
    handle = ctx.start(group(add.s(1, 2), add.s(3, 4).set(countdown=60)))
    mapped = ctx.map(add.s(10), [1, 2]).raise_if_failed().results
    return [mapped, handle.result()]


def test_a_canvas_goes_on_beside_others_and_its_countdown_is_a_durable_timer(env: Environment) -> None:
    before = env.now

    assert env.run(beside) == [[11, 12], [3, 7]]
    assert (env.now - before).total_seconds() >= 60


def test_the_options_of_a_signature_go_into_the_step_s_message(env: Environment) -> None:
    handle = env.start(run, "options")

    scheduled = handle.history()[1].event
    assert isinstance(scheduled, StepScheduled)
    assert scheduled.options == {"queue": "celery", "priority": 3, "message": {"time_limit": 60}}
    assert handle.get() == 6
