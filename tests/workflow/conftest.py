"""No test leaves a suspended execution behind: garbage collection would end its code amid something else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.workflow.log import alive


@pytest.fixture(autouse=True)
def _evict() -> Iterator[None]:
    alive.clear()
    yield
    while alive:
        alive.pop().evict()
