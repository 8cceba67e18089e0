"""Compression of large payloads, with what Python has."""

from __future__ import annotations

import zlib

from durable_celery.codec.places import Place

__all__ = ["Deflate"]


class Deflate:
    """Compress payloads from a size on. It stands before the encryption: what is encrypted has no patterns left."""

    name = "z"
    hides = False

    def __init__(self, *, above: int = 1024, level: int = 6, limit: int = 64_000_000) -> None:
        """Set up.

        Args:
            above: payloads of at most this many bytes are left as they are, as are those that would not get smaller.
            level: zlib's, from 1 (fast) to 9 (small).
            limit: a payload that would grow to more bytes than this is refused when it is read.
        """
        self.above, self.level, self.limit = above, level, limit

    def encode(self, data: bytes, place: Place) -> bytes | None:  # noqa: ARG002 - the port's signature
        """See :class:`PayloadCodec`."""
        if len(data) <= self.above:
            return None
        packed = zlib.compress(data, self.level)
        return packed if len(packed) < len(data) else None

    def decode(self, data: bytes, place: Place) -> bytes:  # noqa: ARG002 - the port's signature
        """See :class:`PayloadCodec`.

        Raises:
            ValueError: it is cut short, or too large.
            zlib.error: it is no such form.
        """
        engine = zlib.decompressobj()
        plain = engine.decompress(data, self.limit)
        if not engine.eof:
            raise ValueError(f"it does not end, or is larger than {self.limit} bytes")
        return plain
