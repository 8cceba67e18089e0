"""Saved histories replay against today's code; what is wrong with the code is found, and told with file and event."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

from durable_celery import durable_task
from durable_celery.cli import durable as durable_command
from durable_celery.codec import AesGcm, Deflate
from durable_celery.events import Recorded, history_to_json
from durable_celery.testing import Environment
from durable_celery.testing.histories import HistoryFileError, ReplayError, replay_histories
from tests.testing import bakery
from tests.workers import ROOT
from tests.workflow.log import Run, alive

APP = "tests.testing.bakery:app"


def bread(run: Run) -> None:
    """A whole run. The signals before the right one cause nothing, so warm workers may stand between any two."""
    run.start("rye")
    run.complete(2, "rye")
    run.signal("other")
    run.fire(3)
    run.signal("other")
    run.signal("baker", "eva")
    run.complete(5, "a loaf")


def open_bread(run: Run) -> None:
    run.start("rye")
    run.complete(2, "rye")
    run.fire(3)
    run.signal("other")


def rolls(run: Run) -> None:
    run.start()
    for number in range(1, 7):
        run.complete(number, number)


def story(task: Any, play: Callable[[Run], None]) -> list[Recorded]:
    """Return the history of a run that went as ``play`` says."""
    run = Run(task.definition.function)
    play(run)
    run.execution.evict()
    alive.clear()
    first = run.events[0]
    run.events[0] = replace(first, event=replace(first.event, name=task.name))  # type: ignore[call-arg] # of RunStarted
    return run.events


def save(path: Path, events: list[Recorded]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(history_to_json(path.stem, events)))
    return path


@pytest.fixture(autouse=True)
def _forget() -> None:
    bakery.baked.clear()
    bakery.weighed.clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder with a whole run, an open one, and one of an ``async def`` workflow."""
    save(tmp_path / "bread.json", story(bakery.bread, bread))
    save(tmp_path / "deeper" / "open.json", story(bakery.bread, open_bread))
    save(tmp_path / "rolls.json", story(bakery.rolls, rolls))
    bakery.weighed.clear()
    return tmp_path


def changed(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change a saved history as a person would with an editor."""
    path = folder / name
    form = json.loads(path.read_text())
    change(form)
    path.write_text(json.dumps(form))
    return path


def test_histories_of_ended_and_open_runs_replay_without_running_a_local_step(folder: Path) -> None:
    assert replay_histories(APP, folder) == [
        str(folder / "bread.json"),
        str(folder / "deeper" / "open.json"),
        str(folder / "rolls.json"),
    ]
    assert replay_histories(bakery.app, folder / "rolls.json") == [str(folder / "rolls.json")]


@pytest.mark.parametrize("length", range(1, 13))
def test_every_beginning_of_a_history_replays(folder: Path, length: int) -> None:
    path = changed(folder, "bread.json", lambda form: form["events"].__delitem__(slice(length, None)))

    replay_histories(bakery.app, path, seeds=())

    assert bakery.weighed == []


CLOCK = r"with a clock that is 3500 days slow, in a process with PYTHONHASHSEED=1"
WARM = r"replayed one turn at a time, as a worker does that keeps it suspended"
FOUND = {
    "task": r"replayed from its start\n\nrun 1, event 1, command 2: task: history has 'bakery\.knead', the code "
    r"'bakery\.bake'\n(?s:.*)\n> +2  step bakery\.knead\('rye'\) #\w+ +step bakery\.bake\('rye'\)(?s:.*)ctx\.patched",
    "new step": r"event 7, command 4: kind of command: history has 'local step', the code 'step'",
    "datetime": rf"replayed from its start, {CLOCK}\n\nrun 1, event 7, command 4(?s:.*)ask `ctx\.now\(\)`",
    "time": rf"replayed from its start, {CLOCK}\n\nrun 1, event 7, command 4(?s:.*)ask `ctx\.now\(\)`",
    "memory": rf"{WARM}\n\nrun 1, event 4, command 3(?s:.*)a module's variable",
    "signal": rf"{WARM}\n\nrun 1, event 9: the code came to rest without command 4",
    "file": r"SideEffectError: .*bakery\.py:\d+: workflow code may not call open\('/etc/hostname'\)",
    "death": r"a process with PYTHONHASHSEED=2 cannot replay it: it ended with 3\nthe oven exploded",
}


@pytest.mark.parametrize("bug", FOUND)
def test_what_is_wrong_with_the_code_is_told_with_file_and_event(
    folder: Path, monkeypatch: pytest.MonkeyPatch, bug: str
) -> None:
    monkeypatch.setenv("BAKERY_BUG", bug)

    with pytest.raises(ReplayError, match=FOUND[bug]) as caught:
        replay_histories(bakery.app, folder / "bread.json")

    assert f"{folder / 'bread.json'}: " in str(caught.value)


def test_a_change_under_patched_replays_also_for_a_worker_that_keeps_the_run_suspended(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAKERY_BUG", "patched")

    replay_histories(bakery.app, folder)


def test_the_order_of_a_set_is_found_in_one_of_the_processes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAKERY_BUG", "set")

    # Six kinds have 720 orders, and two processes with fixed seeds have others than the one that was saved.
    with pytest.raises(ReplayError, match=r"digest of the arguments: history has") as caught:
        replay_histories(APP, folder / "rolls.json")

    in_here = "replayed from its start\n" in str(caught.value)
    assert in_here or "sort before you loop" in str(caught.value)


def test_an_open_run_that_comes_to_stand_elsewhere_by_the_order_of_a_set_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = changed(folder, "rolls.json", lambda form: form["events"].__delitem__(slice(1, None)))
    monkeypatch.setenv("BAKERY_BUG", "set")

    # Two of the seeds begin with different kinds, so this process differs from one of them at least.
    with pytest.raises(ReplayError, match=r"At the end of the history the code waits for(?s:.*)sort before you loop"):
        replay_histories(bakery.app, path, seeds=("1", "2", "3", "4"))


def test_an_open_run_that_comes_to_stand_elsewhere_by_the_clock_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAKERY_BUG", "datetime")

    with pytest.raises(
        ReplayError, match=r"the code waits for step bakery\.sell .*With the right time it waits for sig"
    ):
        replay_histories(bakery.app, folder / "deeper")


def test_all_histories_that_do_not_replay_are_told_and_only_these(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAKERY_BUG", "task")
    (folder / "broken.json").write_text("{")

    with pytest.raises(ReplayError, match=r"^3 of 4 saved histories of ") as caught:
        replay_histories(bakery.app, folder)

    message = str(caught.value)
    assert "bread.json: today's code" in message
    assert "open.json: today's code" in message
    assert "broken.json: it is no JSON" in message
    assert "rolls.json" not in message


def lose_event(form: dict[str, Any]) -> None:
    del form["events"][3]


def from_the_future(form: dict[str, Any]) -> None:
    form["format"] = 99


def of_another_kind(form: dict[str, Any]) -> None:
    form["events"][2]["event"] = "StepTeleported"


def without_its_head(form: dict[str, Any]) -> None:
    del form["events"][0]


def cut_short(form: dict[str, Any]) -> None:
    form["events"][0]["payload"] = form["events"][0]["payload"][:3] + "…"


def renamed(form: dict[str, Any]) -> None:
    form["events"][0]["name"] = "bakery.baguette"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lose_event, r"event 4 is missing: event 5 stands in its place"),
        (from_the_future, r"history has form 99; this release reads form 1\. A newer durable_celery wrote it"),
        (of_another_kind, r"it is no history: 'StepTeleported' is missing, or not known to this release"),
        (without_its_head, r"the history does not begin with RunStarted"),
        (
            cut_short,
            r"the payload of event 1 \(RunStarted\) cannot be read: (?s:.*)durable export`, which cuts nothing",
        ),
        (renamed, r"the workflow 'bakery\.baguette' is not registered in the app 'bakery'\. (?s:.*)keep the old name"),
        (dict[str, Any].clear, r"history has form None"),
    ],
)
def test_files_that_are_no_good_are_told_with_the_reason(
    folder: Path, harm: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = changed(folder, "bread.json", harm)

    with pytest.raises(HistoryFileError, match=rf"bread\.json: {message}"):
        replay_histories(APP, path)


@pytest.mark.parametrize(("text", "message"), [("[1, 2]", "it is no history"), ("", "it is no JSON")])
def test_a_file_that_is_something_else_is_told(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text)

    with pytest.raises(HistoryFileError, match=rf"x\.json: {message}"):
        replay_histories(APP, tmp_path)


def test_no_histories_are_a_failure(tmp_path: Path) -> None:
    with pytest.raises(HistoryFileError, match=r"has no histories\. Save some: `celery -A app durable export"):
        replay_histories(APP, tmp_path)
    with pytest.raises(HistoryFileError, match="does not exist"):
        replay_histories(APP, tmp_path / "nowhere")


def test_an_app_that_no_other_process_can_load_replays_here_only_and_is_told(tmp_path: Path) -> None:
    hidden = Celery("hidden", set_as_current=False)
    task = durable_task(app=hidden, name="hidden.bread")(bakery.bread.definition.function)
    path = save(tmp_path / "x.json", story(task, bread))

    with pytest.raises(HistoryFileError, match=r"'hidden' stands in no module.*'module:attribute'"):
        replay_histories(hidden, path)
    assert replay_histories(hidden, path, seeds=()) == [str(path)]


def exported(folder: Path, *words: str) -> Path:
    """Save what the app has in its store, with the command itself."""
    context = CLIContext(app=bakery.app, no_color=True, workdir=None)
    done = CliRunner().invoke(durable_command, ["export", "-o", str(folder), *words], obj=context)
    assert done.exit_code == 0, done.output
    return next(folder.glob("*.json"))


def test_encrypted_histories_replay_with_the_keys_of_the_app_and_decoded_ones_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(bakery.app.conf, "durable_codec", [Deflate(), AesGcm({"k1": b"k" * 32})])
        with Environment(bakery.app) as env:
            run = env.start(bakery.bread, "rye")
            env.skip(hours=8)
            env.signal(run, "baker", "eva")
            assert run.get() == [6, "rye", "eva"]
            sealed = exported(tmp_path / "sealed")
            decoded = exported(tmp_path / "decoded", "--decode")
        assert replay_histories(bakery.app, tmp_path, seeds=()) == [str(decoded), str(sealed)]
        # Arguments are compared although they are encrypted.
        patch.setenv("BAKERY_BUG", "dough")
        with pytest.raises(ReplayError, match=r"^2 of 2 (?s:.*)digest of the arguments: history has 'k1:"):
            replay_histories(bakery.app, tmp_path, seeds=())

    assert "rye" not in sealed.read_text()
    assert "rye" in decoded.read_text()
    with pytest.raises(HistoryFileError, match=r"event 1 \(RunStarted\) cannot be read(?s:.*)needs the keys"):
        replay_histories(bakery.app, sealed, seeds=())
    assert replay_histories(bakery.app, decoded, seeds=()) == [str(decoded)]
    # What is written in plain is compared without the keys as well.
    monkeypatch.setenv("BAKERY_BUG", "dough")
    with pytest.raises(ReplayError, match=r"digest of the arguments: history has"):
        replay_histories(bakery.app, decoded, seeds=())


# -- the fixture -------------------------------------------------------------------------------------------------------


def pytest_in(project: Path, *words: str, **env: str) -> str:
    """Run pytest in a project of its own, and return what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "--rootdir", str(project), *words],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.fixture
def project(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("project")
    (project / "tests").mkdir()
    folder.rename(project / "tests" / "histories")
    (project / "pytest.ini").write_text(f"[pytest]\ndurable_app = {APP}\naddopts = --strict-markers\n")
    return project


TEST = """
def test_replay(durable_histories):
    durable_histories.replay()
"""


def test_the_fixture_makes_one_test_of_each_history(project: Path) -> None:
    (project / "tests" / "test_it.py").write_text(TEST)

    said = pytest_in(project)

    for name in ("bread", "deeper/open", "rolls"):
        assert f"PASSED tests/test_it.py::test_replay[{name}]" in said
    assert "3 passed" in said


def test_a_mismatch_fails_its_own_test_with_the_story_and_none_of_our_frames(project: Path) -> None:
    (project / "tests" / "test_it.py").write_text(TEST)

    said = pytest_in(project, BAKERY_BUG="task")

    assert "2 failed, 1 passed" in said
    assert "FAILED tests/test_it.py::test_replay[bread]" in said
    assert "history has 'bakery.knead', the code 'bakery.bake'" in said
    assert "durable_celery/testing" not in said
    assert "def replay" not in said


def test_a_test_that_replays_nothing_fails(project: Path) -> None:
    (project / "tests" / "test_it.py").write_text("def test_lazy(durable_histories):\n    pass\n")

    said = pytest_in(project)

    assert "3 failed" in said
    assert "the test ended without durable_histories.replay()" in said


def test_the_folder_comes_from_the_marker_or_the_setting_and_a_missing_one_fails_the_test(project: Path) -> None:
    files = sorted((project / "tests" / "histories").glob("*.json"))
    (project / "some.jsonl").write_text("".join(f"{path.read_text()}\n" for path in files))
    (project / "tests" / "test_it.py").write_text(f"""
import pytest
{TEST}
@pytest.mark.durable_histories("some.jsonl", app="{APP}")
def test_lines(durable_histories):
    durable_histories.replay()

@pytest.mark.durable_histories(folder="nowhere")
def test_nothing(durable_histories):
    durable_histories.replay()
""")
    (project / "pytest.ini").write_text("[pytest]\ndurable_histories = tests/histories/deeper\n")

    said = pytest_in(project)

    assert "PASSED tests/test_it.py::test_lines[some:1]" in said
    assert "PASSED tests/test_it.py::test_lines[some:2]" in said
    assert "FAILED tests/test_it.py::test_nothing[no-histories]" in said
    assert "nowhere does not exist. Save some: `celery -A app durable export" in said
    # Without an app the process's current one is taken, which does not have the workflow.
    assert "FAILED tests/test_it.py::test_replay[open]" in said
    assert "'bakery.bread' is not registered in the app" in said
