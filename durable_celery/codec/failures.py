"""Failures: how an exception enters the log, and how it comes back."""

from __future__ import annotations

import sys
import traceback
from typing import Any

from durable_celery.codec.places import Place
from durable_celery.codec.values import Codec, is_sealed
from durable_celery.errors import DurableError, PayloadError, RemoteError, StepLostError, StepTimeoutError
from durable_celery.policy import type_name

__all__ = ["HiddenFailure", "failure_of", "failure_text", "rebuild"]

#: Longest traceback text that is recorded, in characters; the innermost frames are kept.
TRACEBACK_LIMIT = 8000
_NOWHERE = Place("", "")
#: Failures that are recorded where no key is at hand. They hold nothing of the user's.
_PLAIN = {type_name(kind): kind for kind in (StepTimeoutError, StepLostError)}


def failure_of(error: BaseException, codec: Codec, place: Place = _NOWHERE) -> str:
    """Return the payload that records an exception: class, arguments, message and traceback text.

    Raises:
        CodecError: a codec failed.
    """
    return codec.seal(failure_text(error, codec), place)


def failure_text(error: BaseException, codec: Codec) -> str:
    """Return the JSON text of a failure, as it is before the codecs of ``durable_codec``."""
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
        return codec.dumps(form, "a failure")
    except PayloadError:
        # Arguments that have no JSON form must not hide the failure itself: its message stands for them.
        return codec.dumps({**form, "args": None, "message": str(error)[:TRACEBACK_LIMIT]}, "a failure")


class HiddenFailure(DurableError):  # noqa: N818 - stands for an exception, and is none of its own
    """What Celery, its logs and its monitors see in place of an exception that ``durable_codec`` hides."""

    def __init__(self, type_name: str, where: str) -> None:
        super().__init__(type_name, where)
        self.type_name, self.where = type_name, where

    def __str__(self) -> str:
        return f"{self.type_name}; message and traceback stand in the history, {self.where}"


class RemoteTraceback(Exception):  # noqa: N818 - a carrier of text in __cause__, as in concurrent.futures
    """The traceback of a failure, as text from the process where it happened."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def rebuild(payload: str | None, codec: Codec, place: Place = _NOWHERE) -> Exception:
    """Rebuild a recorded exception: its own class where this process knows it, else :class:`RemoteError`.

    The remote traceback is its ``__cause__``.

    Raises:
        CodecError: it cannot be opened here.
    """
    form = _form(payload, codec, place)
    error = _instance(form) or RemoteError(str(form.get("type", "unknown")), str(form.get("message", "")))
    error.__cause__ = RemoteTraceback(form.get("traceback", ""))
    return error


def _form(payload: str | None, codec: Codec, place: Place) -> dict[str, Any]:
    if codec.is_strict and payload is not None and not is_sealed(payload):
        # A timeout is recorded by the store itself, which has no keys.
        form: Any = Codec().decode(payload)
        kind = _PLAIN.get(str(form.get("type"))) if isinstance(form, dict) else None
        if kind is not None:
            message = str(form.get("message", ""))
            name = {"module": kind.__module__, "name": kind.__qualname__}
            return {**name, "type": form["type"], "message": message, "args": [message], "traceback": ""}
    opened: Any = codec.decode(payload, place)
    return opened if isinstance(opened, dict) else {}


def _instance(form: dict[str, Any]) -> Exception | None:
    """Build the recorded class from its arguments; None where it is unknown here or cannot be built so."""
    module, name, args = form.get("module"), form.get("name"), form.get("args")
    if not (isinstance(module, str) and isinstance(name, str) and isinstance(args, list)):
        return None
    kind: Any = sys.modules.get(module)
    for part in name.split("."):
        # Looked up, never computed: a module or class may run code for a name that it does not have.
        kind = vars(kind).get(part) if hasattr(kind, "__dict__") else None
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return None
    try:
        error: object = kind(*args)
    except Exception:  # noqa: BLE001 - a user's constructor may raise anything; the failure itself must come through
        return None
    return error if isinstance(error, Exception) else None
