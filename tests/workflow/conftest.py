"""No test leaves a suspended execution behind: garbage collection would end its code amid something else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.workflow.log import Run, alive

Begin = Callable[..., Run]


@pytest.fixture(autouse=True)
def _evict() -> Iterator[None]:
    alive.clear()
    yield
    while alive:
        alive.pop().evict()


@pytest.fixture(params=["warm", "cold"])
def begin(request: pytest.FixtureRequest) -> Begin:
    """Start a run whose execution is kept, and one that is replayed from the start in each turn."""

    def begin(code: Callable[..., Any], *args: Any) -> Run:
        run = Run(code)
        run.cold = request.param == "cold"
        return run.start(*args)

    return begin
