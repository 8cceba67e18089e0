"""Versions of a workflow under one name: how they are registered, and what a run keeps of its version."""

# Celery carries no types: to pyright a task is the function that it was made of.
# pyright: reportFunctionMemberAccess=false

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery._state import _on_app_finalizers

from durable_celery import AsyncWorkflowContext, ConfigurationError, WorkflowContext, durable_task, versions
from durable_celery.app import binding_of
from durable_celery.errors import WorkflowCodeError
from durable_celery.events import RunStarted, history_to_json
from durable_celery.testing import Environment
from durable_celery.testing.histories import HistoryFileError, replay_histories

NAME = "shop.checkout"


def one(ctx: WorkflowContext, what: str) -> str:
    return f"one {what} {ctx.wait_signal('go')}"


async def two(ctx: AsyncWorkflowContext, what: str) -> str:
    return f"two {what} {await ctx.wait_signal('go')}"


@pytest.fixture
def app() -> Celery:
    app = Celery("versions", set_as_current=False, broker="memory://")
    app.conf.durable_store = "redis://nobody:1/0"
    return app


@pytest.fixture
def _shared() -> Iterator[None]:
    """Forget what a test shares with the apps that are made later."""
    before = set(_on_app_finalizers)
    yield
    _on_app_finalizers.intersection_update(before)


@pytest.fixture(params=["older first", "newer first"])
def make(request: pytest.FixtureRequest, app: Celery) -> Callable[..., tuple[Any, Any]]:
    """Register version 1 as `one` and version 2 as `two`, in either order."""

    def make(**options: Any) -> tuple[Any, Any]:
        made: dict[int, Any] = {}
        for version in (1, 2) if request.param == "older first" else (2, 1):
            function: Any = {1: one, 2: two}[version]
            decorate = durable_task(name=NAME, app=app, version=version, **options.get(f"v{version}", {}))
            made[version] = decorate(function)
        return made[1], made[2]

    return make


@pytest.mark.parametrize("finalized", [False, True], ids=["pending", "finalized"])
def test_the_newest_stands_under_the_name_and_each_starts_its_own(app: Celery, make: Any, *, finalized: bool) -> None:
    if finalized:
        app.finalize()
    first, second = make()

    assert (first.version, second.version) == (1, 2)
    assert app.tasks[NAME].version == 2
    assert [name for name in app.tasks if name.startswith(NAME)] == [NAME]
    assert dict(app.tasks[NAME].versions) == {1: first, 2: second}
    assert first.versions is second.versions
    assert first.name == second.name == NAME
    definition = binding_of(app).definition
    assert (definition(NAME, 1).function, definition(NAME, 2).function) == (one, two)
    assert (definition(NAME, 1).version, definition(NAME, 2).version) == (1, 2)


@pytest.mark.usefixtures("_shared")
def test_every_app_of_the_process_gets_all_versions() -> None:
    early = Celery("early", set_as_current=False, broker="memory://")
    early.finalize()
    late = Celery("late", set_as_current=False, broker="memory://")

    durable_task(name="everywhere", version=2)(two)
    durable_task(name="everywhere")(one)

    for each in (early, late):
        versions = each.tasks["everywhere"].versions
        assert sorted(versions) == [1, 2]
        assert each.tasks["everywhere"].version == 2
        assert all(task.app is each for task in versions.values())


def test_a_module_that_is_loaded_again_finds_its_tasks(app: Celery, make: Any) -> None:
    app.finalize()
    first, _ = make()
    task = app.tasks[NAME].versions[1]

    again = durable_task(name=NAME, app=app)(one)

    assert again.version == 1
    assert app.tasks[NAME].versions[1] is task
    assert app.tasks[NAME].version == 2
    assert first == again


def test_a_file_that_is_loaded_under_two_names_has_one_workflow(app: Celery, tmp_path: Path) -> None:
    path = tmp_path / "flows.py"
    path.write_text("def flow(ctx): ...")
    app.finalize()
    tasks: list[Any] = []
    for name in ("__main__", "flows"):
        module: dict[str, Any] = {"__name__": name}
        exec(compile(path.read_text(), path, "exec"), module)  # noqa: S102 - as Python imports it
        tasks.append(durable_task(name=NAME, app=app)(module["flow"]))

    assert tasks[0] == tasks[1]
    assert len(app.tasks[NAME].versions) == 1


def test_threads_that_meet_make_one_task(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    app.finalize()
    both, plain, tasks = threading.Barrier(2), versions.versions_of, list[Any]()
    met = threading.local()

    def look(where: Celery, name: str) -> Any:
        found = plain(where, name)
        if not hasattr(met, "once"):
            met.once = True
            both.wait(10)
        return found

    def make() -> None:
        task: Any = durable_task(name=NAME, app=app)(one)
        tasks.append(task._get_current_object())

    monkeypatch.setattr(versions, "versions_of", look)
    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(tasks) == 2
    assert tasks[0] is tasks[1]


def test_two_functions_cannot_be_one_version(app: Celery) -> None:
    durable_task(name=NAME, app=app, version=2)(one)
    durable_task(name=NAME, app=app, version=2)(two)

    with pytest.raises(ConfigurationError, match=r"test_versions\.\w+ and .*test_versions\.\w+ are both version 2"):
        app.finalize()


def test_two_functions_cannot_be_one_version_of_an_app_that_is_in_use(app: Celery) -> None:
    app.finalize()
    kept = durable_task(name=NAME, app=app)(one)

    with pytest.raises(ConfigurationError, match=r"are both version 1 of the workflow 'shop\.checkout'"):
        durable_task(name=NAME, app=app)(two)

    assert kept.definition.function is one


@pytest.mark.parametrize("version", [0, -1, True, "2", 1.0, None])
def test_what_is_no_version_is_refused_where_it_is_written(app: Celery, version: Any) -> None:
    with pytest.raises(ConfigurationError, match="a whole number from 1, not"):
        durable_task(name=NAME, app=app, version=version)


def test_a_run_stays_on_the_version_that_started_it(app: Celery, make: Any) -> None:
    first, second = make()
    with Environment(app) as env:
        old, new = env.start(first, "a"), env.start(second, "b")
        assert [started(run).version for run in (old, new)] == [1, 2]
        old.signal("go", 1)
        new.signal("go", 2)
        assert (old.get(), new.get()) == ("one a 1", "two b 2")


def test_a_start_that_is_repeated_by_newer_code_finds_the_run_of_the_older(app: Celery, make: Any) -> None:
    first, second = make()
    with Environment(app) as env:
        first.apply_async(("a",), task_id="order-1")
        env.settle()
        again = second.apply_async(("a",), task_id="order-1")
        again.signal("go", 1)
        assert again.get() == "one a 1"


def test_a_version_that_is_not_here_is_named_with_those_that_are(app: Celery) -> None:
    first: Any = durable_task(name=NAME, app=app)(one)
    third: Any = durable_task(name=NAME, app=app, version=3)(two)
    with pytest.raises(WorkflowCodeError, match=r"version 2 of the workflow 'shop\.checkout' is not .* only 1, 3;"):
        binding_of(app).definition(NAME, 2)
    assert first.definition.version == 1
    assert third.definition.version == 3


@pytest.mark.parametrize("by", ["start", "parent"])
def test_the_version_s_queue_and_number_are_in_the_run_s_envelope_from_its_start(
    app: Celery, make: Any, by: str
) -> None:
    _, second = make(v2={"queue": "checkout-v2"})

    def parent(ctx: WorkflowContext) -> Any:
        return ctx.step(second, "b")

    caller: Any = durable_task(name="shop.parent", app=app)(parent)
    with Environment(app) as env:
        run: Any = env.start(second, "b") if by == "start" else env.start(caller)
        child = run if by == "start" else binding_of(app).handle(f"{run.id}/1.1")
        envelope = json.loads(child.describe().envelope)
        assert (envelope["queue"], envelope["durable_version"]) == ("checkout-v2", 2)
        assert started(child).version == 2
        child.signal("go", 2)
        assert run.get() == "two b 2"


def test_what_a_caller_says_of_the_queue_counts_more_than_the_version_s_own(app: Celery, make: Any) -> None:
    _, second = make(v2={"queue": "checkout-v2"})

    def parent(ctx: WorkflowContext) -> None:
        ctx.options(queue="elsewhere").start(second, "b")
        ctx.wait_signal("never")

    caller: Any = durable_task(name="shop.parent", app=app)(parent)
    with Environment(app) as env:
        own = second.apply_async(("b",), queue="elsewhere")
        run = env.start(caller)
        for handle in (own, binding_of(app).handle(f"{run.id}/1.1")):
            assert json.loads(handle.describe().envelope)["queue"] == "elsewhere"


def test_a_child_keeps_the_version_that_its_parent_named_although_a_newer_one_is_deployed(app: Celery) -> None:
    first: Any = durable_task(name=NAME, app=app)(one)
    second: Any = durable_task(name=NAME, app=app, version=2)(two)

    def parent(ctx: WorkflowContext) -> list[Any]:
        handles = [ctx.start(first, "a"), ctx.start(second, "b")]
        return ctx.gather(*handles)

    caller: Any = durable_task(name="shop.parent", app=app)(parent)
    with Environment(app, cold=True) as env:
        run = env.start(caller)
        for number in (1, 2):
            binding_of(app).handle(f"{run.id}/1.{number}").signal("go", number)
        assert run.get() == ["one a 1", "two b 2"]


def test_saved_histories_find_the_code_of_their_version(app: Celery, make: Any, tmp_path: Path) -> None:
    with Environment(app) as env:
        for run in (env.start(task, "a") for task in make()):
            run.signal("go", 1)
            run.get()
            form = history_to_json(run.id, run.history())
            (tmp_path / f"{started(run).version}.json").write_text(json.dumps(form))

    assert len(replay_histories(app, tmp_path, seeds=())) == 2

    newer = Celery("newer", set_as_current=False, broker="memory://")
    durable_task(name=NAME, app=newer, version=2)(two)
    with pytest.raises(
        HistoryFileError, match=r"1\.json: version 1 of the workflow 'shop\.checkout' is not registered"
    ):
        replay_histories(newer, tmp_path, seeds=())
    assert len(replay_histories(newer, tmp_path / "2.json", seeds=())) == 1


def test_a_message_by_name_alone_starts_the_newest_version_on_its_own_queue(app: Celery, make: Any) -> None:
    make(v2={"queue": "checkout-v2"})
    with Environment(app) as env:
        app.send_task(NAME, ("b",), task_id="order-1")
        env.settle()
        run = binding_of(app).handle("order-1")
        assert started(run).version == 2
        assert json.loads(run.describe().envelope)["queue"] == "checkout-v2"


def started(handle: Any) -> RunStarted:
    event = handle.history()[0].event
    assert isinstance(event, RunStarted)
    return event
