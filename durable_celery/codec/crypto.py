"""Encryption with AES-GCM: nobody who can read or write the store and the broker can read a payload, or move one."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from hmac import digest as hmac
from typing import TYPE_CHECKING, Self

from durable_celery.codec.places import Place
from durable_celery.errors import ConfigurationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["AesGcm"]

_NONCE = 12
_KEY_SIZES = {16, 24, 32}
#: Derived ciphers that are kept: as many runs as are busy in one process.
_CIPHERS = 1024


class AesGcm:
    """Encrypt payloads with AES-256-GCM, under a key of its own for each workflow id (extra ``crypto``).

    A payload names the id of its key, so keys can be rotated: the first encrypts, all decrypt. A key may go when no run
    that was written with it is left in the store. Each payload is bound to its :class:`Place`. Because the keys of
    runs are derived (HMAC-SHA256), random nonces of 96 bits never come near their limit.
    """

    name = "aes"
    hides = True

    def __init__(self, keys: Mapping[str, bytes | str]) -> None:
        """Take the keys by their ids, the one that encrypts first: 16, 24 or 32 random bytes, or those as base64.

        Raises:
            ConfigurationError: there is no key, one has another size, or ``cryptography`` is not installed.
        """
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise ConfigurationError("AesGcm needs the extra: pip install 'durable-celery[crypto]'") from error
        self._keys = {key_id: _key(key_id, key) for key_id, key in keys.items()}
        if not self._keys:
            raise ConfigurationError("AesGcm needs at least one key")
        self.key_ids = tuple(self._keys)
        self._cipher, self._invalid = AESGCM, InvalidTag
        self._cipher_of = lru_cache(maxsize=_CIPHERS)(self._make_cipher)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read keys from a text such as an environment variable: ``2026-02:<base64>,2025-11:<base64>``, new ones first.

        Raises:
            ConfigurationError: as for the class.
        """
        pairs = [item.strip().partition(":") for item in text.split(",") if item.strip()]
        return cls({key_id: key for key_id, _, key in pairs})

    def encode(self, data: bytes, place: Place) -> bytes:
        """Return ``<length of the key id><key id><nonce><ciphertext and tag>``."""
        key_id, nonce = self.key_ids[0], os.urandom(_NONCE)
        head = bytes([len(key_id)]) + key_id.encode()
        sealed = self._cipher_of(key_id, place.workflow_id).encrypt(nonce, data, head + place.to_bytes())
        return head + nonce + sealed

    def decode(self, data: bytes, place: Place) -> bytes:
        """Return what was encrypted for this place.

        Raises:
            KeyError: its key is not here.
            ValueError: it was changed, or belongs to another place.
        """
        size = 1 + data[0] if data else 0
        head, rest = data[:size], data[size:]
        key_id = head[1:].decode("ascii", "replace")
        if key_id not in self._keys:
            raise KeyError(f"there is no key {key_id!r} here, only {', '.join(self.key_ids)}")
        cipher = self._cipher_of(key_id, place.workflow_id)
        try:
            return cipher.decrypt(rest[:_NONCE], rest[_NONCE:], head + place.to_bytes())
        except (self._invalid, ValueError) as error:
            raise ValueError("its tag is wrong: it was changed, or belongs to another place") from error

    def mac(self, data: bytes, key_id: str) -> bytes:
        """See :class:`KeyedDigest`."""
        return hmac(self._derived(key_id, "digest", ""), data, sha256)

    def __repr__(self) -> str:
        return f"AesGcm(keys {', '.join(self.key_ids)})"

    def _derived(self, key_id: str, purpose: str, name: str) -> bytes:
        return hmac(self._keys[key_id], f"durable_celery {purpose} {name}".encode(), sha256)

    def _make_cipher(self, key_id: str, workflow_id: str) -> AESGCM:
        return self._cipher(self._derived(key_id, "payload", workflow_id))


def _key(key_id: str, key: bytes | str) -> bytes:
    """Return the bytes of a key. Errors never show it."""
    try:
        raw = base64.b64decode(key, validate=True) if isinstance(key, str) else bytes(key)
    except binascii.Error as error:
        raise ConfigurationError(f"AesGcm: key {key_id!r} is no base64") from error
    if len(raw) not in _KEY_SIZES or not key_id or len(key_id) > 64:  # noqa: PLR2004 - a byte holds the length
        raise ConfigurationError(
            f"AesGcm: key {key_id!r} has {len(raw)} bytes; it takes an id of 1 to 64 characters and 16, 24 or 32 bytes"
        )
    return raw
