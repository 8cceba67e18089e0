"""What the tables of stores, outboxes, outcomes and archives have in common."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import String, Text
from sqlalchemy.dialects.mysql import LONGTEXT, VARCHAR

__all__ = ["INNODB", "LONG", "exact", "now_ms"]

#: A text of any length; MySQL's own TEXT ends at 64 KiB.
LONG = Text().with_variant(LONGTEXT(), "mysql", "mariadb")
#: Options of a table.
INNODB: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4"}


def exact(length: int) -> String:
    """Return the type of a text that rows are found by. MySQL would else take "A" for "a"."""
    return String(length).with_variant(VARCHAR(length, collation="utf8mb4_bin"), "mysql", "mariadb")


def now_ms() -> int:
    """Return the time in ms since 1970, on this machine's clock."""
    return round(time.time() * 1000)
