"""Two places for large payloads: a directory, and a Redis of their own. Any other takes ten lines (see ``Blobs``)."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

__all__ = ["FileBlobs", "RedisBlobs"]


class FileBlobs:
    """Blobs as files of a directory that all processes see, such as a network file system.

    A file is written aside, flushed to the disk and renamed, so no reader sees a part of one. A blob that is stored
    again only becomes young again.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Name the directory; it is made when the first blob is stored."""
        self.directory = Path(directory)

    def put(self, key: str, data: bytes) -> None:
        """See :class:`Blobs`."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _renewed(path, len(data)):
            _write(path, data)
        # Also where somebody else has just put it there: a reference is recorded after this.
        for folder in (path.parent, self.directory):
            _flush(folder)

    def get(self, key: str) -> bytes | None:
        """See :class:`Blobs`."""
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError:
            return None

    def remove_older_than(self, age: timedelta) -> int:
        """Delete what was last stored longer ago than ``age``; return how many files.

        For a daily job. ``age`` must be longer than the longest run and ``durable_retention`` together: a run whose
        blob is gone is blocked.
        """
        limit, removed = time.time() - age.total_seconds(), 0
        for path in self.directory.glob("[0-9a-f][0-9a-f]/*"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < limit:
                    removed += _removed(path, limit)
        return removed

    def __repr__(self) -> str:
        return f"FileBlobs({str(self.directory)!r})"

    def _path(self, key: str) -> Path:
        return self.directory / key[:2] / key


def _renewed(path: Path, size: int) -> bool:
    """Make a file that is there young; return whether it is."""
    try:
        if path.stat().st_size != size:
            return False
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _write(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _flush(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _removed(path: Path, limit: float) -> bool:
    """Delete a file, unless it has become young meanwhile: it is looked at where nobody can make it so."""
    aside = path.with_name(f".{path.name.lstrip('.')}.old")
    path.rename(aside)
    if aside.stat().st_mtime < limit:
        aside.unlink()
        return True
    aside.rename(path)
    return False


class RedisBlobs:
    """Blobs in a Redis or Valkey, one key each. Not the broker's or the store's: their memory is what is to be spared.

    It must not evict keys (``maxmemory-policy noeviction``): a run whose blob is gone is blocked.
    """

    def __init__(self, url: str, *, ttl: timedelta | None = None, prefix: str = "durable:blob:") -> None:
        """Name the server; no connection is made yet.

        Args:
            url: of the server.
            ttl: how long a blob is kept after it was last stored; longer than the longest run and
                ``durable_retention`` together. None: for ever.
            prefix: what the names of its keys begin with.
        """
        import redis

        self._client: Any = redis.Redis.from_url(url)
        self.ttl, self.prefix = ttl, prefix
        parts = urlsplit(url)
        self._place = f"{parts.hostname or parts.path}:{parts.port or ''}{parts.path if parts.hostname else ''}"

    def put(self, key: str, data: bytes) -> None:
        """See :class:`Blobs`."""
        self._client.set(self.prefix + key, data, px=self.ttl)

    def get(self, key: str) -> bytes | None:
        """See :class:`Blobs`."""
        data: bytes | None = self._client.get(self.prefix + key)
        return data

    def __repr__(self) -> str:
        return f"RedisBlobs({self._place!r})"
