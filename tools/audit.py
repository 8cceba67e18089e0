"""The audit of dependencies: fails on a known vulnerability, and on whatever could not be audited.

``pip-audit`` ends with 0 where it finds no package of that name at the service, or no service at all; a gate that
trusts its exit code is open whenever it is blind. This one reads the report and wants to see each locked package in it.

    python tools/audit.py requirements/dev.lock requirements/demo.lock
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["judge", "locked", "main"]

#: Seconds that one package may take at the service, and all of them together.
_TIMEOUT, _PATIENCE = 15, 900
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==", re.MULTILINE)


def locked(text: str) -> set[str]:
    """Return the normalised names of the packages that a lock file pins, but for those of other platforms."""
    lines = [line for line in text.splitlines() if "sys_platform == 'win32'" not in line]
    return {_normalised(name) for name in _PIN.findall("\n".join(lines))}


def judge(report: str, expected: Iterable[str]) -> list[str]:
    """Return all that is wrong according to a report of ``pip-audit --format json``; nothing means that all is well."""
    try:
        found: Any = json.loads(report)["dependencies"]
        by_name = {_normalised(item["name"]): item for item in found}
    except (ValueError, KeyError, TypeError):
        return [f"there is no report that could be read; was the service reached? ({report[:200]!r})"]
    problems = [f"{name}: not in the report" for name in sorted(set(expected) - set(by_name)) if name]
    for name, item in sorted(by_name.items()):
        if "skip_reason" in item or "vulns" not in item:
            problems.append(f"{name}: not audited ({item.get('skip_reason', 'no answer')})")
        problems += [f"{name} {item.get('version')}: {_story(vuln)}" for vuln in item.get("vulns", ())]
    if found and all("skip_reason" in item for item in found):
        problems.append("not one package was audited: the vulnerability service does not answer, or knows no names")
    return problems


def main(files: Sequence[str]) -> int:
    """Audit lock files; return the exit code."""
    problems: list[str] = []
    for file in files:
        expected = _installed_here(locked(Path(file).read_text(encoding="utf-8")), file)
        report, errors = _report(file)
        problems += [f"{file}: {problem}" for problem in judge(report, expected) or ()]
        if problems and errors:
            problems.append(errors)
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    sys.stderr.write(f"audit failed: {len(problems)} problems\n" if problems else "every locked package was audited\n")
    return 1 if problems else 0


def _report(file: str) -> tuple[str, str]:
    options = [
        "--no-deps",
        "--disable-pip",
        "--format",
        "json",
        "--progress-spinner",
        "off",
        "--timeout",
        str(_TIMEOUT),
    ]
    command = [sys.executable, "-m", "pip_audit", "--requirement", file, *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return "", f"pip-audit did not end within {_PATIENCE} s"
    return done.stdout, done.stderr.strip()[-500:] if not done.stdout else ""


def _installed_here(names: set[str], file: str) -> set[str]:
    """Leave out what a marker keeps from this interpreter: pip-audit does so too."""
    from packaging.requirements import Requirement

    markers = {}
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            markers[_normalised(requirement.name)] = requirement.marker is None or requirement.marker.evaluate()
    return {name for name in names if markers.get(name, True)}


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _story(vuln: Any) -> str:
    fixes = ", ".join(vuln.get("fix_versions") or ()) or "none yet"
    return f"{vuln.get('id')} (fixed in {fixes})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
