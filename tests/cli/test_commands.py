"""``celery -A app durable``: what people and programs see of real runs, and how it acts on them."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess

import pytest

from durable_celery.events import LocalStepCompleted, SignalReceived, history_from_json
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


def test_a_version_that_is_not_the_first_is_shown(desk: Desk, waiting: str) -> None:
    run = desk.start("versioned", "go", workflow_id="versioned-1", until="signal go")

    assert re.search(rf"^{run} +desk\.versioned v3 +running ", desk.text("list"), re.MULTILINE)
    assert re.search(r"^  version    3$", desk.text("show", run), re.MULTILINE)
    assert "desk.versioned('go'), version 3" in desk.text("history", run)
    assert desk.json("show", run)["version"] == 3
    assert desk.json("show", waiting)["version"] == 1
    assert "version" not in desk.text("show", waiting)


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


def test_query_update_and_follow_talk_to_a_run(desk: Desk) -> None:
    workflow_id = desk.start("approval", "a boat", workflow_id="boat-1", until="signal decision")

    assert desk.text("query", workflow_id, "deputy") == '"nobody"\n'
    assert desk.json("query", workflow_id, "deputy", '"somebody"') == "somebody"
    for _ in range(2):
        assert desk.json("update", workflow_id, "name_deputy", '"tom"', "--key", "k1", "--timeout", "30") == "tom it is"
    assert desk.text("query", workflow_id, "deputy") == '"tom"\n'
    assert re.search(r"^  published +deputy = 'tom'$", desk.text("show", workflow_id), re.MULTILINE)
    refused = desk.run("update", workflow_id, "name_deputy", '"zoe"')
    assert (refused.returncode, refused.stderr) == (1, "Error: ValueError: zoe is away\n")

    with subprocess.Popen(desk.command("follow", workflow_id), env=desk.env(), stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        assert it.stdout.readline().split(maxsplit=1)[1] == "deputy = 'tom'\n"
        desk.text("update", workflow_id, "name_deputy", '"ann"')
        rest = [it.stdout.readline().split(maxsplit=1)[1] for _ in range(3)]
        desk.text("signal", workflow_id, "decision")
        assert it.wait(30) == 0
    assert rest == ["talk << 'noted: tom'\n", "deputy = 'ann'\n", "talk << 'noted: ann'\n"]
    items = [json.loads(line) for line in desk.text("follow", workflow_id, "talk", "--json").splitlines()]
    assert [(item["kind"], item["value"]) for item in items] == [("stream", "noted: tom"), ("stream", "noted: ann")]
    after = desk.text("follow", workflow_id, "--after", str(items[0]["offset"])).splitlines()
    assert [line.split(maxsplit=1)[1] for line in after] == ["deputy = 'ann'", "talk << 'noted: ann'"]
    told = desk.text("history", workflow_id)
    assert "update     k1: name_deputy('tom')" in told
    assert "update     k1 -> 'tom it is'" in told
    assert "stream     talk << 'noted: tom'" in told


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
        (["query", "nobody", "deputy"], 3, "no workflow 'nobody' in the store"),
        (["update", "nobody", "name_deputy", '"tom"'], 3, "no workflow 'nobody' in the store"),
        (["follow", "nobody"], 3, "no workflow 'nobody' in the store"),
        (["query", "trip-1", "deputi"], 2, "no query 'deputi'; did you mean 'deputy'"),
        (["query", "trip-1", "deputy", "tom"], 2, "'tom' is no JSON"),
        (["update", "trip-1", "name_deputy"], 2, "missing a required argument: 'who'"),
        (["show", "no body"], 2, "cannot be a workflow id"),
        (["signal", "trip-1", "decision", "yes"], 2, "VALUE is no JSON"),
        (["list", "--status", "asleep"], 2, "'asleep' is not one of"),
        (["complete", "nobody/1.1"], 3, "no workflow 'nobody' in the store"),
        (["complete", "nobody"], 2, "is no token of a step"),
        (["complete", "nobody/1.1", "yes"], 2, "RESULT is no JSON"),
        (["fail", "nobody/1.1", "why"], 3, "no workflow 'nobody' in the store"),
    ],
)
def test_mistakes_are_told_in_one_line(desk: Desk, waiting: str, words: list[str], code: int, message: str) -> None:
    done = desk.run(*words)

    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def token(desk: Desk, workflow_id: str, *args: object) -> str:
    """Start a run that waits for an answer; return the token that it gave out."""
    desk.start("callback", *args, workflow_id=workflow_id, until="running")
    return next(
        str(desk.client.codec.decode(item.event.payload))
        for item in desk.client.history(workflow_id)
        if isinstance(item.event, LocalStepCompleted)
    )


def test_a_callback_is_completed_once(desk: Desk) -> None:
    given = token(desk, "callback-1")

    assert desk.text("callback", "complete", given, '{"paid": 12}') == "the answer is in the history\n"
    desk.wait("callback-1", "completed")
    again = desk.text("callback", "complete", given, '{"paid": 12}')
    assert again == "it was answered before; nothing was changed\n"
    assert desk.json("callback", "fail", given, "no")["accepted"] is False
    assert re.search(r"completed +-> \{'paid': 12\}$", desk.text("history", "callback-1"), re.MULTILINE)


def test_a_callback_is_kept_waiting_and_failed(desk: Desk) -> None:
    given = token(desk, "callback-2", 3600)

    assert desk.text("callback", "heartbeat", given) == "the sign of life is in the history\n"
    assert desk.json("callback", "fail", given, "the card has expired")["accepted"] is True
    desk.wait("callback-2", "failed")
    assert "CallbackFailedError: the card has expired" in desk.text("history", "callback-2", "--payloads")

    late = desk.run("callback", "heartbeat", given)
    assert (late.returncode, late.stdout) == (4, "")
    assert "already failed" in late.stderr


def test_an_event_is_published_once(desk: Desk) -> None:
    assert desk.text("publish-event", "rates", '{"eur": 1.1}') == "published\n"
    assert desk.json("publish-event", "rates", '{"eur": 1.1}') == {"published": False}
    again = desk.text("publish-event", "rates", '{"eur": 1.1}')
    assert again == "it was published before with this value; nothing was changed\n"

    other = desk.run("publish-event", "rates", "2")
    assert (other.returncode, other.stdout) == (4, "")
    assert "event 'rates' was published with another value, which stands" in other.stderr
    assert "published = {'eur': 1.1}" in desk.text("history", "durable:event:rates")
    bad = desk.run("publish-event", "two words")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "cannot be the name of an event" in bad.stderr


@pytest.mark.parametrize("words", [["complete", "nonsense"], ["fail", "dcb1.nonsense", "why"], ["heartbeat", ""]])
def test_what_is_no_token_is_told_in_one_line(desk: Desk, words: list[str]) -> None:
    done = desk.run("callback", *words)

    assert (done.returncode, done.stdout) == (2, "")
    assert "no token of a callback" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_signal_is_held_against_what_the_workflow_declares(desk: Desk) -> None:
    workflow_id = desk.start("poll", workflow_id="poll-1", until="signal voted")

    wrong = desk.run("signal", workflow_id, "voted", '{"who": "ann"}')
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "Vote has no field who; it has by, yes" in wrong.stderr
    unknown = desk.run("signal", workflow_id, "vote")
    assert unknown.returncode == 2
    assert "takes no signal 'vote', but 'voted'; was 'voted' meant?" in unknown.stderr
    desk.text("signal", workflow_id, "voted", '{"by": "ann"}')
    desk.wait(workflow_id, "completed")


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
    with subprocess.Popen(desk.command("list"), env=desk.env(COLUMNS="80"), stdout=theirs) as process:
        os.close(theirs)
        shown = b""
        while chunk := _read(ours):
            shown += chunk
        assert process.wait(30) == 0
    os.close(ours)

    assert b"\x1b[36mrunning\x1b[0m" in shown
    plain = re.sub(r"\x1b\[\d*m", "", shown.decode())
    assert max(len(line) for line in plain.splitlines() if waiting in line) <= 80


def test_help_names_every_command(desk: Desk) -> None:
    text = desk.text("--help")

    commands = {"list", "show", "history", "export", "signal", "callback", "cancel", "query", "update", "follow"}
    assert commands <= set(text.split())
    assert {"complete", "fail", "heartbeat"} <= set(desk.text("callback", "--help").split())


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
