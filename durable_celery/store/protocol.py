"""The Store protocol: fifteen atomic verbs, and the records that they take and give.

What a store keeps of a run: its record, its history, one small entry per open step, and what falls due (the *agenda*).
Each verb is one atomic operation (one Lua script, one transaction) that checks before it writes. A verb that raised
:class:`StoreUnavailableError` may have taken effect; every verb may be repeated then without harm.

The life of a wake-up, which is where engines of this kind lose work:

* an input is appended; if no live owner holds the run's lease and nobody was told yet, the store marks the run *woken*,
  puts its wake-up into the agenda and tells the caller to publish a run message;
* a turn takes the lease: the mark is cleared before the events are read;
* its commit looks again: if inputs came meanwhile the lease is kept and they are in the reply, else it is released;
* if the owner dies, what it held goes back to the agenda.

So an open run with unread inputs always has a live owner, or an agenda entry.

Owners are written ``<process>#<call>``. The process part lives while somebody renews it; a lease or claim is *held* by
it, and goes back to the agenda when the process is renewed no more, or is said to be gone. The call part is new for
each take, claim and finish, and makes repeating them safe: a ``take``, ``claim`` or ``finish`` that finds the lease or
claim held by the very same owner text gives the same answer (same token, same attempt) again. A reply that was lost can
thus be asked for again, and a lease whose reply never came can be released by its owner text alone.

A workflow id may have several *runs*, one after the other: where a run continues as the next one, its log is set aside
and a new one begins, in the same operation. Leases, fencing tokens, keys of inputs and the entry in the list of runs
belong to the workflow; logs, commands and step keys to one run. Steps of an earlier run that a closed run would still
execute are still executed; nothing is recorded of them.

All instants are the store's clock, in milliseconds since 1970; all durations are seconds.
"""

from __future__ import annotations

from dataclasses import field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from durable_celery.codec import Place
from durable_celery.records import record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from durable_celery.errors import WorkflowConflictError
    from durable_celery.events import Event, Recorded, StepCompleted, StepFailed, StepScheduled

__all__ = [
    "Appended",
    "Claim",
    "Committed",
    "Finding",
    "Finished",
    "Finishing",
    "Lease",
    "Mail",
    "NewRun",
    "PendingStep",
    "Refusal",
    "Refused",
    "RunMessage",
    "RunPage",
    "RunRecord",
    "RunStatus",
    "Started",
    "StepKey",
    "StepMessage",
    "StepState",
    "Store",
    "Sweep",
    "Timing",
    "Turn",
    "View",
    "hastened",
    "hosts_of",
]


class RunStatus(StrEnum):
    """What a run is doing."""

    #: Written, its first turn has not been committed yet.
    PENDING = "pending"
    #: Its code has begun and has not ended.
    RUNNING = "running"
    #: Parked: code and history disagree, or the code cannot be loaded. Tried again by itself.
    BLOCKED = "blocked"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_closed(self) -> bool:
        """Whether the run has ended."""
        return self in _CLOSED


_CLOSED = (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED)


class StepState(StrEnum):
    """What a step that has no recorded outcome is doing."""

    #: To be executed: its message is on its way, or waits for a retry to fall due.
    PENDING = "pending"
    #: An owner executes an attempt.
    CLAIMED = "claimed"
    #: Its attempt has ended without an outcome, which somebody outside will tell.
    WAITING = "waiting"
    #: A child run exists and will report.
    CHILD = "child"
    #: The workflow does not want it any more, and the child run is still to be told.
    CANCELLING = "cancelling"


class Refusal(StrEnum):
    """Why a claim or a take was refused."""

    #: No such run or step in the store.
    UNKNOWN = "unknown"
    #: The step has its outcome, or its run has ended and needs none.
    FINISHED = "finished"
    #: The workflow cancelled the step.
    CANCELLED = "cancelled"
    #: A live owner holds it.
    HELD = "held"
    #: A retry is waiting for its due time.
    EARLY = "early"
    #: A heartbeat came from an attempt that is not the step's any more.
    LOST = "lost"


@record(frozen=True, slots=True, kw_only=True)
class Timing:
    """The waits that a store puts into the agenda, all in seconds."""

    #: How long an owner lives after a renewal.
    owner_ttl: float = 10.0
    #: When a published message that nobody picked up is sent again for the first time; each time doubles it.
    resend_after: float = 10.0
    #: Longest wait between two sends of one message.
    resend_limit: float = 300.0
    #: How long a closed and delivered run is kept, and the log of a run that continued as another one.
    retention: float = 7 * 86400.0


@record(frozen=True, slots=True, kw_only=True)
class StepKey:
    """Names one step of one run. Its text is the idempotency key."""

    workflow_id: str
    run: int
    number: int

    def __str__(self) -> str:
        return f"{self.workflow_id}/{self.run}.{self.number}"

    def place(self, kind: str) -> Place:
        """Return one of the step's places, to which a payload is bound: ``call``, ``outcome``, ``progress``, ..."""
        return Place(self.workflow_id, kind, self.number, self.run)

    @classmethod
    def parse(cls, text: str) -> StepKey | None:
        """Read an idempotency key; None where the text is none."""
        workflow_id, slash, place = text.rpartition("/")
        run, dot, number = place.partition(".")
        if not (workflow_id and slash and dot and run.isdecimal() and number.isdecimal()):
            return None
        return cls(workflow_id=workflow_id, run=int(run), number=int(number))


class Mail(NamedTuple):
    """A message as it lies in the broker, for a store that is on the same server."""

    #: The key of its queue.
    queue: str
    text: str


@record(frozen=True, slots=True, kw_only=True)
class NewRun:
    """What a start writes."""

    workflow_id: str
    #: Name of the durable task.
    name: str
    #: Version of its code. A second start may have another: the run stays on the one that it was started with.
    version: int = 1
    #: The encoded ``[args, kwargs]``.
    payload: str
    #: Digest of the payload: a second start must have the same.
    digest: str
    #: Options with which the run's Celery messages are published (JSON text); opaque to the store.
    envelope: str = "{}"
    #: Seconds from now until the code may begin; 0 is at once.
    delay: float = 0.0
    #: Seconds from now after which the run does not begin any more, or None.
    expires: float | None = None
    #: Step of the parent that waits for this run, or None.
    parent: str | None = None
    #: Whether the agenda sends its message, at once, and not the caller.
    unsent: bool = False
    #: Its message, for a store that can put it into the broker with the run.
    mail: Mail | None = None


@record(frozen=True, slots=True, kw_only=True)
class RunMessage:
    """A run's Celery message, to be published: take a turn, or deliver the end."""

    workflow_id: str
    name: str
    envelope: str
    #: When the run was started (ms since 1970).
    created_at: int
    #: Whether no turn has been taken yet, so that this message is the first that a monitor sees.
    first: bool = False
    #: How often the agenda has counted it as published before; 0 where it is new, or nothing is known of that any more.
    sends: int = 0


@record(frozen=True, slots=True, kw_only=True)
class StepMessage:
    """A step's Celery message, to be published (or a child run, to be started)."""

    key: StepKey
    #: Name, options and arguments of the call.
    scheduled: StepScheduled
    #: Name of the workflow that called it.
    workflow: str
    #: The run's envelope.
    envelope: str
    #: The attempt that the message is for, from 1.
    attempt: int = 1
    #: How often the task asked Celery for a retry (``self.request.retries``).
    retries: int = 0
    #: Arguments that a ``self.retry(args=...)`` put in place of the scheduled ones (encoded), or None.
    override: str | None = None
    #: Whether the child run is to be cancelled instead of started.
    cancel: bool = False
    #: As for :class:`RunMessage`.
    sends: int = 0


@record(frozen=True, slots=True, kw_only=True)
class PendingStep:
    """An open step, for people."""

    number: int
    state: StepState
    #: Attempts claimed so far.
    attempt: int
    #: Attempts that ended with the loss of their process.
    lost: int
    #: Owner of the running attempt, or None.
    owner: str | None
    #: Summary of the last failed attempt, or None.
    error: str | None
    #: When a retry falls due (ms since 1970), or None.
    due_at: int | None
    #: What the last heartbeat saved (encoded), or None.
    progress: str | None = None


@record(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The state of a run, without its history."""

    workflow_id: str
    name: str
    status: RunStatus
    created_at: int
    #: Which execution of the workflow id this is, from 1.
    run: int = 1
    closed_at: int | None = None
    #: Number of events.
    length: int = 0
    #: The seq up to which turns have read.
    read: int = 0
    #: The newest fencing token; 0 if no turn has been taken.
    token: int = 0
    #: Owner of the turn that runs now, or None.
    owner: str | None = None
    #: What the run waits for, in words.
    waiting: str = ""
    #: Why the run is blocked, or "".
    reason: str = ""
    #: How many turns in a row failed or were lost; rules the wait before the next.
    failures: int = 0
    parent: str | None = None
    envelope: str = "{}"
    #: Whether Celery has stored the end and fired its callbacks.
    delivered: bool = False
    #: Open steps of this run; filled by ``get`` only.
    steps: tuple[PendingStep, ...] = ()


@record(frozen=True, slots=True, kw_only=True)
class Started:
    """Answer of ``start``."""

    #: Whether this call made the run; False: it was there already, with the same arguments.
    created: bool
    #: The message to publish; None where the run is not to begin yet, was there already, or the store has published it.
    message: RunMessage | None


@record(frozen=True, slots=True, kw_only=True)
class Appended:
    """Answer of ``append``."""

    #: False if an input with the same key was there already.
    added: bool
    #: The message to publish, or None where somebody else will see the input.
    message: RunMessage | None


@record(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to write outputs, until a newer token is given out."""

    workflow_id: str
    #: Grows with each lease of the run; the store refuses writes with an older one.
    token: int
    #: Who has it: ``<process>#<call>``.
    owner: str


@record(frozen=True, slots=True, kw_only=True)
class Turn:
    """A lease with what the turn needs to begin."""

    lease: Lease
    run: RunRecord
    #: The first page of events after the position that the caller knew; ``run.length`` tells whether more follow.
    events: tuple[Recorded, ...]
    #: The store's clock, ms since 1970.
    now: int


@record(frozen=True, slots=True, kw_only=True)
class Refused:
    """A claim or take that was refused."""

    reason: Refusal
    #: A message to publish all the same, because the one that was refused may have been the only one.
    message: RunMessage | None = None


@record(frozen=True, slots=True, kw_only=True)
class Committed:
    """Answer of ``commit``."""

    #: Inputs that came meanwhile: the first page of events after the caller's position and before its own outputs.
    #: Where more came, :meth:`Store.history` has them all, followed by the outputs.
    events: tuple[Recorded, ...]
    #: Length of the history, the outputs just written included.
    length: int
    #: Whether the caller still has the lease.
    held: bool
    now: int
    #: Whether the step that was to begin is claimed. A commit that comes again says False: :meth:`Store.claim` tells.
    begun: bool = False
    #: Whether the store has put the mail into the broker.
    mailed: bool = False


@record(frozen=True, slots=True, kw_only=True)
class View:
    """What suspended code has missed of a run that nobody has in hand and in which nothing is unread."""

    run: RunRecord
    #: All events after the position that the caller knew.
    events: tuple[Recorded, ...]
    now: int


@record(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to execute one attempt of a step and to record its outcome."""

    key: StepKey
    token: int
    owner: str
    #: Which attempt this is, from 1.
    attempt: int
    #: How many earlier attempts lost their process.
    lost: int
    #: How often the task asked Celery for a retry.
    retries: int
    scheduled: StepScheduled
    #: Arguments that a ``self.retry(args=...)`` put in place of the scheduled ones (encoded), or None.
    override: str | None = None
    #: What the last heartbeat saved, of this attempt or of an earlier one (encoded), or None.
    progress: str | None = None
    #: Where the run stands now, if that was asked for and there is something to be told.
    view: View | None = None


@record(frozen=True, slots=True, kw_only=True)
class Finished:
    """Answer of ``finish``."""

    #: Whether the outcome went into the history: False if the claim was stale, the step cancelled or the run closed.
    recorded: bool
    #: The lease, if the caller asked for it and it was free.
    turn: Turn | None = None
    #: The message to publish, or None.
    message: RunMessage | None = None


@record(frozen=True, slots=True, kw_only=True)
class Finishing:
    """The outcome of a step with which a turn begins, to be recorded by the turn's first commit."""

    key: StepKey
    #: The claim's.
    token: int
    outcome: StepCompleted | StepFailed
    #: When it came about, in ms since 1970, as the code was told; not before what the history ends with.
    at: int


@record(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What fell due and has to be published. Timers, deadlines and dead owners are settled inside the store."""

    messages: tuple[RunMessage | StepMessage, ...] = ()
    #: Whether more is due than this sweep took.
    more: bool = False
    #: Seconds until the next entry falls due, or None for an empty agenda.
    next_in: float | None = None
    #: How many entries of each kind were settled, for metrics and tests.
    counts: Mapping[str, int] = field(default_factory=dict)
    #: How many processes are known, wherever they run; in a store of several shards, to the shard that knows most.
    processes: int = 0


@record(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is to be said about a store's server: a setting, what it costs as measured, and the cure."""

    #: ``error``: work would be lost or refused. ``warning``: work may be lost in a crash. ``info``: good to know.
    level: Literal["error", "warning", "info"]
    #: The setting that was looked at.
    check: str
    message: str


@record(frozen=True, slots=True, kw_only=True)
class RunPage:
    """A part of the list of runs, newest first."""

    runs: tuple[RunRecord, ...]
    #: Give it to the next call; None at the end.
    cursor: str | None


#: Milliseconds that a message must have been out for `hasten`.
_JUST_SENT = 1000


def hastened(due_at: int | None, now: int, resend_after: int) -> int:
    """Return when a message that `hasten` takes falls due, which was published ``resend_after`` before it is."""
    assert due_at is not None  # noqa: S101 - it was found by it
    return max(now, min(due_at, due_at - resend_after + _JUST_SENT))


def hosts_of(processes: Iterable[str]) -> set[str]:
    """Return the hosts of processes, whose names begin with the host and a colon; nothing, for all, if one has none."""
    parts = [process.partition(":") for process in processes]
    return {host for host, _, _ in parts} if all(colon for _, colon, _ in parts) else set()


class Store(Protocol):
    """Fifteen atomic verbs. One contract suite (``tests/store``) runs over every implementation.

    Raises, from any verb:
        StoreUnavailableError: no answer; the verb may have taken effect and may be repeated.
    """

    def start(self, new: NewRun) -> Started:
        """Create a run with its first event, or find the one that is there (client, worker).

        With a delay the run waits for timer 0. With ``expires`` and no delay the message is given at once all the same.

        Raises:
            WorkflowConflictError: the id is taken by another workflow or other arguments; nothing was written.
        """
        ...

    def start_all(self, news: Sequence[NewRun]) -> list[Started | WorkflowConflictError]:
        """Do what :meth:`start` does for each of many, in few round trips; one that is refused is told in its place.

        An answer that is lost may leave some of them started. (client)
        """
        ...

    def append(self, workflow_id: str, event: Event, *, key: str, room: int = 0) -> Appended:
        """Add an input once per ``key`` (client, worker).

        With ``room`` it is refused where so many events wait for the run's next turn already.

        A :class:`CancelRequested` after the first one is not added, whatever its key. ``TimerFired(0)`` is added only
        once, and takes the gate's agenda entry away.

        Raises:
            WorkflowNotFoundError: there is no such run.
            WorkflowClosedError: the run has ended and no input with this key was accepted before.
            InboxFullError: there is no room; nothing was written.
        """
        ...

    def take(self, workflow_id: str, owner: str, *, known: int) -> Turn | Refused:
        """Take the run's lease under a new token, unless a live owner has it; read the events after ``known`` (worker).

        Clears the wake mark before it reads. A closed run that is delivered is refused as FINISHED; one that is not
        yet delivered gives its lease, for the delivery.
        """
        ...

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
        """Append the outputs of a turn, with all that follows from them (worker).

        ``read`` is the seq up to which the caller has seen the history (its own outputs counted): whatever comes after
        it is new. Steps get their entry and their first resend, timers their due time, cancelled commands lose both, a
        terminal event closes the run and puts the delivery into the agenda. A step whose options limit its time gets
        an alarm (:mod:`durable_celery.store.limits`). The lease is kept if ``hold`` or if there are new inputs, else
        given back.
        A terminal event closes the run even if inputs came meanwhile: they are too late.

        A :class:`RunContinued`, which is the last output, ends the run and begins the next one. What a close drops is
        dropped. The log is set aside for the retention. A new one begins with a :class:`RunStarted` of the same name
        and parent and with the payload of the continuation, and goes on with the inputs that it names as ``kept`` and
        those of the same kinds (``CARRIED``) that came after ``read``, in their order. Keys of inputs stay. The lease
        is given back whatever ``hold`` says, and the run is woken; the answer has no events, and the length of the old
        log. One that comes again is known by its token, because two runs may well end in the same way.

        With ``begin``, the number of a step among the outputs that none of them cancels, the lease's owner has claimed
        that step with this very commit, as by :meth:`claim`, unless its process has expired.

        With ``finishing`` the caller has no lease yet. It has fed an outcome to the code that is not recorded, as event
        number ``read``, and assumes that nothing else has happened to the run since its last turn, which had the token
        before the lease's. Then the outcome is recorded and the lease given, as by :meth:`finish` with ``take_over``,
        and the rest is done, all in one. If the assumption does not hold, if ``at`` is still to come by the store's
        clock, or if the process has expired, the lease is stale.

        ``mail`` is put into the broker in the same transaction, by a store that can; else the caller publishes.

        A commit that has taken effect and comes again is known by its position and its outputs, and gets its answer
        again. So ``read`` is never less than the length that the last commit of the run returned.

        Raises:
            StaleLeaseError: the token is not the newest, the lease went to nobody, the run is closed and there are
                outputs, or ``read`` lies before the last commit; nothing was written.
        """
        ...

    def release(self, workflow_id: str, owner: str, *, delay: float, reason: str = "") -> None:
        """Give the lease back without a result; the run is woken again after ``delay`` (worker).

        The lease is known by its owner text; a lease that is not the run's any more is ignored. A ``reason`` makes the
        run *blocked*; the next commit makes it running again. Counts as one failure.
        """
        ...

    def deliver(self, lease: Lease) -> None:
        """Note that a closed run's end was delivered, give its lease back, begin its retention (worker).

        A lease that is not the run's any more is ignored.
        """
        ...

    def claim(
        self, key: StepKey, owner: str, *, progress: str | None = None, known: int | None = None
    ) -> Claim | Refused:
        """Begin an attempt of a step, counted before it runs (worker); with ``progress``, give a heartbeat of it.

        With ``known``, the seq up to which the caller has seen the run that the step is of, the claim also has what
        came after it, where nobody has the run's lease, its turns have read it all, and it is no more than a page.

        A heartbeat never begins anything. It takes the step's heartbeat limit up anew, and saves what it brings: a text
        for the next attempt to find, or ``""`` to leave what is there. A step that is WAITING takes it from anybody.
        It is refused as LOST where the owner's claim is the step's no more; as FINISHED where the run has closed or
        continued as another one, and a step that is the owner's goes with that, because nobody waits for it.
        """
        ...

    def finish(
        self,
        key: StepKey,
        outcome: StepCompleted | StepFailed,
        *,
        token: int | None,
        take_over: str | None = None,
        known: int = 0,
    ) -> Finished:
        """Record a step's outcome, once (worker).

        ``token`` is the claim's; None is for outcomes from outside a claim: a child run's end, a step that was revoked
        or completed by its token. With
        ``take_over`` (an owner) the run's lease is taken in the same operation, if it is free, as by :meth:`take`.
        An outcome that is not recorded (stale, repeated) still gives the lease or the message if the run has unread
        inputs and nobody alive has its lease.
        """
        ...

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
        """End an attempt without an outcome; the step is sent again after ``delay`` (worker).

        None is never: the step is WAITING for an outcome from outside, with the limits of the attempt. Where nobody
        waits for the step any more (its run has closed or continued) it goes.

        ``retries`` and ``override`` stay as they were if they are None.
        The claim is known by its owner text, as in :meth:`release`; False if it is not the step's any more.
        """
        ...

    def settle(self, key: StepKey, *, cancel: bool = False) -> None:
        """Note that a child run exists, or, with ``cancel``, that it was told to cancel (worker).

        The first makes a PENDING entry a CHILD, or takes it away where the run is closed: nobody waits for it. The
        second takes a CANCELLING entry away. Each leaves alone what the other one is for: a workflow may cancel a child
        between its start and the note of its start, and it must still be told.
        """
        ...

    def renew(self, owners: Sequence[str], gone: Sequence[str] = ()) -> tuple[str, ...]:
        """Keep processes alive for ``owner_ttl`` more, expire those that are gone, return the known ones (worker).

        These are the processes of the same hosts, see :func:`hosts_of`: of others nobody can tell whether they live.
        A process that is renewed after it expired first loses all that it held; so does one that takes or claims
        something after it expired. ``take`` and ``claim`` by a process that was never renewed make it known, for one
        ``owner_ttl``.
        """
        ...

    def sweep(self, limit: int = 100) -> Sweep:
        """Settle up to ``limit`` entries that are due, each at most once per due time (worker).

        Due timers append their event and wake the run; so do the alarms of steps, or they free an attempt that took
        too long; what a dead owner held falls due at once; a run's or step's message is given back to be published,
        and falls due again after a wait that doubles each time; runs past their retention are deleted.
        """
        ...

    def hasten(self, oldest: int, newest: int = 0) -> None:
        """Let messages fall due that were published, so many of the oldest and of the newest (worker).

        To be called once a worker is known to have died: the oldest ones it may have fetched and not begun, so they lie
        with it, and the newest it may have committed and not published. Nobody can tell these from what still waits in
        a queue, and a message that comes twice does no harm. They count as never published. Those that were published
        less than a second ago fall due when they have been out for a second: they may still be on their way. Left out
        are those that wait longer than ``resend_after`` to be sent again. In a store of several shards, or of runs and
        steps apart, the numbers are for each.
        """
        ...

    def get(self, workflow_id: str) -> RunRecord | None:
        """Return the record of a run with its open steps (client)."""
        ...

    def history(self, workflow_id: str, *, run: int | None = None, after: int = 0, limit: int = 1000) -> list[Recorded]:
        """Return up to ``limit`` events after seq ``after``, in order (client, worker).

        ``run`` is the newest one if it is not given; of an earlier one there is nothing once its retention is over.
        """
        ...

    def runs(
        self, *, status: RunStatus | None = None, name: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> RunPage:
        """Return runs, newest first (client)."""
        ...
