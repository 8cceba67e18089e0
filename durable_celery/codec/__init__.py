"""Payloads: how values, failures and ids enter the log, and how they come back.

JSON in the manner of Celery's own (kombu): datetime, date, time, Decimal, UUID and bytes come back as they went in;
tuples come back as lists; dataclasses and pydantic models are written as plain objects. There is no pickle here, and an
exception is rebuilt only from a class that the process has already imported.

On top of that stands the chain of ``durable_codec``: each payload and each failure passes through it on its way
into the log, and back. :class:`AesGcm` encrypts, :class:`Deflate` compresses, :class:`Offload` stores large ones
elsewhere, :class:`PayloadCodec` is the port for more.

Invariant: every value that workflow code sees has been through the codec once, so a replayed value equals a live one.
"""

from durable_celery.codec.blobs import FileBlobs, RedisBlobs
from durable_celery.codec.chain import chain_of
from durable_celery.codec.compression import Deflate
from durable_celery.codec.crypto import AesGcm
from durable_celery.codec.failures import HiddenFailure, error_of, failure_of, failure_text, rebuild
from durable_celery.codec.ids import ID_LIMIT, RESERVED, check_id, check_name, check_own_name
from durable_celery.codec.offload import Blobs, Offload
from durable_celery.codec.places import Place, place_of
from durable_celery.codec.ports import KeyedDigest, PayloadCodec
from durable_celery.codec.shapes import Shape
from durable_celery.codec.tokens import CallbackToken
from durable_celery.codec.values import HIDDEN, Codec, digest, summary

__all__ = [
    "HIDDEN",
    "ID_LIMIT",
    "RESERVED",
    "AesGcm",
    "Blobs",
    "CallbackToken",
    "Codec",
    "Deflate",
    "FileBlobs",
    "HiddenFailure",
    "KeyedDigest",
    "Offload",
    "PayloadCodec",
    "Place",
    "RedisBlobs",
    "Shape",
    "chain_of",
    "check_id",
    "check_name",
    "check_own_name",
    "digest",
    "error_of",
    "failure_of",
    "failure_text",
    "place_of",
    "rebuild",
    "summary",
]
