"""Names of processes: who owns a lease, and whether that process still lives.

A name is ``<host>:<parent>:<pid>.<start>``. The host part is the machine's boot and the pid namespace, so that
containers with equal host names and pids are told apart; the start time tells a process from a later one with the same
pid. Any process on the same host can thus say at once that another one is gone.
"""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["is_child", "is_gone", "is_mine", "process_name"]


def process_name() -> str:
    """Return the owner name of this process; after a fork it is another one."""
    return _name(os.getpid())


@functools.lru_cache(maxsize=1)
def _name(pid: int) -> str:
    return f"{_host()}:{os.getppid()}:{pid}.{_start(pid)}"


def is_mine(name: str) -> bool:
    """Tell whether a name is that of this process or of one of its children."""
    host, parent, place = name.split(":")
    pid = place.partition(".")[0]
    return host == _host() and (parent == str(os.getpid()) or pid == str(os.getpid())) and not is_gone(name)


def is_child(name: str, others: Iterable[str]) -> bool:
    """Tell whether a name is of a process that one of the others had as its child."""
    host, parent, _ = name.split(":")
    places = (other.split(":") for other in others)
    return any((host, parent) == (place[0], place[2].partition(".")[0]) for place in places)


def is_gone(name: str) -> bool:
    """Tell whether a name is of a process of this host that does not run any more."""
    host, _, place = name.split(":")
    pid, _, start = place.partition(".")
    if host != _host():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _start(int(pid)) != start


@functools.cache
def _host() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()[:8]
        space = Path("/proc/self/ns/pid").readlink().name.strip("pid:[]")
    except OSError:  # no Linux: the host's name has to do
        return socket.gethostname().replace(":", "-")
    return f"{boot}-{space}"


def _start(pid: int) -> str:
    """Return the start time of a process in clock ticks; ``z`` for a dead one that was not reaped, ``0`` if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return "0"
    return "z" if fields[0] == "Z" else fields[19]
