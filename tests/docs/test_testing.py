"""The page "Testing your workflows" is tried: its files are written as they stand there, and pytest is run on them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "testing.md").read_text()
BLOCK = re.compile(r"^```python\n# (\w+\.py)(, continued)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)

#: The test files of the page that need no server, with how many tests they have.
TESTS = {"test_orders.py": 4, "test_crashes.py": 2, "test_mails.py": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, continued, text in BLOCK.findall(PAGE):
        with (tmp_path / name).open("a" if continued else "w") as file:
            file.write(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    return tmp_path


def output(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_tests_of_the_page_pass(folder: Path) -> None:
    shown = output(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS)

    assert f"{sum(TESTS.values())} passed" in shown


def test_the_story_of_the_page_is_the_one_that_is_told(folder: Path) -> None:
    code = """
from durable_celery.testing import NotCrashProofError, crash_everywhere
from mails import outbox, thank

try:
    crash_everywhere(thank, "o-1", effects=outbox)
except NotCrashProofError as error:
    print(error)
"""
    (told,) = [text for text in re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if "mails." in text]

    assert without_numbers(output(folder, "-c", code)) == without_numbers(told)


def without_numbers(text: str) -> list[str]:
    """Return the lines without the date, and without the number of the run, which follow from the day and the code."""
    return re.sub(r"started .* UTC|run \d+", "#", text).splitlines()


RECORD = """
import json
from pathlib import Path
from durable_celery.events import history_to_json
from durable_celery.testing import Environment
from orders import app, checkout

with Environment(app) as durable:
    handle = durable.start(checkout, "o-1", 1200)
    Path("tests/histories").mkdir(parents=True)
    form = history_to_json(handle.id, handle.history())
    Path("tests/histories/order.json").write_text(json.dumps(form))
"""


def test_saved_histories_replay_and_a_real_worker_is_killed_as_the_page_says(folder: Path) -> None:
    output(folder, "-c", RECORD)

    shown = output(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_histories.py", "test_real_worker.py")

    assert "2 passed" in shown
    assert output(folder, "replay.py") == "['tests/histories/order.json']\n"
