"""The gate of the dependency audit, on recorded reports: shut unless every package was looked at and found well."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.workers import ROOT

_spec = importlib.util.spec_from_file_location("audit", ROOT / "tools" / "audit.py")
assert _spec is not None
assert _spec.loader is not None
audit: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(audit)

WELL = {"name": "celery", "version": "5.7.0", "vulns": []}
#: As pip-audit 2.10.1 writes it for a package that the service does not know, with exit code 0.
UNKNOWN = {"name": "kombu", "skip_reason": "Dependency not found on PyPI and could not be audited: kombu (5.7.0)"}
BROKEN = {
    "name": "Some_Package",
    "version": "1.0",
    "vulns": [{"id": "PYSEC-2021-1", "fix_versions": ["1.1"], "aliases": [], "description": "..."}],
}


def report(*items: dict[str, Any]) -> str:
    return json.dumps({"dependencies": list(items), "fixes": []})


def test_all_packages_audited_and_well_is_the_only_way_through() -> None:
    assert audit.judge(report(WELL), {"celery"}) == []


@pytest.mark.parametrize(
    ("text", "expected", "problem"),
    [
        (report(WELL, UNKNOWN), {"celery", "kombu"}, "kombu: not audited"),
        (report(WELL, BROKEN), {"celery", "some-package"}, "some-package 1.0: PYSEC-2021-1 (fixed in 1.1)"),
        (report(WELL), {"celery", "redis"}, "redis: not in the report"),
        (report({"name": "celery", "version": "5.7.0"}), {"celery"}, "celery: not audited"),
        (report(UNKNOWN), {"kombu"}, "not one package was audited"),
        (report(), {"celery"}, "celery: not in the report"),
        ("", {"celery"}, "no report that could be read"),
        ("Traceback: connection refused", set(), "no report that could be read"),
        ("[]", set(), "no report that could be read"),
    ],
)
def test_gate_is_shut(text: str, expected: set[str], problem: str) -> None:
    assert any(problem in line for line in audit.judge(text, expected))


def test_names_are_compared_however_they_are_written() -> None:
    assert audit.locked("Zope.Interface==8.7\n# x==1\ntomli==2 ; sys_platform == 'win32'\n") == {"zope-interface"}


def test_service_that_is_not_there_fails_the_audit_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "one.lock"
    lock.write_text("click==8.1.0\n")
    # A service that refuses the connection, whatever this machine can reach.
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    assert audit.main([str(lock)]) == 1
    told = capsys.readouterr().err
    assert "audit failed" in told
    assert "no report" in told or "not audited" in told
