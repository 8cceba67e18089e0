"""Histories of every release replay for ever: without a mismatch, without a new command, to the same end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from durable_celery.events import TerminalEvent, history_from_json, history_to_json
from durable_celery.workflow import Definition, Execution
from tests.workflow.golden import HISTORIES, WORKFLOWS, main, record
from tests.workflow.log import CODEC, alive, handlers_of

FILES = sorted(HISTORIES.glob("*/*.json"))


@pytest.mark.parametrize("path", FILES, ids=[f"{path.parent.name}/{path.stem}" for path in FILES])
def test_a_kept_history_replays_to_its_end(path: Path) -> None:
    form = json.loads(path.read_text())
    history = history_from_json(form)
    function = WORKFLOWS[path.stem][0]
    definition = Definition(name="test", function=function, handlers=handlers_of(function))
    execution = Execution(definition, form["workflow_id"], codec=CODEC)
    alive.append(execution)
    execution.feed(history, fresh_after=len(history))
    assert execution.take_outputs() == ()
    assert execution.closed
    assert isinstance(history[-1].event, TerminalEvent)
    assert history_to_json(form["workflow_id"], history) == form, "its form can be written as it was read"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_each_golden_workflow_still_writes_the_history_that_is_kept(name: str) -> None:
    newest = max(HISTORIES.glob(f"*/{name}.json"))
    kept, now = json.loads(newest.read_text()), record(name)
    for form in (kept, now):
        for event in form["events"]:
            if "traceback" in event.get("payload", ""):
                # Tracebacks name lines of this repository.
                event["payload"] = {**json.loads(event["payload"]), "traceback": ""}
    assert now == kept


def test_writing_histories_never_touches_one_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.workflow.golden.HISTORIES", tmp_path)
    (tmp_path / "9.9.9").mkdir()
    (tmp_path / "9.9.9" / "failing.json").write_text("kept")
    main("9.9.9")
    assert (tmp_path / "9.9.9" / "failing.json").read_text() == "kept"
    assert len(list((tmp_path / "9.9.9").iterdir())) == len(WORKFLOWS)
    assert "kept" in capsys.readouterr().out
