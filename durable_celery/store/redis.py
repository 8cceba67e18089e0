"""The store on Redis or Valkey, one server or a cluster: each verb is one Lua script over the keys of one shard.

The scripts stand in ``lua/``, one for each verb; ``lua/common.lua`` draws the keys and is the place to read first. This
module turns answers into records and decides nothing; ``redis_server.py`` sends the scripts. Invariant: whatever a verb
reads and writes lies under one hash tag, ``<namespace>:{<shard>}:``, with shard = crc32(workflow id) modulo the number
of shards, so one script on one slot sees all of it. The server's clock is the only clock.

Memory and time: a script touches as many things as it has arguments, or as one owner holds; only the end of a run looks
at all commands that are still open.
"""

from __future__ import annotations

import json
from dataclasses import replace
from operator import methodcaller
from typing import TYPE_CHECKING, Any, Self

from durable_celery.codec import Codec, failure_of
from durable_celery.errors import (
    InboxFullError,
    StaleLeaseError,
    StepTimeoutError,
    WorkflowClosedError,
    WorkflowConflictError,
    WorkflowNotFoundError,
)
from durable_celery.events import Event, Recorded, RunStarted, StepCompleted, StepFailed, encode
from durable_celery.store.limits import STORIES
from durable_celery.store.protocol import (
    Appended,
    Claim,
    Committed,
    Finding,
    Finished,
    Finishing,
    Lease,
    Mail,
    NewRun,
    Refusal,
    Refused,
    RunMessage,
    RunPage,
    RunRecord,
    RunStatus,
    Started,
    StepKey,
    StepMessage,
    Sweep,
    Timing,
    Turn,
)
from durable_celery.store.redis_replies import (
    Head,
    commit_words,
    events_of,
    input_kind,
    milliseconds,
    open_steps,
    printable,
    read_message,
    read_record,
    read_turn,
    read_view,
    scheduled_step,
)
from durable_celery.store.redis_server import Server, connect

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from durable_celery.store.hearing import Ear
    from durable_celery.store.redis_server import Client

__all__ = ["RedisStore"]

#: Events that one reply carries at most.
PAGE = 200


class RedisStore:
    """A :class:`~durable_celery.store.protocol.Store` on Redis or Valkey, one server or a cluster; safe for threads.

    Safe across forks as well: a child makes its own connections.

    Args:
        client: Talks to the server. Its own retry rules apply; every verb may be repeated.
        namespace: First part of all keys. Stores with different namespaces never meet.
        shards: In how many parts the keys are divided, each on one slot of a cluster. Fixed at first use.
        timing: The waits that go into the agenda.
    """

    def __init__(
        self,
        client: Client,
        *,
        namespace: str = "durable",
        shards: int = 1,
        timing: Timing = Timing(),  # noqa: B008 - frozen
    ) -> None:
        self._setup(Server(lambda: client, namespace, shards, timing), timing)

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        namespace: str = "durable",
        shards: int = 1,
        timing: Timing = Timing(),  # noqa: B008 - frozen
        cluster: bool = False,
    ) -> Self:
        """Make a store for a ``redis://``, ``rediss://``, ``unix://`` or (kombu's) ``redis+socket://`` URL.

        No connection is made before the first verb. A server that does not answer is tried again for about a second.
        """
        store = cls.__new__(cls)
        server = Server(lambda: connect(url, cluster=cluster), namespace, shards, timing)
        store._setup(server, timing)  # noqa: SLF001 - our own
        return store

    def _setup(self, server: Server, timing: Timing) -> None:
        self._server, self.timing = server, timing
        self._first_shard = 0
        self._overdue = failure_of(StepTimeoutError("@STORY@"), Codec()), json.dumps(STORIES)

    # -- the life of a run -------------------------------------------------------------------------------------------

    def start(self, new: NewRun) -> Started:
        """See :meth:`Store.start`."""
        answer = _started(new, self._verb("start", new.workflow_id, *_start_words(new)))
        if isinstance(answer, WorkflowConflictError):
            raise answer
        return answer

    def start_all(self, news: Sequence[NewRun]) -> list[Started | WorkflowConflictError]:
        """See :meth:`Store.start_all`."""
        calls = [(self._server.shard_of(new.workflow_id), (new.workflow_id, *_start_words(new))) for new in news]
        return [_started(new, reply) for new, reply in zip(news, self._server.scripts("start", calls), strict=True)]

    def append(self, workflow_id: str, event: Event, *, key: str, room: int = 0) -> Appended:
        """See :meth:`Store.append`."""
        limit = [room] if room else []
        added, *rest = self._verb("append", workflow_id, key, input_kind(event), encode(event), *limit)
        if added == -1:
            raise WorkflowNotFoundError(workflow_id)
        if added == -3:  # noqa: PLR2004 - as the script has it
            raise InboxFullError(workflow_id, rest[0])
        if added < 0:
            raise WorkflowClosedError(workflow_id, rest[0])
        return Appended(added=bool(added), message=_run_message(rest[0]))

    def take(self, workflow_id: str, owner: str, *, known: int) -> Turn | Refused:
        """See :meth:`Store.take`."""
        kind, answer = self._verb("take", workflow_id, owner, known)
        return read_turn(answer, owner, known) if kind == "turn" else Refused(reason=Refusal(answer))

    def commit(
        self,
        lease: Lease,
        outputs: Sequence[Event],
        *,
        read: int,
        waiting: str,
        hold: bool,
        begin: int | None = None,
        finishing: Finishing | None = None,
        mail: Sequence[Mail] = (),
    ) -> Committed:
        """See :meth:`Store.commit`."""
        words = commit_words(
            lease, outputs, read=read, waiting=waiting, hold=hold, begin=begin, finishing=finishing, mail=mail
        )
        done, *answer = self._verb("commit", lease.workflow_id, *words)
        if not done:
            token, owner, position = answer
            raise StaleLeaseError(
                f"lease {lease.token} of workflow {lease.workflow_id!r} is stale, nothing was written: {token} is the "
                f"newest, held by {owner or 'nobody'}, and the turn stood at {read} of {position} committed events"
            )
        lines, length, held, now, begun, mailed = answer
        events = events_of(lines, read)
        return Committed(events=events, length=length, held=bool(held), now=now, begun=bool(begun), mailed=bool(mailed))

    def release(self, workflow_id: str, owner: str, *, delay: float, reason: str = "") -> None:
        """See :meth:`Store.release`."""
        self._verb("release", workflow_id, owner, milliseconds(delay), printable(reason))

    def deliver(self, lease: Lease) -> None:
        """See :meth:`Store.deliver`."""
        self._verb("deliver", lease.workflow_id, lease.owner)

    # -- the life of a step ------------------------------------------------------------------------------------------

    def claim(
        self, key: StepKey, owner: str, *, progress: str | None = None, known: int | None = None
    ) -> Claim | Refused:
        """See :meth:`Store.claim`."""
        beat = [] if progress is None else [progress]
        place = (key.workflow_id, key.run, key.number)
        kind, *answer = self._verb("claim", *place, owner, "" if known is None else known, *beat)
        if kind == "refused":
            return Refused(reason=Refusal(answer[0]), message=_run_message(answer[1]))
        attempt, lost, retries, line, override, saved, view = answer
        return Claim(
            key=key,
            token=attempt,
            owner=owner,
            attempt=attempt,
            lost=lost,
            retries=retries,
            scheduled=scheduled_step(line),
            override=override,
            progress=saved,
            view=read_view(view, known) if view and known is not None else None,
        )

    def finish(
        self,
        key: StepKey,
        outcome: StepCompleted | StepFailed,
        *,
        token: int | None,
        take_over: str | None = None,
        known: int = 0,
    ) -> Finished:
        """See :meth:`Store.finish`."""
        recorded, turn, message = self._verb(
            "finish",
            key.workflow_id,
            key.run,
            key.number,
            "" if token is None else token,
            encode(outcome),
            take_over or "",
            known,
        )
        return Finished(
            recorded=bool(recorded),
            turn=read_turn(turn, take_over, known) if turn and take_over else None,
            message=_run_message(message),
        )

    def postpone(
        self,
        key: StepKey,
        owner: str,
        *,
        delay: float | None,
        error: str,
        retries: int | None = None,
        override: str | None = None,
    ) -> bool:
        """See :meth:`Store.postpone`."""
        wait = "" if delay is None else milliseconds(delay)
        words = (owner, wait, printable(error), "" if retries is None else retries, override or "")
        return bool(self._verb("postpone", key.workflow_id, key.run, key.number, *words))

    def settle(self, key: StepKey, *, cancel: bool = False) -> None:
        """See :meth:`Store.settle`."""
        self._verb("settle", key.workflow_id, key.run, key.number, int(cancel))

    # -- what falls due ----------------------------------------------------------------------------------------------

    def renew(self, owners: Sequence[str], gone: Sequence[str] = ()) -> tuple[str, ...]:
        """See :meth:`Store.renew`."""
        known: set[str] = set()
        for shard in range(self._server.shards):
            known.update(self._server.script("renew", shard, len(owners), *owners, *gone))
        return tuple(sorted(known))

    def sweep(self, limit: int = 100) -> Sweep:
        """See :meth:`Store.sweep`. The shards take turns at being the first, so none is starved by the limit."""
        first = self._first_shard = (self._first_shard + 1) % self._server.shards
        messages: list[RunMessage | StepMessage] = []
        counts: dict[str, int] = {}
        waits: list[int] = []
        processes = 0
        for shard in (*range(first, self._server.shards), *range(first)):
            room = limit - sum(counts.values())
            if room <= 0:
                waits.append(0)
                break
            sent, settled, _, wait, known = self._server.script("sweep", shard, room, *self._overdue)
            processes = max(processes, known)
            messages += map(read_message, sent)
            for kind, number in zip(settled[::2], settled[1::2], strict=True):
                counts[kind] = counts.get(kind, 0) + number
            waits += [] if wait is None else [wait]
        next_in = min(waits, default=None)
        return Sweep(
            messages=tuple(messages),
            more=next_in == 0,
            next_in=None if next_in is None else next_in / 1000,
            counts=counts,
            processes=processes,
        )

    def hasten(self, oldest: int, newest: int = 0) -> None:
        """See :meth:`Store.hasten`."""
        for shard in range(self._server.shards):
            self._server.script("hasten", shard, oldest, newest)

    def ear(self, workflow_id: str) -> AbstractContextManager[Ear]:
        """Return what hears of the end of a run (client)."""
        return self._server.ears.ear(workflow_id)

    # -- looking -----------------------------------------------------------------------------------------------------

    def get(self, workflow_id: str) -> RunRecord | None:
        """See :meth:`Store.get`."""
        answer = self._verb("get", workflow_id)
        if answer is None:
            return None
        record = read_record(answer[0])
        return replace(record, steps=open_steps(answer[1], record.run))

    def history(self, workflow_id: str, *, run: int | None = None, after: int = 0, limit: int = 1000) -> list[Recorded]:
        """See :meth:`Store.history`. Read in pages; the log of a run only grows, so they fit together."""
        events: list[Recorded] = []
        run = run or self._newest(workflow_id)
        log = self._server.key(self._server.shard_of(workflow_id), f"log{run if run > 1 else ''}:{workflow_id}")
        while len(events) < limit:
            begin, end = after + len(events), after + min(limit, len(events) + PAGE)
            lines = self._server.ask(methodcaller("lrange", log, begin + 1, end))
            events += events_of(lines, begin)
            if len(lines) < end - begin:
                break
        return events

    def _newest(self, workflow_id: str) -> int:
        """Return the number of the newest run."""
        name = self._server.key(self._server.shard_of(workflow_id), f"run:{workflow_id}")
        text = self._server.ask(methodcaller("get", name))
        return int(json.loads(text).get("run", 1)) if text else 1

    def runs(
        self, *, status: RunStatus | None = None, name: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> RunPage:
        """See :meth:`Store.runs`. Runs that do not match are read and passed over."""
        which = "" if status is None else "closed" if status.is_closed else "open"
        place = cursor or "+inf:"
        found: list[RunRecord] = []
        # One more than asked for tells whether another page follows.
        while len(found) <= limit and (rows := self._rows(which, place, limit + 1)):
            found += [row for row in rows if status in {None, row.status} and name in {None, row.name}]
            place = _place(rows[-1])
        more = len(found) > limit
        return RunPage(runs=tuple(found[:limit]), cursor=_place(found[limit - 1]) if more else None)

    def _rows(self, which: str, place: str, limit: int) -> list[RunRecord]:
        """Return the ``limit`` newest runs after a place in the list, over all shards."""
        created_at, _, last = place.partition(":")
        rows = [
            read_record(reply)
            for shard in range(self._server.shards)
            for reply in self._server.script("runs", shard, which, created_at, last, limit)
        ]
        return sorted(rows, key=lambda row: (row.created_at, row.workflow_id), reverse=True)[:limit]

    def findings(self) -> list[Finding]:
        """Return what is to be said about the server's settings, its durability class first of all."""
        return self._server.findings()

    def _verb(self, name: str, workflow_id: str, *words: str | int) -> Any:
        return self._server.script(name, self._server.shard_of(workflow_id), workflow_id, *words)


def _start_words(new: NewRun) -> tuple[str | int, ...]:
    return (
        f"{new.digest}\n{new.name}",
        f"\n{new.parent or ''}\n{new.envelope}",
        encode(RunStarted(name=new.name, parent=new.parent, version=new.version)),
        new.payload,
        milliseconds(new.delay),
        "" if new.expires is None else milliseconds(new.expires),
        int(new.unsent),
        *(new.mail or ()),
    )


def _started(new: NewRun, reply: Any) -> Started | WorkflowConflictError:
    created, answer = reply
    if created >= 0:
        return Started(created=bool(created), message=_run_message(answer))
    head = Head(answer)
    return WorkflowConflictError(new.workflow_id, f"{head.name} ({head.digest})", f"{new.name} ({new.digest})")


def _run_message(reply: Sequence[Any] | None) -> RunMessage | None:
    message = read_message(reply) if reply else None
    return message if isinstance(message, RunMessage) else None


def _place(record: RunRecord) -> str:
    return f"{record.created_at}:{record.workflow_id}"
