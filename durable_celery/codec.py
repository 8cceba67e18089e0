"""Payloads: how values, failures and ids enter the log, and how they come back.

JSON in the manner of Celery's own (kombu): datetime, date, time, Decimal, UUID and bytes come back as they went in;
tuples come back as lists; dataclasses and pydantic models are written as plain objects. There is no pickle here, and an
exception is rebuilt only from a class that the process has already imported.

Invariant: every value that workflow code sees has been through the codec once, so a replayed value equals a live one.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import traceback
from hashlib import blake2b
from typing import Any

from kombu.utils import json as kombu_json

from durable_celery.errors import InvalidIdError, PayloadError, RemoteError
from durable_celery.policy import type_name

__all__ = ["Codec", "check_id", "digest", "failure_of", "rebuild", "summary"]

#: Longest workflow id, in characters. Ids of child runs are built from their parent's.
ID_LIMIT = 255
_ID = re.compile(r"[!-z|~]+")
#: Longest traceback text that is recorded, in characters; the innermost frames are kept.
TRACEBACK_LIMIT = 8000


class _Encoder(kombu_json.JSONEncoder):
    def default(self, o: object) -> Any:
        if dataclasses.is_dataclass(o) and not isinstance(o, type):
            return {f.name: getattr(o, f.name) for f in dataclasses.fields(o)}
        if hasattr(o, "model_dump"):
            return o.model_dump()
        return super().default(o)  # type: ignore[no-untyped-call] # kombu has no types


class Codec:
    """Turn values into the text of the log and back."""

    def __init__(self, limit: int = 1_000_000) -> None:
        """Set up a codec that refuses texts of more than ``limit`` characters."""
        self.limit = limit

    def encode(self, value: object, what: str) -> str:
        """Return the text of a value; ``what`` names it in errors.

        Raises:
            PayloadError: a part of the value has no JSON form, or the text is too long.
        """
        try:
            text: str = kombu_json.dumps(value, cls=_Encoder, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError) as error:
            msg = f"{what} cannot be recorded: {error}. Use JSON types, datetime, Decimal, UUID, bytes or dataclasses"
            raise PayloadError(msg) from error
        if len(text) > self.limit:
            msg = (
                f"{what} has {len(text)} characters, the limit is {self.limit} (durable_payload_limit). "
                "Pass a reference"
            )
            raise PayloadError(msg)
        return text

    def decode(self, text: str | None) -> Any:
        """Return the value of a text; None for no text."""
        return None if text is None else kombu_json.loads(text)


def digest(payload: str | None) -> str:
    """Return a short digest of a payload that does not depend on the order of keys (BLAKE2b, 8 bytes, hex)."""
    canonical = json.dumps(json.loads(payload or "null"), sort_keys=True, separators=(",", ":"))
    return blake2b(canonical.encode(), digest_size=8).hexdigest()


def summary(text: str | None, limit: int = 60) -> str:
    """Return a payload text cut to ``limit`` characters, for people."""
    text = text or ""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def check_id(workflow_id: str) -> str:
    """Return the id if it may be one: 1 to 255 printable ASCII characters, no space, no ``{`` or ``}``.

    Raises:
        InvalidIdError: it may not. Ids stand in keys, hash tags, patterns and log lines.
    """
    given: object = workflow_id
    if not isinstance(given, str) or len(given) > ID_LIMIT or not _ID.fullmatch(given):
        msg = (
            f"{str(workflow_id)[:80]!r} cannot be a workflow id: it takes 1 to {ID_LIMIT} printable ASCII characters "
            "without spaces and braces"
        )
        raise InvalidIdError(msg)
    return workflow_id


def failure_of(error: BaseException, codec: Codec) -> str:
    """Return the payload that records an exception: class, arguments, message and traceback text."""
    text = "".join(traceback.format_exception(error))
    form: dict[str, Any] = {
        "type": type_name(type(error)),
        "module": type(error).__module__,
        "name": type(error).__qualname__,
        "message": str(error),
        "args": list(error.args),
        "traceback": text[-TRACEBACK_LIMIT:],
    }
    try:
        return codec.encode(form, "a failure")
    except PayloadError:
        # Arguments that have no JSON form must not hide the failure itself: its message stands for them.
        return codec.encode({**form, "args": None, "message": str(error)[:TRACEBACK_LIMIT]}, "a failure")


class RemoteTraceback(Exception):  # noqa: N818 - a carrier of text in __cause__, as in concurrent.futures
    """The traceback of a failure, as text from the process where it happened."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def rebuild(payload: str | None, codec: Codec) -> Exception:
    """Rebuild a recorded exception: its own class where this process knows it, else :class:`RemoteError`.

    The remote traceback is its ``__cause__``.
    """
    form = codec.decode(payload) or {}
    error = _instance(form) or RemoteError(form.get("type", "unknown"), form.get("message", ""))
    error.__cause__ = RemoteTraceback(form.get("traceback", ""))
    return error


def _instance(form: dict[str, Any]) -> Exception | None:
    """Build the recorded class from its arguments; None where it is unknown here or cannot be built so."""
    kind: Any = sys.modules.get(form.get("module", ""))
    for part in form.get("name", "").split("."):
        kind = getattr(kind, part, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)) or form.get("args") is None:
        return None
    try:
        return kind(*form["args"])
    except Exception:  # noqa: BLE001 - a user's constructor may raise anything; the failure itself must come through
        return None
