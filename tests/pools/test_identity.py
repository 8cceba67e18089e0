"""Names of processes: who is mine, who is gone, and whom nobody here can judge."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from durable_celery.identity import is_child, is_gone, is_mine, process_name
from tests.waiting import wait_until
from tests.workers import ROOT

#: Says its name, and lives until its input is closed.
PROGRAM = "import sys; from durable_celery.identity import process_name; print(process_name(), flush=True); input()"
ELSEWHERE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    process = begin()
    yield process
    process.kill()
    process.wait()


def begin(*prefix: str) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([*prefix, sys.executable, "-c", PROGRAM], cwd=ROOT, **pipes)


def name_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_a_process_is_its_own_and_lives() -> None:
    assert is_mine(process_name())
    assert not is_gone(process_name())


def test_a_child_is_mine_while_it_lives(child: subprocess.Popen[str]) -> None:
    name = name_of(child)

    assert name != process_name()
    assert is_mine(name)
    assert not is_gone(name)


def test_a_child_is_known_by_the_name_of_its_parent(child: subprocess.Popen[str]) -> None:
    name = name_of(child)

    assert is_child(name, ["h:1:2.3", process_name()])
    assert not is_child(process_name(), [name])
    assert not is_child(name, [name, "h:1:2.3"])


def test_a_killed_child_is_gone_even_before_it_is_reaped(child: subprocess.Popen[str]) -> None:
    name = name_of(child)

    child.kill()

    # Nobody has asked for its end yet: it is a zombie with a pid.
    wait_until(lambda: is_gone(name), 10)
    assert not is_mine(name)
    child.wait()
    assert is_gone(name)


def test_a_later_process_with_the_same_pid_is_another_one(child: subprocess.Popen[str]) -> None:
    place, _, start = name_of(child).rpartition(".")

    assert is_gone(f"{place}.{int(start) - 1}")


def test_a_process_that_another_one_started_is_not_mine(child: subprocess.Popen[str]) -> None:
    host, _, place = name_of(child).split(":")

    assert not is_mine(f"{host}:1:{place}")


def test_a_process_of_another_pid_namespace_is_neither_mine_nor_known_to_be_gone() -> None:
    if not shutil.which(ELSEWHERE[0]) or subprocess.run([*ELSEWHERE, "true"], check=False).returncode:
        pytest.skip("pid namespaces are not allowed here")
    stranger = begin(*ELSEWHERE)
    name = name_of(stranger)
    stranger.kill()
    stranger.wait()

    assert name.split(":")[0] != process_name().split(":")[0]
    assert not is_gone(name)
    assert not is_mine(name)
