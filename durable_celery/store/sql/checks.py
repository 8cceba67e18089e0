"""Whether a database keeps what it acknowledges: its settings, and what each of them costs.

Pure functions of what the database says about itself; :meth:`SqlStore.findings` asks it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from durable_celery.store.protocol import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["QUESTIONS", "check_database"]

#: What each kind of database is asked: statements that return rows of a name and a value.
QUESTIONS = {
    "postgresql": (
        "SELECT name, setting FROM pg_settings WHERE name IN ('server_version_num', 'fsync', 'synchronous_commit')",
        "SELECT 'standby', pg_is_in_recovery()::text",
    ),
    "mysql": (
        "SHOW VARIABLES WHERE Variable_name IN ('version', 'innodb_flush_log_at_trx_commit')",
        "SHOW VARIABLES WHERE Variable_name IN ('log_bin', 'sync_binlog', 'read_only')",
    ),
    "sqlite": (
        "SELECT 'journal_mode', journal_mode FROM pragma_journal_mode",
        "SELECT 'version', sqlite_version()",
    ),
}
#: Oldest versions that have all that the store uses.
_OLDEST = {"PostgreSQL": (12,), "MariaDB": (10, 6), "MySQL": (8, 0, 1), "SQLite": (3, 35)}


def check_database(kind: str, said: Mapping[str, str]) -> list[Finding]:
    """Return what is to be said about one database.

    Args:
        kind: ``postgresql``, ``mysql`` or ``sqlite``.
        said: Its answers to :data:`QUESTIONS`.
    """
    return list({"postgresql": _postgresql, "mysql": _mysql, "sqlite": _sqlite}[kind](said))


def _postgresql(said: Mapping[str, str]) -> Iterator[Finding]:
    yield from _version("PostgreSQL", (int(said.get("server_version_num", "0")) // 10_000,))
    if said.get("standby") == "true":
        yield _read_only("this PostgreSQL server is a standby")
    if said.get("fsync") == "off":
        yield Finding(
            level="warning",
            check="fsync",
            message=(
                "fsync is off: durability class D0. A power loss, or a crash of the operating system, may destroy the "
                "whole database. Set fsync = on"
            ),
        )
    elif said.get("synchronous_commit") == "off":
        yield Finding(
            level="warning",
            check="synchronous_commit",
            message=(
                "synchronous_commit is off: durability class D1. A crash of the server takes what was acknowledged in "
                "about the last half second. Set synchronous_commit = on (D4), at least for this role: "
                "ALTER ROLE ... SET synchronous_commit = on"
            ),
        )
    else:
        yield _durable(f"synchronous_commit is {said.get('synchronous_commit')}")


def _mysql(said: Mapping[str, str]) -> Iterator[Finding]:
    text = said.get("version", "")
    numbers = tuple(map(int, re.findall(r"\d+", text)[:3]))
    yield from _version("MariaDB" if "mariadb" in text.lower() else "MySQL", numbers)
    if said.get("read_only", "OFF") not in {"OFF", "0"}:
        yield _read_only("read_only is on")
    if said.get("innodb_flush_log_at_trx_commit") != "1":
        yield Finding(
            level="warning",
            check="innodb_flush_log_at_trx_commit",
            message=(
                f"innodb_flush_log_at_trx_commit is {said.get('innodb_flush_log_at_trx_commit')}: durability class D1. "
                "A power loss takes what was acknowledged in about the last second. Set it to 1 (D4)"
            ),
        )
    elif said.get("log_bin") in {"ON", "1"} and said.get("sync_binlog") != "1":
        yield Finding(
            level="warning",
            check="sync_binlog",
            message=(
                f"sync_binlog is {said.get('sync_binlog')}: after a power loss replicas may have runs that the server "
                "has lost, or the other way round. Set it to 1"
            ),
        )
    else:
        yield _durable("innodb_flush_log_at_trx_commit is 1")


def _sqlite(said: Mapping[str, str]) -> Iterator[Finding]:
    yield from _version("SQLite", tuple(map(int, re.findall(r"\d+", said.get("version", "0"))[:2])))
    mode = said.get("journal_mode")
    if mode != "wal":
        yield Finding(
            level="error",
            check="journal_mode",
            message=(
                f"the journal mode of the SQLite file is {mode}, and cannot be made WAL: a network file system, which "
                "SQLite's locks do not work on. Put the file on a local disk, or use a server"
            ),
        )
    else:
        yield _durable("SQLite writes each commit through to the disk of this host, the only host it serves")


def _version(name: str, found: tuple[int, ...]) -> Iterator[Finding]:
    oldest = _OLDEST[name]
    if found < oldest:
        text, needed = ".".join(map(str, found)), ".".join(map(str, oldest))
        yield Finding(level="error", check="version", message=f"{name} is {text}: the store needs {needed} or later")


def _read_only(what: str) -> Finding:
    return Finding(
        level="error", check="read_only", message=f"{what}: it refuses every write. Name the primary in durable_store"
    )


def _durable(why: str) -> Finding:
    return Finding(
        level="info",
        check="durability",
        message=f"{why}: durability class D4. What was acknowledged survives a power loss",
    )
