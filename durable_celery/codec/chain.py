"""The chain of codecs that the setting ``durable_codec`` names."""

from __future__ import annotations

import importlib
import re
from typing import Any

from durable_celery.codec.offload import Offload
from durable_celery.codec.ports import KeyedDigest, PayloadCodec
from durable_celery.errors import ConfigurationError

__all__ = ["chain_of"]

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_KEY_ID = re.compile(r"[A-Za-z0-9._-]+")


def chain_of(setting: object) -> tuple[PayloadCodec, ...]:
    """Return the codecs of a setting: one, or several in the order in which they encode.

    Each is an object, or the dotted path of one (``shop.security.codec`` or ``shop.security:codec``); a class or
    function at that path is called for it.

    Raises:
        ConfigurationError: one is no codec, cannot be imported, two have one name, or one comes after ``Offload``.
    """
    given = setting if isinstance(setting, list | tuple) else [] if setting is None else [setting]
    chain = tuple(_codec(item) for item in given)
    names = [codec.name for codec in chain]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"durable_codec: two codecs have one name ({', '.join(names)})")
    if any(isinstance(codec, Offload) for codec in chain[:-1]):
        raise ConfigurationError(
            "durable_codec: Offload is the last of a chain; a codec that comes after it would not touch what is stored "
            f"outside ({', '.join(names)})"
        )
    return chain


def _codec(item: object) -> PayloadCodec:
    found: Any = _load(item) if isinstance(item, str) else item
    if isinstance(found, type) or not isinstance(found, PayloadCodec):
        found = _made(found, item)
    if not isinstance(found, PayloadCodec) or not _NAME.fullmatch(str(found.name)):
        raise ConfigurationError(
            f"durable_codec: {item!r} is no codec; it needs a name of letters, digits, _ and -, "
            "hides, encode(data, place) and decode(data, place)"
        )
    if isinstance(found, KeyedDigest) and not (found.key_ids and all(map(_KEY_ID.fullmatch, found.key_ids))):
        raise ConfigurationError(f"durable_codec: {item!r}: key ids are letters, digits, '.', '_' and '-'")
    return found


def _made(maker: Any, item: object) -> Any:
    if not callable(maker):
        return maker
    try:
        return maker()
    except Exception as error:
        raise ConfigurationError(f"durable_codec: {item!r} could not be made: {error}") from error


def _load(path: str) -> Any:
    module, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"durable_codec: {path!r} cannot be imported: {error}") from error
