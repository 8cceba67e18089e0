"""Whether a Redis or Valkey server keeps what it acknowledges: its settings, held against what we measured.

A pure function of what the server says about itself; :meth:`RedisStore.findings` asks it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from durable_celery.store.protocol import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["check_server"]

#: Oldest version of the server that the scripts are tested on.
OLDEST_VERSION = (6, 2)
#: Share of ``maxmemory`` in use from which on a warning is due.
MEMORY_SHARE = 0.7


def check_server(info: Mapping[str, Any], appendfsync: str | None) -> list[Finding]:
    """Return what is to be said about one server.

    Args:
        info: The answer to ``INFO``, flat.
        appendfsync: The setting of that name, or None where ``CONFIG GET`` is not allowed.
    """
    return [*_version(info), *_role(info), *_memory(info), *_persistence(info, appendfsync)]


def _version(info: Mapping[str, Any]) -> Iterator[Finding]:
    version = str(info.get("redis_version", "0"))
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_VERSION:
        yield Finding(
            level="error",
            check="version",
            message=f"redis_version is {version}: the scripts need 6.2. Use Redis 6.2 or later, or Valkey",
        )


def _role(info: Mapping[str, Any]) -> Iterator[Finding]:
    if info.get("role", "master") != "master":
        yield Finding(
            level="error",
            check="role",
            message=f"role is {info['role']}: a replica refuses every write. Name the primary in durable_store",
        )


def _memory(info: Mapping[str, Any]) -> Iterator[Finding]:
    policy = info.get("maxmemory_policy", "noeviction")
    limit, used = info.get("maxmemory", 0), info.get("used_memory", 0)
    if policy != "noeviction":
        yield Finding(
            level="error",
            check="maxmemory-policy",
            message=(
                f"maxmemory-policy is {policy}: at the memory limit the server deletes histories without a word. "
                "Measured with allkeys-lru: 3,960 of 8,000 acknowledged events vanished and no writer saw an error. "
                "Set it to noeviction; writes are then refused with an error instead"
            ),
        )
    if limit and used > MEMORY_SHARE * limit:
        yield Finding(
            level="warning",
            check="memory",
            message=(
                f"used_memory is {used:,} of maxmemory {limit:,} bytes: when it is full, starts, signals and results "
                "are refused until there is room. Raise maxmemory, or shorten the retention"
            ),
        )


def _persistence(info: Mapping[str, Any], appendfsync: str | None) -> Iterator[Finding]:
    if info.get("loading"):
        # All else that it says of its persistence is not to be believed: its append-only file is off until it is read.
        yield Finding(level="warning", check="loading", message="the server loads its data and answers nothing yet")
        return
    if not info.get("aof_enabled"):
        yield Finding(
            level="warning",
            check="appendonly",
            message=(
                "appendonly is no: durability class D0. After a crash of the server everything since its last save is "
                "lost: 29,407 of 29,407 acknowledged events in our measurement. Set appendonly yes"
            ),
        )
        return
    for name in ("aof_last_write_status", "aof_last_bgrewrite_status"):
        if (status := info.get(name, "ok")) != "ok":
            yield Finding(
                level="error",
                check=name,
                message=f"{name} is {status}: the server cannot write to its disk. Look at the disk and its messages",
            )
    yield _sync(appendfsync)


def _sync(appendfsync: str | None) -> Finding:
    if appendfsync == "always":
        return Finding(
            level="info",
            check="appendfsync",
            message="appendfsync is always: durability class D2. What was acknowledged survives a power loss",
        )
    if appendfsync == "no":
        return Finding(
            level="warning",
            check="appendfsync",
            message=(
                "appendfsync is no: the operating system decides when events reach the disk, 30 s later as a rule. "
                "A power loss takes them away. Set appendfsync everysec (D1) or always (D2)"
            ),
        )
    said = "everysec" if appendfsync else "unknown (CONFIG GET is refused; everysec is assumed)"
    return Finding(
        level="info" if appendfsync else "warning",
        check="appendfsync",
        message=(
            f"appendfsync is {said}: durability class D1. A killed server lost nothing (0 of 26,523 events), but a "
            "power loss takes about the last second: 15,150 of 37,970 events in our measurement. Where that is too "
            "much, set appendfsync always (D2)"
        ),
    )
