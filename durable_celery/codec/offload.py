"""Large payloads by reference: their bytes stand elsewhere, and the log has a digest of them."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Protocol

from durable_celery.codec.places import Place
from durable_celery.errors import ConfigurationError

__all__ = ["Blobs", "Offload"]

_REFERENCE = re.compile(rb"([0-9a-f]{64}):([0-9]+)")


class Blobs(Protocol):
    """Where large payloads are kept: a bucket, a directory. Called from any thread; what it raises parks the run.

    A key is the SHA-256 of its data, 64 hexadecimal digits: one key never has two contents. Nobody here deletes;
    give what you store a lifetime that is longer than the longest run and its retention together.
    """

    def put(self, key: str, data: bytes, /) -> None:
        """Store data for good before this returns. What is there already gets the age of new data."""
        ...

    def get(self, key: str, /) -> bytes | None:
        """Return what was stored, or None where there is nothing."""
        ...


class Offload:
    """Store payloads from a size on as blobs, and record references in their place. The last codec of a chain.

    A blob is stored before its reference is recorded, so no reference dangles; a crash between the two leaves a blob
    that nobody refers to. When a reference is read, the data must have its digest. A step's message carries the
    reference, too.
    """

    name = "ref"
    hides = False

    def __init__(self, blobs: Blobs, *, above: int = 64 * 1024) -> None:
        """Set up.

        Args:
            blobs: where they go.
            above: payloads of at most this many bytes, after the codecs before this one, are left as they are.

        Raises:
            ConfigurationError: ``blobs`` has no ``put`` and ``get``, or ``above`` is negative.
        """
        given: object = blobs
        if not (callable(getattr(given, "put", None)) and callable(getattr(given, "get", None))):
            raise ConfigurationError(f"Offload: {blobs!r} keeps no blobs; it needs put(key, data) and get(key)")
        if above < 0:
            raise ConfigurationError(f"Offload: above is a number of bytes, not {above}")
        self.blobs, self.above = blobs, above

    def encode(self, data: bytes, place: Place) -> bytes | None:  # noqa: ARG002 - the port's signature
        """See :class:`PayloadCodec`."""
        if len(data) <= self.above:
            return None
        key = sha256(data).hexdigest()
        self.blobs.put(key, data)
        return f"{key}:{len(data)}".encode()

    def decode(self, data: bytes, place: Place) -> bytes:  # noqa: ARG002 - the port's signature
        """See :class:`PayloadCodec`.

        Raises:
            LookupError: the blob is not there.
            ValueError: it is another one, or this is no reference.
        """
        # Whoever can write to the store wrote it, and a key may become the name of a file.
        reference = _REFERENCE.fullmatch(data)
        if reference is None:
            raise ValueError("it is no reference to a blob")
        key, size = reference[1].decode(), int(reference[2])
        blob = self.blobs.get(key)
        if blob is None:
            raise LookupError(
                f"blob {key} ({size} bytes) is not in {self.blobs!r}: it was deleted before its run, or this process "
                "looks in another place than the one that wrote it"
            )
        if sha256(blob).hexdigest() != key:
            raise ValueError(f"blob {key} ({size} bytes) in {self.blobs!r} was changed: it has another digest")
        return blob
