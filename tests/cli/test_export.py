"""``celery -A app durable export``: histories of real runs become files, and these replay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from durable_celery.events import history_from_json
from durable_celery.testing.histories import ReplayError, replay_histories
from tests.cli.conftest import Desk
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def runs(desk: Desk) -> list[str]:
    """Give the ids of a run that waits, one that has ended, and a child, whose id has a slash."""
    waiting = desk.start("approval", "a trip to Rome", workflow_id="export-1", until="signal decision")
    ended = desk.start("approval", "a car", workflow_id="export-2", until="signal decision")
    desk.client.signal(ended, "decision", "yes")
    desk.wait(ended, "completed")
    desk.start("family", workflow_id="export-3", until="step desk.approval (1)")
    desk.wait("export-3/1.1", "signal decision")
    return [waiting, ended, "export-3/1.1"]


def test_runs_are_saved_by_id_and_replay(
    desk: Desk, runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = desk.text("export", *runs, "-o", str(tmp_path))

    names = ["export-1.json", "export-2.json", "export-3%2F1.1.json"]
    assert text.splitlines() == [f"saved  {tmp_path / name}" for name in names]
    for workflow_id, name in zip(runs, names, strict=True):
        form = json.loads((tmp_path / name).read_text())
        assert form["workflow_id"] == workflow_id
        assert history_from_json(form) == desk.client.history(workflow_id)
    # The app asks the environment for its broker, which is not needed for a replay.
    monkeypatch.setenv("DESK_BROKER", "redis://127.0.0.1:1/0")
    assert replay_histories("tests.cli.desk", tmp_path) == [str(tmp_path / name) for name in names]
    # It replays something: a history that says otherwise is found out.
    other = (tmp_path / names[0]).read_text().replace('"desk.note"', '"desk.other"')
    (tmp_path / names[0]).write_text(other)
    with pytest.raises(ReplayError, match=r"export-1\.json: .*(?s:.)*history has 'desk\.other', the code 'desk\.note'"):
        replay_histories("tests.cli.desk", tmp_path, seeds=())


def test_a_file_that_is_there_is_kept_unless_told_otherwise(desk: Desk, runs: list[str], tmp_path: Path) -> None:
    file = tmp_path / "export-1.json"
    file.write_text("mine")

    kept = desk.json("export", *runs[:2], "-o", str(tmp_path))
    assert [entry["written"] for entry in kept["files"]] == [False, True]
    assert file.read_text() == "mine"

    assert desk.text("export", runs[0], "-o", str(tmp_path), "--overwrite") == f"saved  {file}\n"
    assert json.loads(file.read_text())["workflow_id"] == "export-1"


def test_runs_are_saved_by_name_status_and_limit_the_newest_first_one_on_each_line(
    desk: Desk, runs: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "all.jsonl"
    desk.text("export", "--name", "desk.approval", "--status", "running", "--limit", "2", "-o", str(file))

    saved = [json.loads(line) for line in file.read_text().splitlines()]
    open_runs = desk.client.runs(status="running", name="desk.approval").runs
    assert [form["workflow_id"] for form in saved] == [run.workflow_id for run in open_runs[:2]]
    assert len(saved) == 2


def test_one_run_fits_into_one_file_and_two_do_not(desk: Desk, runs: list[str], tmp_path: Path) -> None:
    file = tmp_path / "one.json"
    done = desk.run("export", *runs, "-o", str(file))
    assert (done.returncode, file.exists()) == (2, False)
    assert "one.json takes one run, not 3; give a folder or a .jsonl file" in done.stderr

    desk.text("export", runs[0], "-o", str(file))
    assert json.loads(file.read_text())["workflow_id"] == runs[0]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nobody"], 3, "no workflow 'nobody' in the store"),
        (["export-1", "--name", "desk.approval"], 2, "give ids, or --status and --name, not both"),
        (["--status", "asleep"], 2, "'asleep' is not one of"),
    ],
)
def test_mistakes_are_told_in_one_line_and_nothing_is_written(
    desk: Desk, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    done = desk.run("export", *words, "-o", str(tmp_path / "new"))

    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_told_in_one_line(desk: Desk, runs: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    done = desk.run("export", runs[0], "-o", str(tmp_path / "file" / "folder"))

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Not a directory" in done.stderr


def test_no_runs_match_is_said(desk: Desk, tmp_path: Path) -> None:
    assert desk.text("export", "--name", "desk.nothing", "-o", str(tmp_path)) == "no runs match\n"


def test_each_run_of_a_workflow_is_a_file_of_its_own_and_replays(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow_id = desk.start("shift", 1, workflow_id="export-shift", until="signal decision")
    desk.text("export", workflow_id, "-o", str(tmp_path))
    desk.client.signal(workflow_id, "decision", "go on")
    wait_until(lambda: desk.client.describe(workflow_id).run == 2, 30)
    desk.wait(workflow_id, "signal decision")

    desk.text("export", workflow_id, "-o", str(tmp_path))

    names = ["export-shift#2.json", "export-shift.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    monkeypatch.setenv("DESK_BROKER", "redis://127.0.0.1:1/0")
    assert replay_histories("tests.cli.desk", tmp_path) == [str(tmp_path / name) for name in names]
    # The run counts: its ids are others.
    form = json.loads((tmp_path / names[0]).read_text())
    (tmp_path / names[0]).write_text(json.dumps({**form, "run": 3}))
    with pytest.raises(ReplayError, match="digest of the arguments"):
        replay_histories("tests.cli.desk", tmp_path, seeds=())
