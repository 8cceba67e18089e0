"""Tokens of callbacks: what an outside system is given, and gives back with its answer.

A token names the callback and holds a secret, and the history has it as it was given out: so it cannot be made by who
was not given it, and the caller's side can tell a real one before it writes anything. It is one word for URLs and
shells.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import astuple, dataclass
from hashlib import blake2b

from durable_celery.codec.ids import RESERVED
from durable_celery.errors import InvalidRequestError

__all__ = ["CallbackToken"]

_PREFIX = "dcb1."
#: Bytes of the check sum.
_CHECK = 4


@dataclass(frozen=True, slots=True)
class CallbackToken:
    """What a token says."""

    workflow_id: str
    #: Which execution of the workflow id.
    run: int
    #: Number of the command that made the callback.
    number: int
    #: Seq of the input that was being applied then: the history has the token soon after it.
    cause: int
    secret: str

    #: Name of the local step that makes it.
    MAKER = f"{RESERVED}callback"

    def __str__(self) -> str:
        body = json.dumps(astuple(self), separators=(",", ":")).encode()
        data = base64.urlsafe_b64encode(_check(body) + body).decode().rstrip("=")
        return f"{_PREFIX}{data}"

    @classmethod
    def parse(cls, text: str) -> CallbackToken:
        """Read a token.

        Raises:
            InvalidRequestError: the text is none, or not a whole one.
        """
        given: object = text
        try:
            if not isinstance(given, str) or not given.startswith(_PREFIX):
                raise ValueError(_PREFIX)  # noqa: TRY301 - all that can be wrong has one answer
            data = given[len(_PREFIX) :]
            raw = base64.b64decode(data + "=" * (-len(data) % 4), altchars=b"-_", validate=True)
            check, body = raw[:_CHECK], raw[_CHECK:]
            if check != _check(body):
                raise ValueError(_CHECK)  # noqa: TRY301 - the same
            return cls(*json.loads(body))
        except (ValueError, TypeError, binascii.Error) as error:
            raise InvalidRequestError(
                "this is no token of a callback, or not a whole one; nothing was written. It begins with "
                f"{_PREFIX!r} and is to be given back as it is"
            ) from error

    @property
    def signal(self) -> str:
        """Name of the signals by which the callback hears."""
        return f"{self.MAKER}:{self.run}.{self.number}"

    @property
    def key(self) -> str:
        """Key of the answer, of which there is one."""
        return f"callback:{self.run}.{self.number}"


def _check(body: bytes) -> bytes:
    return blake2b(body, digest_size=_CHECK).digest()
