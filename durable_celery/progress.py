"""Progress: what workflow code published, and the streams that it adds to, as readers outside see them.

All of it stands in the history as notes, so it is ordered, survives what the run survives, and is never seen twice. The
offset of an item is its place in the histories of the workflow's runs: it grows, with gaps. Earlier runs are read as
long as their histories are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from durable_celery.codec import check_id, place_of
from durable_celery.offsets import Offset
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

    #: Its place, see :class:`Offset`.
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
    events = client.follow(workflow_id, after=Offset.of(after), each=timeout, what=what)
    yield from _read(client, workflow_id, events)


def so_far(client: Client, workflow_id: str, *, after: int = 0) -> Iterator[Progress]:
    """Yield what is recorded now, in order.

    Raises:
        WorkflowNotFoundError: there is no such run.
    """
    newest_run, (first, seq) = client.describe(workflow_id).run, Offset.of(after)
    for run in range(first, newest_run + 1):
        while page := client.store.history(workflow_id, run=run, after=seq):
            yield from _read(client, workflow_id, ((run, item) for item in page))
            seq = page[-1].seq
        seq = 0


def published(client: Client, workflow_id: str) -> dict[str, Any]:
    """Return the newest value under each published key.

    Raises:
        WorkflowNotFoundError: there is no such run.
    """
    return {one.key: one.value for one in so_far(client, workflow_id) if one.kind is Note.PUBLISHED}


def newest(client: Client, workflow_id: str, key: str, default: Any) -> Any:
    """Return the newest value under a key, or a default; reads the histories from their end.

    Raises:
        WorkflowNotFoundError: there is no such run.
    """
    for run, item in _backwards(client, workflow_id):
        if read_note(item.event) == (Note.PUBLISHED, key):
            return _value(client, workflow_id, run, item)
    return default


def _backwards(client: Client, workflow_id: str) -> Iterator[tuple[int, Recorded]]:
    """Yield all events of a workflow, with the numbers of their runs, the newest first."""
    newest_run = client.describe(check_id(workflow_id))
    end = newest_run.length
    for run in range(newest_run.run, 0, -1):
        if run < newest_run.run:
            end = _length(client, workflow_id, run)
        while end > 0:
            start = max(0, end - _PAGE)
            page = client.store.history(workflow_id, run=run, after=start, limit=end - start)
            yield from ((run, item) for item in reversed(page))
            end = start


def _length(client: Client, workflow_id: str, run: int) -> int:
    """Return the length of the history of an earlier run, 0 if it is not kept any more."""
    length = 0
    while page := client.store.history(workflow_id, run=run, after=length):
        length = page[-1].seq
    return length


def _read(client: Client, workflow_id: str, events: Iterable[tuple[int, Recorded]]) -> Iterator[Progress]:
    for run, item in events:
        note = read_note(item.event)
        if note is not None and note[0] in _KINDS:
            kind, key = note
            value = _value(client, workflow_id, run, item)
            yield Progress(offset=int(Offset(run, item.seq)), at=item.at, kind=kind, key=key, value=value)


def _value(client: Client, workflow_id: str, run: int, item: Recorded) -> Any:
    return client.codec.decode(item.event.payload, place_of(item.event, workflow_id, run))
