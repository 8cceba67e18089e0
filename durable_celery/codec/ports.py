"""The port of payload codecs: what a codec of your own has to offer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from durable_celery.codec.places import Place

__all__ = ["KeyedDigest", "PayloadCodec"]


@runtime_checkable
class PayloadCodec(Protocol):
    """Changes payloads on their way into the log and back. It may do I/O, and is called from any thread.

    ``decode`` gives what ``encode`` was given, for the same place; both may be slow, and neither is called on the same
    event loop as workflow code. What they raise parks the run as *blocked*; it goes on by itself when they succeed.
    """

    @property
    def name(self) -> str:
        """Stands with each payload that it encoded: letters, digits, ``_`` and ``-``; it never changes."""
        ...

    @property
    def hides(self) -> bool:
        """Whether it keeps payloads secret, so that nothing of them may stand in messages, logs and monitors."""
        ...

    def encode(self, data: bytes, place: Place, /) -> bytes | None:
        """Return the encoded form, or None to leave this payload as it is."""
        ...

    def decode(self, data: bytes, place: Place, /) -> bytes:
        """Return what was encoded; raise whatever fits if it is not for this place, or no key fits."""
        ...


@runtime_checkable
class KeyedDigest(Protocol):
    """What a codec that hides payloads should offer too, so that digests do not tell a guess from the truth.

    Arguments are recorded with a digest, because a replay must repeat them. A plain digest of few possible values is
    as good as the value.
    """

    @property
    def key_ids(self) -> Sequence[str]:
        """All keys by their ids, the one for new digests first. Letters, digits, ``.``, ``_`` and ``-``."""
        ...

    def mac(self, data: bytes, key_id: str, /) -> bytes:
        """Return a keyed digest (16 bytes or more); raise KeyError for an unknown key id."""
        ...
