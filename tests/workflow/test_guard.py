"""The guard: workflow code that reaches outside is stopped there; everybody else is left alone."""

from __future__ import annotations

import importlib
import logging
import logging.handlers
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
import zoneinfo
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from durable_celery.errors import SideEffectError
from durable_celery.events import RunFailed
from durable_celery.workflow import AsyncWorkflowContext, WorkflowContext
from tests.workflow.log import Run, charge, notify

EFFECTS: dict[str, Callable[[], object]] = {
    "open": lambda: Path(__file__).read_text(),
    "socket.__new__": socket.socket,
    "socket.getaddrinfo": lambda: socket.getaddrinfo("localhost", 80),
    "subprocess.Popen": lambda: subprocess.run(["true"], check=False),  # noqa: S607
    "os.system": lambda: getattr(os, "system")("true"),  # noqa: B009 - type checkers know it as outdated
    "os.fork": os.fork,
    "os.remove": lambda: Path("/nonexistent").unlink(),
    "os.mkdir": lambda: Path("/nonexistent/x").mkdir(),
    "os.listdir": lambda: os.listdir("/"),  # noqa: PTH208
    "time.sleep": lambda: time.sleep(0),
    "urllib.Request": lambda: urllib.request.urlopen("http://localhost:1"),
}
if sys.version_info >= (3, 13):
    # Older versions start threads without telling.
    EFFECTS["_thread.start_joinable_thread"] = threading.Thread(target=print).start


@pytest.mark.parametrize("event", EFFECTS)
def test_a_side_effect_in_workflow_code_is_refused_and_not_done(event: str) -> None:
    def code(ctx: WorkflowContext) -> None:
        EFFECTS[event]()

    async def code_async(ctx: AsyncWorkflowContext) -> None:
        EFFECTS[event]()

    for each in (code, code_async):
        with pytest.raises(SideEffectError, match=event) as caught:
            Run(each).start()
        assert "test_guard.py:" in str(caught.value)
        assert ("ctx.sleep" if event == "time.sleep" else "ctx.step") in str(caught.value)


def test_the_line_named_is_the_user_s_and_not_that_of_a_library() -> None:
    def code(ctx: WorkflowContext) -> None:
        urllib.request.urlopen("http://localhost:1")

    line = code.__code__.co_firstlineno + 1
    with pytest.raises(SideEffectError, match=f"test_guard.py:{line}: "):
        Run(code).start()


def test_code_that_swallows_the_error_is_stopped_all_the_same() -> None:
    def code(ctx: WorkflowContext) -> None:
        with suppress(Exception):
            Path(__file__).read_text()
        ctx.start(charge)
        ctx.run(done.append, 1)

    done: list[int] = []
    run = Run(code)
    with pytest.raises(SideEffectError, match="open"):
        run.start()
    assert run.execution.take_outputs() == ()
    assert done == []


def test_the_error_is_an_ordinary_exception_in_the_code() -> None:
    seen: list[str] = []

    def code(ctx: WorkflowContext) -> None:
        try:
            time.sleep(1)
        except SideEffectError:
            seen.append(traceback.format_exc())
            raise

    with pytest.raises(SideEffectError):
        Run(code).start()
    assert "time.sleep(1)" in seen[0], "the traceback is printed with its source"


def test_a_failure_is_recorded_whose_line_cannot_be_parsed() -> None:
    def code(ctx: WorkflowContext) -> None:
        # To mark what failed in this line, traceback parses it as an expression; for the error the parser opens a file.
        for key in "x": raise KeyError(key)  # fmt: skip # noqa: E701

    assert isinstance(Run(code).start().outputs[-1], RunFailed)


def test_branches_are_guarded_too() -> None:
    def code(ctx: WorkflowContext) -> None:
        ctx.gather(ctx.spawn(lambda ctx: ctx.step(charge)), ctx.spawn(lambda _: time.sleep(1)))

    with pytest.raises(SideEffectError):
        Run(code).start()


def test_local_steps_and_other_code_of_the_process_are_not_guarded() -> None:
    def local() -> int:
        time.sleep(0)
        return len(Path(__file__).read_text())

    def code(ctx: WorkflowContext) -> int:
        return ctx.run(local)

    assert Run(code).start().result > 0
    assert local() > 0


def test_imports_in_workflow_code_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lazily_imported.py").write_text("text = open(__file__).read()")
    monkeypatch.syspath_prepend(tmp_path)

    def code(ctx: WorkflowContext) -> str:
        return str(importlib.import_module("lazily_imported").text)

    def code_with_statement(ctx: WorkflowContext) -> str:
        import lazily_imported  # type: ignore[import-not-found]  # written above

        return str(lazily_imported.text)

    for each in (code, code_with_statement):
        sys.modules.pop("lazily_imported", None)
        assert "read()" in Run(each).start().result
    sys.modules.pop("lazily_imported", None)


def test_time_zones_may_be_loaded() -> None:
    def code(ctx: WorkflowContext) -> str:
        return str(ctx.now().astimezone(zoneinfo.ZoneInfo.no_cache("Europe/Zurich")).utcoffset())

    assert Run(code).start().result == "1:00:00"


def test_log_handlers_may_open_files(tmp_path: Path) -> None:
    logger = logging.getLogger("tests.guard")
    handlers = [
        logging.FileHandler(tmp_path / "late.log", delay=True),
        logging.handlers.RotatingFileHandler(tmp_path / "rotated.log", maxBytes=1, backupCount=1),
    ]

    def code(ctx: WorkflowContext) -> None:
        ctx.logger.error("through the context")
        logger.error("plain")

    names = [logger, logging.getLogger("durable_celery.workflow.test")]
    for each in names:
        each.handlers.extend(handlers)
    try:
        Run(code).start()
    finally:
        for each in names:
            each.handlers.clear()
        for handler in handlers:
            handler.close()
    assert (tmp_path / "late.log").read_text().splitlines() == ["through the context", "plain"]


def test_garbage_collection_in_workflow_code_may_close_and_remove_files(tmp_path: Path) -> None:
    class Holder:
        def __del__(self) -> None:
            (tmp_path / "closed").write_text("closed")

    def code(ctx: WorkflowContext) -> None:
        Holder()

    Run(code).start()
    assert (tmp_path / "closed").exists()


def test_an_error_that_nobody_can_catch_is_printed_and_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Python shows the line of source where it happened, and opens the file for that."""
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)

    class Broken:
        def __del__(self) -> None:
            raise ValueError("in garbage collection")

    def code(ctx: WorkflowContext) -> str:
        Broken()
        return "done"

    Run(code).start()

    assert 'raise ValueError("in garbage collection")' in capfd.readouterr().err


def test_clean_up_during_eviction_that_touches_files_does_no_harm() -> None:
    def code(ctx: WorkflowContext) -> None:
        try:
            ctx.step(charge)
        finally:
            Path(__file__).read_text()

    run = Run(code).start()
    run.execution.evict()


def test_a_side_effect_of_a_branch_that_is_left_behind_at_the_end_does_not_take_the_end_away() -> None:
    def branch(ctx: WorkflowContext) -> None:
        try:
            ctx.step(notify)
        finally:
            Path(__file__).read_text()

    def code(ctx: WorkflowContext) -> str:
        ctx.spawn(branch)
        ctx.step(charge)
        return "done"

    run = Run(code).start()
    run.complete(1)
    assert run.result == "done"


def test_a_process_without_executions_has_no_hook_and_one_with_many_has_one() -> None:
    script = """
import sys
hooks = []
add, sys.addaudithook = sys.addaudithook, lambda hook: hooks.append(hook)
from durable_celery.workflow import Definition, Execution
from durable_celery.codec import Codec
print(len(hooks))
for name in "abc":
    Execution(Definition(name=name, function=print), name, codec=Codec())
print(len(hooks))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1"]


def test_audited_calls_do_not_reach_the_judgement_outside_of_workflow_code(monkeypatch: pytest.MonkeyPatch) -> None:
    Run(lambda _ctx: None).start()
    judged: list[Any] = []
    monkeypatch.setattr("durable_celery.workflow.guard._judge", lambda *args: judged.append(args))
    Path(__file__).read_text()
    assert judged == []
