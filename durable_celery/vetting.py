"""What is believed of a step's message: which step it is for, and nothing else. Anybody at the broker may write it.

A step is the task that its log names, with the arguments that its log has. What a message says instead is logged and
dropped.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore

from durable_celery.codec import check_id
from durable_celery.errors import CodecError, InvalidIdError
from durable_celery.store.protocol import StepKey

if TYPE_CHECKING:
    from collections.abc import Mapping

    from durable_celery.codec import Codec
    from durable_celery.engine import Engine
    from durable_celery.store.protocol import Claim

__all__ = ["Arguments", "is_of", "key_of"]

_log = logging.getLogger(__name__)
#: No run has so many steps; Lua's numbers are exact far beyond.
_HUGE = 2**31


def key_of(header: Mapping[str, Any]) -> StepKey | None:
    """Return the step that a header names; None where it names none."""
    workflow_id, run, number = header.get("id"), header.get("run"), header.get("step")
    if type(run) is not int or type(number) is not int or not (0 < run < _HUGE and 0 < number < _HUGE):
        return None
    try:
        return StepKey(workflow_id=check_id(str(workflow_id)), run=run, number=number)
    except InvalidIdError:
        return None


def is_of(claim: Claim, name: str, engine: Engine) -> bool:
    """Tell whether a claim is of the task that its message was for; else give it back."""
    if claim.scheduled.task == name:
        return True
    _log.warning("a message for %s named step %s, which is one of %s", name, claim.key, claim.scheduled.task)
    engine.postpone_step(claim, delay=0.0, error=f"a message for {name} came in its place")
    return False


class Arguments:
    """The arguments of one execution of a step."""

    def __init__(self, codec: Codec, request: Any, key: StepKey | None, kind: object) -> None:
        """Set up; ``kind`` is what the message says of how its arguments are sealed, or None."""
        self._codec, self._request, self._key, self._kind = codec, request, key, kind
        #: The arguments as they came, where they came sealed.
        self._sealed: str | None = None

    def of_message(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return the arguments of the message, which has them as they are in the log where a codec hides them.

        Raises:
            Ignore: they cannot be opened here. The agenda sends the step again; another worker may have the key.
        """
        key = self._key
        if key is None or (self._kind is None and not self._codec.is_strict):
            return args, kwargs
        self._sealed = args[0] if len(args) == 1 and isinstance(args[0], str) else None
        place = key.place("override" if self._kind == "override" else "call")
        try:
            opened_args, opened_kwargs = self._codec.decode(self._sealed, place)
        except (CodecError, TypeError, ValueError) as error:
            _log.error("step %s is not executed here: %s", key, error)
            reason = f"step {key} is not executed here: its arguments cannot be opened"
            raise Ignore(reason) from error
        return self._shown(opened_args, opened_kwargs)

    def of_log(self, claim: Claim, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return the arguments as the log has them. Who can write to the broker must not choose what is recorded.

        Raises:
            CodecError: they cannot be opened here.
        """
        key, text = claim.key, claim.override or claim.scheduled.payload
        kind = "override" if claim.override else "call"
        if self._sealed is not None and self._sealed == text and (self._kind == "override") == (kind == "override"):
            # The very text that was opened.
            return args, kwargs
        recorded = self._codec.decode(text, key.place(kind))
        if recorded == [list(args), kwargs]:
            return args, kwargs
        _log.warning("the message of step %s has other arguments than the log; those of the log count", key)
        return self._shown(*recorded)

    def _shown(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Put the arguments where Celery reads them for a retry, and where user's code may look."""
        self._request.args, self._request.kwargs = list(args), dict(kwargs)
        return args, kwargs
