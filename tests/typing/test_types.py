"""Both type checkers agree with ``workflows.py``: signatures are kept, and wrong calls are errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.workers import ROOT

CASES = Path(__file__).with_name("workflows.py")


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_the_decorator_keeps_the_signature(checker: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", checker, str(CASES)], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
