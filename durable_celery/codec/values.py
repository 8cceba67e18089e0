"""Values to text and back: JSON, then the chain of ``durable_codec``.

A text that went through a chain is ``~<names of the codecs, in the order they encoded>~<base64>``; JSON never begins
like that.
The limit is held against the JSON text, before the chain: it means the same for every codec, and on every replay.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

from kombu.utils import json as kombu_json

from durable_celery.codec.offload import Offload
from durable_celery.codec.places import Place
from durable_celery.codec.ports import KeyedDigest, PayloadCodec
from durable_celery.errors import CodecError, PayloadError

__all__ = ["HIDDEN", "Codec", "digest", "summary"]

_MARK = "~"
#: What people and monitors see in place of a payload that a codec hides.
HIDDEN = "(hidden by durable_codec)"
_NOWHERE = Place("", "")


class _Encoder(kombu_json.JSONEncoder):
    def default(self, o: object) -> Any:
        if dataclasses.is_dataclass(o) and not isinstance(o, type):
            return {f.name: getattr(o, f.name) for f in dataclasses.fields(o)}
        if hasattr(o, "model_dump"):
            return o.model_dump()
        return super().default(o)  # type: ignore[no-untyped-call] # kombu has no types


# Made once: for a small payload it takes longer to make one than to use it.
_ENCODER = _Encoder(separators=(",", ":"))
_DECODER = json.JSONDecoder(object_hook=kombu_json.object_hook)
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


class Codec:
    """Turn values into the text of the log and back."""

    def __init__(
        self, limit: int = 1_000_000, chain: Sequence[PayloadCodec] = (), *, accepts_plain: bool = False
    ) -> None:
        """Set up.

        Args:
            limit: longest JSON text of a value, in characters.
            chain: codecs in the order in which they encode; without any, a payload is its JSON text.
            accepts_plain: read payloads that no hiding codec wrote, though the chain has one.
        """
        self.limit, self.chain = limit, tuple(chain)
        #: Whether nothing is done to a payload's JSON text.
        self.is_plain = not self.chain
        #: Whether payloads are secret: nothing of them may stand in messages, logs and monitors.
        self.hides = any(codec.hides for codec in self.chain)
        #: Whether a payload must have passed through all hiding codecs. Else who can write to the store could put plain
        #: ones in their place.
        self.is_strict = self.hides and not accepts_plain
        self._by_name = {codec.name: codec for codec in self.chain}
        self._hiding = {codec.name for codec in self.chain if codec.hides}
        self._outside = {codec.name for codec in self.chain if isinstance(codec, Offload)}
        self._keyed = next((codec for codec in self.chain if isinstance(codec, KeyedDigest)), None)

    def encode(self, value: object, what: str, place: Place = _NOWHERE) -> str:
        """Return the stored text of a value; ``what`` names it in errors.

        Raises:
            PayloadError: a part of the value has no JSON form, or the text is too long.
            CodecError: a codec failed.
        """
        return self.seal(self.dumps(value, what), place)

    def decode(self, text: str | None, place: Place = _NOWHERE) -> Any:
        """Return the value of a stored text; None for no text.

        Raises:
            CodecError: it cannot be opened here.
        """
        if text is None and not self.is_strict:
            return None
        plain = self.open(text, place)
        try:
            return _DECODER.decode(plain)
        except ValueError as error:
            raise CodecError(place, "it is no JSON") from error

    def dumps(self, value: object, what: str) -> str:
        """Return the JSON text of a value, as it is before the chain.

        Raises:
            PayloadError: as for :meth:`encode`.
        """
        try:
            text = _ENCODER.encode(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise PayloadError(
                f"{what} cannot be recorded: {error}. Use JSON types, datetime, Decimal, UUID, bytes or dataclasses"
            ) from error
        if len(text) > self.limit:
            raise PayloadError(
                f"{what} has {len(text)} characters, the limit is {self.limit} (durable_payload_limit). "
                "Pass a reference, or raise the limit and store large payloads elsewhere (durable_celery.codec.Offload)"
            )
        return text

    def seal(self, text: str, place: Place) -> str:
        """Return the stored form of a text.

        Raises:
            CodecError: a codec failed.
        """
        if self.is_plain:
            return text
        data, names = text.encode("utf-8", "surrogatepass"), list[str]()
        for codec in self.chain:
            try:
                encoded = codec.encode(data, place)
            except Exception as error:
                raise CodecError(place, f"codec {codec.name} failed to encode it ({error!r})") from error
            if encoded is not None:
                data, names = encoded, [*names, codec.name]
        if not names:
            return text
        return f"{_MARK}{'.'.join(names)}{_MARK}{base64.b64encode(data).decode()}"

    def open(self, text: str | None, place: Place) -> str:
        """Return the text that :meth:`seal` was given for the same place.

        Raises:
            CodecError: a codec or a key is missing here, it was changed, or it belongs elsewhere.
        """
        names, data = _parts(text or "", place)
        if not names:
            if self.is_strict:
                raise CodecError(place, "it is not encrypted (durable_codec_plain lets old ones be read)")
            return text or ""
        if self.is_strict and not self._hiding.issubset(names):
            raise CodecError(place, f"it went through {'.'.join(names)}, which does not hide it")
        for name in reversed(names):
            codec = self._by_name.get(name)
            if codec is None:
                raise CodecError(place, f"codec {name!r} is missing in this process; add it to durable_codec")
            try:
                data = codec.decode(data, place)
            except Exception as error:
                raise CodecError(place, f"codec {name} cannot open it: {_first(error)}") from error
        return data.decode("utf-8", "surrogatepass")

    def is_reference(self, text: str | None) -> bool:
        """Tell whether a payload's data stand elsewhere, so that its text is short and worth passing on as it is."""
        return bool(text and is_sealed(text)) and not self._outside.isdisjoint(_names(text or ""))

    def reseal(self, text: str, old: Place, new: Place) -> str:
        """Return the stored form that a payload has at another place.

        Raises:
            CodecError: as for :meth:`open` and :meth:`seal`.
        """
        return text if self.is_plain and not is_sealed(text) else self.seal(self.open(text, old), new)

    def seal_words(self, words: str, place: Place) -> str:
        """Return words for people (a reason, a last error) as they may be stored."""
        return self.seal(words, place) if self.hides and words else words

    def legible(self, words: str, place: Place) -> str:
        """Return words for people as they were; those that cannot be opened here as they are stored."""
        if self.is_plain or not is_sealed(words):
            return words
        try:
            return self.open(words, place)
        except CodecError:
            return words

    def digest(self, text: str, place: Place, like: str | None = None) -> str:
        """Return the digest of a JSON text, by which a replay knows the arguments again.

        Where payloads are hidden it is made under a key and bound to its place, so that nobody can find out arguments
        by trying. ``like`` is a digest that this one is to be held against: it says under which key it was made.

        Raises:
            CodecError: the key of ``like`` is not here.
        """
        key_id, colon, _ = (like or "").partition(":")
        if self._keyed is None:
            if colon:
                raise CodecError(place, f"its digest was made under key {key_id!r}, and durable_codec has no keys")
            return digest(text)
        if like is not None and not colon and not self.is_strict:
            return digest(text)
        return self._mac(self._keyed, text, place, key_id if colon else self._keyed.key_ids[0])

    def digests(self, text: str, place: Place) -> Iterator[str]:
        """Yield each digest that the text may have been recorded with: under the first key, older ones, or none."""
        if self._keyed is not None:
            for key_id in self._keyed.key_ids:
                yield self._mac(self._keyed, text, place, key_id)
        if self._keyed is None or not self.is_strict:
            yield digest(text)

    @staticmethod
    def _mac(keyed: KeyedDigest, text: str, place: Place, key_id: str) -> str:
        try:
            mac = keyed.mac(place.to_bytes() + b"\n" + _canonical(text), key_id)
        except Exception as error:
            raise CodecError(place, f"its digest cannot be made under key {key_id!r}: {_first(error)}") from error
        return f"{key_id}:{mac[:16].hex()}"


def is_sealed(text: str) -> bool:
    """Tell whether a text went through a chain."""
    return text.startswith(_MARK)


def _parts(text: str, place: Place) -> tuple[list[str], bytes]:
    if not is_sealed(text):
        return [], b""
    data = text[1:].partition(_MARK)[2]
    try:
        return _names(text), base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise CodecError(place, "it is no base64") from error


def _names(text: str) -> list[str]:
    """Return the codecs that a sealed text went through, in the order in which they encoded."""
    return text[1:].partition(_MARK)[0].split(".")


def _first(error: Exception) -> object:
    """Return the message of an error without the quotes that KeyError puts around it."""
    return error.args[0] if error.args else repr(error)


def _canonical(text: str) -> bytes:
    """Return a form of a text of :meth:`Codec.dumps` that does not depend on the order of keys."""
    # Where no object has a key there is nothing to sort, and the text has this form already.
    return (_CANONICAL.encode(json.loads(text)) if '{"' in text else text).encode()


def digest(payload: str | None) -> str:
    """Return a short digest of a JSON text that does not depend on the order of keys (BLAKE2b, 8 bytes, hex)."""
    return blake2b(_canonical(payload or "null"), digest_size=8).hexdigest()


def summary(text: str | None, limit: int = 60) -> str:
    """Return a payload text cut to ``limit`` characters, for people."""
    text = text or ""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
