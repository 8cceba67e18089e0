"""Simulated histories log nothing: what would be news to an operator is made to happen thousands of times."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """Log nothing while a test lasts."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
