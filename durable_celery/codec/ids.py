"""What may be a workflow id, and what may be the name of a signal."""

from __future__ import annotations

import re

from durable_celery.errors import InvalidIdError, InvalidRequestError

__all__ = ["ID_LIMIT", "RESERVED", "check_id", "check_name", "check_signal_name"]

#: Longest workflow id, in characters. Ids of child runs are built from their parent's.
ID_LIMIT = 255
#: Longest name of a signal, and longest key of one, in characters.
NAME_LIMIT = 255
#: What the library's own signals begin with.
RESERVED = "durable:"
_ID = re.compile(r"[!-z|~]+")


def check_id(workflow_id: str) -> str:
    """Return the id if it may be one: 1 to 255 printable ASCII characters, no space, no ``{`` or ``}``.

    Raises:
        InvalidIdError: it may not. Ids stand in keys, hash tags, patterns and log lines.
    """
    given: object = workflow_id
    if not isinstance(given, str) or len(given) > ID_LIMIT or not _ID.fullmatch(given):
        raise InvalidIdError(
            f"{str(workflow_id)[:80]!r} cannot be a workflow id: it takes 1 to {ID_LIMIT} printable ASCII characters "
            "without spaces and braces"
        )
    return workflow_id


def check_name(name: str, what: str) -> str:
    """Return the name (or key) of a signal if it may be one: 1 to 255 printable characters of any script.

    Raises:
        InvalidRequestError: it may not. It stands in log lines and on terminals.
    """
    given: object = name
    if not isinstance(given, str) or not 0 < len(given) <= NAME_LIMIT or not given.isprintable():
        raise InvalidRequestError(
            f"{str(name)[:80]!r} cannot be {what}: it takes 1 to {NAME_LIMIT} printable characters"
        )
    return name


def check_signal_name(name: str) -> str:
    """Return the name of a user's signal if it may be one: none of the library's own, which only its verbs send.

    Raises:
        InvalidRequestError: it may not.
    """
    if check_name(name, "the name of a signal").startswith(RESERVED):
        raise InvalidRequestError(f"{name[:80]!r} cannot be the name of a signal: {RESERVED!r} is the library's own")
    return name
