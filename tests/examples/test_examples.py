"""Each example runs alone, as its docstring says, and prints what happened: the output is what is checked.

An example is a process of its own that starts its own server and workers, exactly as for the person who tries it.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import delete_from_rabbitmq

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

#: Seconds for one example on a busy machine.
TIMEOUT = 110


def environment(**changes: str) -> dict[str, str]:
    """Return the environment without what would lead an example to a server of ours, and with short waits."""
    ours = {"BROKER_URL", "RESULT_BACKEND", "DURABLE_STORE_URL", "DATABASE_URL", "NO_COLOR", "RELEASE"}
    kept = {key: value for key, value in os.environ.items() if key not in ours}
    return kept | {"APPROVAL_SECONDS": "1", "DELIVERY_SECONDS": "1", "MAIL_SECONDS": "1"} | changes


def run(script: str, *words: str, **changes: str) -> list[str]:
    """Run an example to its good end and return its lines."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *words],
        cwd=ROOT,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def in_this_order(lines: list[str], *parts: str) -> bool:
    """Tell whether the lines contain the parts, one after the other."""
    left: Iterator[str] = iter(lines)
    return all(any(part in line for line in left) for part in parts)


def test_approval_waits_for_a_person_keeps_an_early_answer_reminds_and_gives_up_in_time() -> None:
    lines = run("approval.py")

    assert lines[0].startswith("report-1 waits for: signal decision")
    assert lines[1].startswith("a slip is refused:  the value of signal 'decision' is to be of type Decision: approved")
    assert lines[2:] == [
        "maria approves:     120 paid out for report-1",
        "an early answer:    report-2 was refused by maria: no receipt",
        "nobody answers:     report-3 was left unanswered",
        "what was tried:     ask, remind, ask, remind",
    ]


def test_approval_runs_against_a_broker_of_another_kind(rabbitmq_url: str) -> None:
    try:
        lines = run("approval.py", BROKER_URL=rabbitmq_url)
    finally:
        delete_from_rabbitmq(rabbitmq_url, queues=["approval"], exchanges=["approval"])

    assert lines[-1] == "what was tried:     ask, remind, ask, remind"


def test_import_goes_on_after_a_kill_stops_when_it_is_cancelled_and_is_ended_by_others() -> None:
    assert run("import_orders.py") == [
        "monday: attempt 2 began after the first rows",
        "tuesday: REVOKED",
        "invoice-7: paid by transfer 4711",
    ]


def test_fulfilment_picks_all_lines_refunds_what_is_missing_and_races_the_courier_with_the_clock() -> None:
    assert run("fulfilment.py") == [
        "order-1",
        "  picked    ['2 x lamp', '4 x chair', '1 x table']",
        "  refund    refunded unicorn",
        "  delivery  delivered",
        "  voucher   None",
        "order-2",
        "  picked    ['1 x lamp']",
        "  refund    None",
        "  delivery  late",
        "  voucher   a voucher for order-2",
    ]


def test_files_are_read_although_the_api_is_down_and_the_worker_killed_and_each_is_charged_once() -> None:
    lines = run("files.py")

    assert lines[:3] == ["letter.txt    done", "scribble.txt  unreadable", "a.txt         done"]
    assert "  letter.txt    done        DEAR CUSTOMER" in lines
    assert "  scribble.txt  unreadable" in lines
    # The worker was killed while it read and wrote: a step's key and a transaction make that harmless.
    assert lines[-4] == "files on the bill of ann: 5"
    assert lines[-2].endswith("of which it was down for 2")
    assert lines[-1] == "documents it charges for: 6"


def test_agent_thinks_aloud_and_asks_its_person() -> None:
    assert run("agent.py") == [
        "the agent is waiting for a person: book_flight(ROM-3)",
        "maria clicks:     book_flight(ROM-3) approved by maria",
        "her click, again: book_flight(ROM-3) approved by maria",
        "  it thinks: First I need to know which flights there are.",
        "  it thinks: ROM-3 is the cheapest.",
        "  it thinks: All is done.",
        "the agent says:   You fly with ticket ROM-3.",
        "decided by:       maria",
        "without a worker: waiting for a person: book_flight(ROM-3)",
        "tom decides:      book_flight(ROM-3) refused by tom",
        "the agent says:   No flight was booked.",
    ]


def test_async_report_uses_plain_asyncio() -> None:
    assert run("async_report.py") == [
        "total     245",
        "forecast  left out: it took too long",
        "sent      to maria: we sold 245",
        "sent      to tom: we sold 245",
    ]


def test_upgrade_that_swaps_steps_is_caught_and_goes_on_after_the_fixed_deploy() -> None:
    lines = run("upgrade.py")

    assert in_this_order(
        lines,
        "the order is BLOCKED:",
        "history has 'upgrade.reserve', the code 'upgrade.charge'",
        ">     1  step upgrade.reserve('old')",
        "ctx.patched(",
        "did not end within 0.5 s; it is blocked: NonDeterminismError: ",
        "the old order goes on:    ['shelf-old', 'pay-old', 'parcel-old']",
        "a new order, the new way: ['pay-new', 'shelf-new', 'parcel-new']",
        "release 3 is version 2 of the workflow, on workers of its own; an order is on its way",
        "a new order:              ['pay-first', 'shelf-first', 'parcel-first', 'by version 2']",
        "the last order of before: ['pay-last', 'shelf-last', 'parcel-last']",
        "the worker of version 1 had nothing left to do, and is gone",
    )
    # The table has both sides next to each other.
    assert any(
        re.search(r"> +1 +step upgrade\.reserve\('old'\).* step upgrade\.charge\('old'\)", line) for line in lines
    )


#: A `sitecustomize` that hides what `make demo` would not have installed.
ONLY_LOCKED = """
import re, sys
from importlib.metadata import packages_distributions

def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()

locked = {plain(name) for name in re.findall(r"^([\\w.-]+)==", open(LOCK).read(), re.MULTILINE)} | {"durable-celery"}
hidden = {module for module, owners in packages_distributions().items() if not locked & set(map(plain, owners))}

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden - {"_virtualenv", "distutils-precedence"}:
            raise ModuleNotFoundError(f"{name} is not in the demo's lock", name=name)

sys.meta_path.insert(0, Hide())
"""


def test_demo_charges_once_with_durability_and_twice_without_on_a_machine_with_only_python(tmp_path: Path) -> None:
    lock = ROOT / "requirements" / "demo.lock"
    (tmp_path / "sitecustomize.py").write_text(ONLY_LOCKED.replace("LOCK", repr(str(lock))))

    lines = run("checkout/demo.py", PYTHONPATH=str(tmp_path), PATH=str(tmp_path))

    assert in_this_order(
        lines,
        "With durability",
        "the card is charged, and the store has it on record",
        "worker A is killed: SIGKILL",
        "worker B reads the history",
        "the confirmation is sent",
        "the workflow is complete: pay-",
        "The history of workflow",
        "tasks.charge -> 'pay-",
        "tasks.send_confirmation -> None",
        "completed",
        "✔ charged once, confirmed once",
        "Without durability",
        "worker A is killed: SIGKILL",
        "the card is charged again",
        "✘ charged twice, confirmed once",
    )
    assert not any("\x1b" in line for line in lines)


def test_demo_redraws_its_board_in_place_on_a_terminal() -> None:
    shown = run_on_terminal(EXAMPLES / "checkout" / "demo.py", "--without-durability")

    assert in_this_order(
        shown.splitlines(), "Without durability", "is charged again", "✘ charged twice, confirmed once"
    )
    assert "With durability" not in shown
    # Up to the first line of the board, and clear from there.
    redraws = re.findall(r"\x1b\[(\d+)F\x1b\[J", shown)
    assert len(redraws) > 5
    assert max(map(int, redraws)) < 20


def run_on_terminal(script: Path, *words: str) -> str:
    """Run a program with a terminal of its own and return what it wrote to it."""
    reader, writer = pty.openpty()
    os.set_blocking(reader, True)
    process = subprocess.Popen(
        [sys.executable, str(script), *words],
        stdout=writer,
        stderr=writer,
        env=environment(COLUMNS="100", LINES="50"),
        start_new_session=True,
    )
    os.close(writer)
    shown = b""
    # Reading ends with an error when the last process has closed the terminal.
    while chunk := read(reader):
        shown += chunk
    os.close(reader)
    assert process.wait(TIMEOUT) == 0, shown.decode()
    return shown.decode()


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


#: What examples import, and nobody runs.
HELPERS = {"stage.py", "ocr_service.py"}


@pytest.mark.parametrize("script", sorted({path.name for path in EXAMPLES.glob("*.py")} - HELPERS))
def test_each_example_is_named_in_the_readme(script: str) -> None:
    assert f"examples/{script}" in (ROOT / "README.md").read_text()


def test_an_album_is_bound_by_a_durable_canvas_and_published_in_time_or_not_at_all() -> None:
    assert run("album.py") == [
        "Alps: small peak, small lake, small hut",
        "Rome: small forum (published)",
        "Oslo: small opera, small fjord (not published)",
    ]


def test_a_trip_is_given_back_in_reverse_order_on_failure_and_on_cancel() -> None:
    assert run("trip.py") == [
        "trip-1: flight of trip-1, hotel of trip-1, car of trip-1",
        "trip-2: trip.NothingLeftError: no car is left",
        "  gave back hotel of trip-2, attempt 1",
        "  gave back flight of trip-2, attempt 2",
        "trip-3: REVOKED",
        "  gave back car of trip-3, attempt 1",
        "  gave back hotel of trip-3, attempt 1",
        "  gave back flight of trip-3, attempt 2",
    ]


def test_the_nightly_batch_tolerates_a_few_failures_and_stops_at_too_many() -> None:
    assert run("nightly.py", "600") == [
        "1784 pages for 596 customers, 4 to look at",
        "stopped after 4 failures; 577 customers were never tried",
    ]


def test_render_asks_until_the_job_is_done_or_for_too_long() -> None:
    assert run("render.py") == ["sunrise is done, 70 frames", "job of endless withdrawn"]


def test_a_payment_provider_answers_by_its_token_fails_falls_silent_and_cannot_answer_twice() -> None:
    assert run("payment.py") == [
        "the provider calls: 200",
        "order-1 is paid, receipt r-1",
        "it calls again: 208",
        "order-2 is not paid: the card has expired",
        "a sign of life: 202",
        "order-3 is looked into by a person: the provider fell silent",
        "too late: 410",
        "a forged token: 400",
    ]


def test_subscription_goes_on_as_a_new_run_each_month_until_its_customer_leaves() -> None:
    lines = run("subscription.py", MONTH_SECONDS="2")

    assert lines[0] == "after two months:  run 3"
    assert lines[1] == "at the end:        ann leaves pro in month 5 and has paid 22"
    assert lines[2].startswith("runs, events each: [6, 6, ")
