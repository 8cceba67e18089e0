"""The table of faults in the documentation is whole, and every test that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
#: Faults of the catalogue: F01 to F57.
FAULTS = [f"F{number:02}" for number in range(1, 58)]


def test_every_fault_has_one_row_with_a_test_or_the_reason_why_not() -> None:
    rows = re.findall(r"^\| (F\d\d) \|.*\|(.*)\|$", PAGE, re.MULTILINE)

    assert [name for name, _ in rows] == FAULTS
    for name, proof in rows:
        assert "`tests/" in proof or "no test" in proof, name


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(tests/[^`]+)`", PAGE))))
def test_what_the_page_names_is_there(name: str) -> None:
    path, _, function = name.partition("::")

    assert (ROOT / path).exists()
    if function:
        assert f"def {function}(" in (ROOT / path).read_text(), function
