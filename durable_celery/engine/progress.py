"""The progress that heartbeats save: a small value of the user's, bound to its step like all payloads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable_celery.errors import PayloadError

if TYPE_CHECKING:
    from durable_celery.codec import Codec
    from durable_celery.store.protocol import StepKey

__all__ = ["PROGRESS_LIMIT", "progress_text"]

#: Longest progress, in characters of JSON: it is written again and again, and is no place for results.
PROGRESS_LIMIT = 10_000


def progress_text(codec: Codec, progress: object, key: StepKey) -> str:
    """Return the JSON text of a step's progress, before it is sealed for its place.

    Raises:
        PayloadError: it has no JSON form, or is too long.
    """
    text = codec.dumps(progress, f"the progress of step {key}")
    if len(text) > PROGRESS_LIMIT:
        raise PayloadError(
            f"the progress of step {key} has {len(text)} characters, the limit is {PROGRESS_LIMIT}. Save where to go on"
        )
    return text
