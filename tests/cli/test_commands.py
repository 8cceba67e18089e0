"""``celery -A app durable``: what people and programs see of real runs, and how it acts on them."""

from __future__ import annotations

import os
import pty
import re
import subprocess

import pytest

from durable_celery.events import SignalReceived, history_from_json
from tests.cli.conftest import Desk
from tests.servers import free_port
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def waiting(desk: Desk) -> str:
    return desk.start("approval", "a trip to Rome", workflow_id="trip-1", until="signal decision")


@pytest.fixture(scope="module")
def retrying(desk: Desk) -> str:
    return desk.start("mail", workflow_id="mail-1", until="ConnectionError('the mail server is away')")


def test_list_shows_the_newest_first_with_what_each_waits_for(desk: Desk, waiting: str, retrying: str) -> None:
    lines = desk.text("list").splitlines()

    assert lines[0].split("  ")[0] == "ID"
    order = [line.split()[0] for line in lines]
    assert order.index(retrying) < order.index(waiting)
    assert re.search(rf"^{waiting} +desk\.approval +running +\d+ s +signal decision$", "\n".join(lines), re.MULTILINE)


def test_list_filters_and_turns_pages(desk: Desk, waiting: str, retrying: str) -> None:
    by_name = desk.json("list", "--name", "desk.mail")
    assert [run["workflow_id"] for run in by_name["runs"]] == [retrying]
    assert desk.text("list", "--name", "desk.mail", "--status", "failed") == "no runs match\n"

    seen, cursor = [], None
    while True:
        page = desk.json("list", "--limit", "1", *(["--cursor", cursor] if cursor else []))
        seen += [run["workflow_id"] for run in page["runs"]]
        if (cursor := page["cursor"]) is None:
            break
    assert len(seen) == len(set(seen))
    assert {waiting, retrying} <= set(seen)


def test_show_tells_of_an_open_step_its_attempt_error_and_due_time(desk: Desk, retrying: str) -> None:
    text = desk.text("show", retrying)

    assert re.search(r"^  workflow   desk\.mail\(\)$", text, re.MULTILINE)
    assert re.search(
        r"^  1 +desk\.stumble\(\) +pending +1 +- +in (59 m \d\d s|1 h 00 m) +ConnectionError\('the mail.*'\)$",
        text,
        re.MULTILINE,
    ), text
    step = desk.json("show", retrying)["steps"][0]
    assert (step["number"], step["state"], step["attempt"]) == (1, "pending", 1)


def test_show_links_parent_and_child(desk: Desk) -> None:
    parent = desk.start("family", workflow_id="family-1", until="step desk.approval (1)")
    desk.wait("family-1/1.1", "signal decision")

    assert re.search(r"^  family-1/1\.1 +desk\.approval +open$", desk.text("show", parent), re.MULTILINE)
    assert "parent     family-1, its step 1" in desk.text("show", "family-1/1.1")
    assert desk.json("show", parent)["children"] == [
        {"workflow_id": "family-1/1.1", "name": "desk.approval", "state": "open"}
    ]


def test_signal_and_history_tell_the_story_of_a_run(desk: Desk) -> None:
    workflow_id = desk.start("approval", "x" * 300, workflow_id="trip-2", until="signal decision")

    desk.text("signal", workflow_id, "decision", '{"by": "ann"}', "--key", "k1")
    desk.wait(workflow_id, "completed")

    lines = desk.text("history", workflow_id).splitlines()
    assert re.fullmatch(r"trip-2, started \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", lines[0])
    told = [re.sub(r"^ +\d+ +\+\d+\.\d{3} s  ", "", line) for line in lines[2:]]
    assert [line.split("  ")[0] for line in told] == ["started", "step 1", "step 1", "signal", "completed"]
    assert told[0].startswith("started    desk.approval('xxx")
    assert len(told[0]) < 120
    assert "…" in told[0]
    assert told[3] == "signal     decision = {'by': 'ann'}"
    assert "x" * 300 in desk.text("history", workflow_id, "--payloads")
    assert "outcome    ['noted: xxx" in desk.text("show", workflow_id)


def test_history_as_json_is_the_exported_form(desk: Desk, waiting: str) -> None:
    form = desk.json("history", waiting, "--payloads")

    assert history_from_json(form) == desk.client.history(waiting)


def test_signals_with_one_key_are_one(desk: Desk, waiting: str) -> None:
    for _ in range(2):
        assert desk.json("signal", waiting, "hint", '"red"', "--key", "same")["accepted"] is True

    signals = [item.event for item in desk.client.history(waiting) if isinstance(item.event, SignalReceived)]
    assert [(event.name, event.payload) for event in signals] == [("hint", '"red"')]


def test_cancel_ends_a_run_and_keeps_the_reason(desk: Desk) -> None:
    workflow_id = desk.start("approval", "a car", workflow_id="car-1", until="signal decision")

    assert "is in the history" in desk.text("cancel", workflow_id, "--reason", "too dear")
    desk.wait(workflow_id, "cancelled")

    assert "requested: too dear" in desk.text("history", workflow_id)
    assert desk.text("list", "--status", "cancelled").splitlines()[1].startswith("car-1 ")
    closed = desk.run("signal", workflow_id, "decision")
    assert (closed.returncode, closed.stderr) == (4, "Error: workflow 'car-1' is already cancelled\n")


def test_a_step_is_completed_or_failed_by_its_token(desk: Desk) -> None:
    for number, words in enumerate((["complete", '{"paid": 12}'], ["fail", "declined"]), 1):
        name = desk.start("asked", workflow_id=f"asked-{number}", until="step desk.ask (1)")
        token = f"{name}/1.1"
        wait_until(lambda: "waiting" in desk.text("show", name), 30, f"{name} to wait")  # noqa: B023 - called here
        assert "of step" in desk.text(words[0], token, *words[1:])
        desk.wait(name, ("completed", "failed")[number - 1])

        again = desk.run("complete", token, "7")
        assert again.returncode == 4
        assert f"step {token} takes no outcome from outside" in again.stderr

    assert '"paid": 12' in desk.text("show", "asked-1", "--json") or "{'paid': 12}" in desk.text("show", "asked-1")
    assert "ExternalError: declined" in desk.text("history", "asked-2")


def test_blocked_run_shows_the_whole_story_of_the_mismatch(desk: Desk) -> None:
    workflow_id = desk.start("upgraded", workflow_id="upgrade-1", until="signal decision")
    desk.worker.stop()
    with desk.new_worker(DESK_CODE="2"):
        desk.text("signal", workflow_id, "decision")
        desk.wait(workflow_id, "blocked")

    text = desk.text("show", workflow_id)
    assert "blocked, because" in text
    assert re.search(r"^ *> +1  step desk\.note\('old'\) #\w{8} +step desk\.note\('new'\) #\w{8}$", text, re.MULTILINE)
    assert "ctx.patched(" in text
    assert desk.json("show", workflow_id)["reason"].count("\n") > 3
    # The first worker has the code that fits: the run goes on without anybody's help.
    desk.worker.start()
    desk.wait(workflow_id, "completed")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["show", "nobody"], 3, "no workflow 'nobody' in the store (never started, or its retention has passed)"),
        (["history", "nobody"], 3, "no workflow 'nobody' in the store"),
        (["signal", "nobody", "go"], 3, "no workflow 'nobody' in the store"),
        (["cancel", "nobody"], 3, "no workflow 'nobody' in the store"),
        (["show", "no body"], 2, "cannot be a workflow id"),
        (["signal", "trip-1", "decision", "yes"], 2, "VALUE is no JSON"),
        (["list", "--status", "asleep"], 2, "'asleep' is not one of"),
        (["complete", "nobody/1.1"], 3, "no workflow 'nobody' in the store"),
        (["complete", "nobody"], 2, "is no token of a step"),
        (["complete", "nobody/1.1", "yes"], 2, "RESULT is no JSON"),
        (["fail", "nobody/1.1", "why"], 3, "no workflow 'nobody' in the store"),
    ],
)
def test_mistakes_are_told_in_one_line(desk: Desk, words: list[str], code: int, message: str) -> None:
    done = desk.run(*words)

    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_does_not_answer_is_told_in_one_line(desk: Desk) -> None:
    done = desk.run("list", url=f"redis://127.0.0.1:{free_port()}/0")

    assert done.returncode == 69
    assert re.fullmatch(r"Error: the Redis server does not answer: .*refused.*\n", done.stderr)


def test_an_app_without_any_redis_is_told_what_to_set(desk: Desk) -> None:
    done = desk.run("list", url="amqp://guest:guest@127.0.0.1:1//")

    assert done.returncode == 1
    assert done.stderr.startswith("Error: durable_celery needs a store for its histories. Set durable_store to")
    assert "guest:guest" not in done.stderr


def test_colours_and_cut_lines_are_for_terminals_only(desk: Desk, waiting: str) -> None:
    assert "\x1b" not in desk.text("list")

    ours, theirs = pty.openpty()
    with subprocess.Popen(desk.command("list"), env=desk.env(COLUMNS="62"), stdout=theirs) as process:
        os.close(theirs)
        shown = b""
        while chunk := _read(ours):
            shown += chunk
        assert process.wait(30) == 0
    os.close(ours)

    assert b"\x1b[36mrunning\x1b[0m" in shown
    plain = re.sub(r"\x1b\[\d*m", "", shown.decode())
    assert max(len(line) for line in plain.splitlines() if waiting in line) <= 62


def test_help_names_every_command(desk: Desk) -> None:
    text = desk.text("--help")

    assert {"list", "show", "history", "export", "signal", "cancel"} <= set(text.split())


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # how Linux says that the other side of a terminal is closed
        return b""


@pytest.fixture(scope="module")
def second_day(desk: Desk) -> str:
    """Give the id of a workflow in its second run."""
    workflow_id = desk.start("shift", 1, workflow_id="shift-1", until="signal decision")
    desk.client.signal(workflow_id, "decision", "go on")
    wait_until(lambda: desk.client.describe(workflow_id).run == 2, 30)
    desk.wait(workflow_id, "signal decision")
    return workflow_id


def test_history_of_an_earlier_run_can_be_read(desk: Desk, second_day: str) -> None:
    newest, earlier = desk.text("history", second_day), desk.text("history", second_day, "--run", "1")

    assert newest.startswith("shift-1, run 2, started ")
    assert "started  desk.shift(2)" in newest
    assert earlier.startswith("shift-1, started ")
    assert earlier.splitlines()[-1].endswith("continued  as run 2 with (2)")
    assert desk.json("history", second_day)["run"] == 2
    assert "run" not in desk.json("history", second_day, "--run", "1")


def test_run_that_is_not_there_is_said_so(desk: Desk, second_day: str) -> None:
    done = desk.run("history", second_day, "--run", "3")

    assert (done.returncode, done.stdout) == (3, "")
    assert "no workflow 'shift-1' with a run 3 in the store" in done.stderr
    assert desk.run("history", second_day, "--run", "0").returncode == 2


def test_show_says_which_run_it_is(desk: Desk, second_day: str) -> None:
    text = desk.text("show", second_day)

    assert re.search(r"run +2, since \d{4}-\d\d-\d\d", text)
    assert "desk.shift(2)" in text
    assert desk.json("show", second_day)["run"] == 2
