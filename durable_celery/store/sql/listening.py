"""A connection that listens for the ends of runs: PostgreSQL's ``LISTEN`` (see :mod:`durable_celery.store.hearing`).

Behind a pooler that gives each transaction another connection ``LISTEN`` seems to work, and nothing comes: so a
connection is believed only when it has heard what was told it on another one.
"""

from __future__ import annotations

import logging
import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

if TYPE_CHECKING:
    from collections.abc import Generator

    from sqlalchemy import Engine

    from durable_celery.store.hearing import Told

__all__ = ["channel_of", "listening"]

_log = logging.getLogger(__name__)
#: Seconds in which a new connection must hear.
_DEAF_AFTER = 2.0


def channel_of(namespace: str) -> str:
    """Return the channel on which the ends of a namespace's runs are told."""
    return f"{namespace}_ends"


@contextmanager
def listening(engine: Engine, channel: str) -> Generator[Told | None]:
    """Give what is told on a channel, or None where nothing can be heard."""
    with engine.connect() as pooled:
        # Not the pool's any more: it is closed at the end, with all that it listens to.
        pooled.detach()
        driver: Any = pooled.connection.dbapi_connection
        driver.autocommit = True
        driver.execute(f'LISTEN "{channel}"')
        if _hears(driver, engine, channel):
            yield lambda seconds: (note.payload for note in driver.notifies(timeout=seconds))
        else:
            _log.info("LISTEN has no effect here (a pooler?): ends of runs are asked for")
            yield None


def _hears(driver: Any, engine: Engine, channel: str) -> bool:
    """Tell whether the connection hears what another one tells."""
    probe = f"probe {uuid.uuid4()}"
    with engine.begin() as connection:
        connection.execute(select(func.pg_notify(channel, probe)))
    until = time.monotonic() + _DEAF_AFTER
    while (left := until - time.monotonic()) > 0:
        if any(note.payload == probe for note in driver.notifies(timeout=left, stop_after=1)):
            return True
    return False
