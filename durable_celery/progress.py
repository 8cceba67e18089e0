"""Progress: what workflow code published, and the streams that it adds to, as readers outside see them.

All of it stands in the history as notes, so it is ordered, survives what the run survives, and is never seen twice. The
offset of an item is its seq in the history: it grows, with gaps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from durable_celery.codec import check_id, place_of
from durable_celery.workflow import Note, read_note

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from durable_celery.client import Client
    from durable_celery.events import Recorded

__all__ = ["Progress", "follow", "newest", "published", "so_far"]

_KINDS = (Note.PUBLISHED, Note.STREAM)
_PAGE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One published value, or one item of a stream."""

    #: Its seq in the history.
    offset: int
    #: The store's clock when it was recorded, ms since 1970.
    at: int
    #: ``publish`` or ``stream``.
    kind: Note
    #: The published key, or the stream's name.
    key: str
    value: Any


def follow(client: Client, workflow_id: str, *, after: int = 0, timeout: float | None = None) -> Iterator[Progress]:
    """Yield progress as it is recorded, in order, until the run ends.

    Raises:
        celery.exceptions.TimeoutError: for ``timeout`` seconds nothing new was recorded in the run.
        WorkflowNotFoundError: there is no such run.
    """
    what = f"workflow {workflow_id} showed no progress"
    yield from _read(client, workflow_id, client.follow(workflow_id, after=after, each=timeout, what=what))


def so_far(client: Client, workflow_id: str, *, after: int = 0) -> Iterator[Progress]:
    """Yield what is recorded now, in order.

    Raises:
        WorkflowNotFoundError: there is no such run.
    """
    client.describe(workflow_id)
    while page := client.store.history(workflow_id, after=after):
        yield from _read(client, workflow_id, page)
        after = page[-1].seq


def published(client: Client, workflow_id: str) -> dict[str, Any]:
    """Return the newest value under each published key.

    Raises:
        WorkflowNotFoundError: there is no such run.
    """
    return {one.key: one.value for one in so_far(client, workflow_id) if one.kind is Note.PUBLISHED}


def newest(client: Client, workflow_id: str, key: str, default: Any) -> Any:
    """Return the newest value under a key, or a default; reads the history from its end.

    Raises:
        WorkflowNotFoundError: there is no such run.
    """
    end = client.describe(workflow_id).length
    while end > 0:
        start = max(0, end - _PAGE)
        page = client.store.history(check_id(workflow_id), after=start, limit=end - start)
        for item in reversed(page):
            if read_note(item.event) == (Note.PUBLISHED, key):
                return _value(client, workflow_id, item)
        end = start
    return default


def _read(client: Client, workflow_id: str, events: Iterable[Recorded]) -> Iterator[Progress]:
    for item in events:
        note = read_note(item.event)
        if note is not None and note[0] in _KINDS:
            kind, key = note
            value = _value(client, workflow_id, item)
            yield Progress(offset=item.seq, at=item.at, kind=kind, key=key, value=value)


def _value(client: Client, workflow_id: str, item: Recorded) -> Any:
    return client.codec.decode(item.event.payload, place_of(item.event, workflow_id))
