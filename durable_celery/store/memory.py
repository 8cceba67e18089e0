"""The store in one process: the reference for the contract, and the store of tests and simulations.

Plain dictionaries under one lock. It keeps nothing when the process ends. Each method is the verb of the same name in
:mod:`durable_celery.store.protocol`, written for reading: what it does is what the other stores must do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from durable_celery.codec import Codec, failure_of
from durable_celery.errors import (
    InboxFullError,
    StaleLeaseError,
    StepTimeoutError,
    WorkflowClosedError,
    WorkflowConflictError,
    WorkflowNotFoundError,
)
from durable_celery.events import (
    CancelRequested,
    Event,
    Recorded,
    RunContinued,
    RunStarted,
    StepCompleted,
    StepFailed,
    TimerFired,
)
from durable_celery.store.limits import ATTEMPT_OVER, SILENT, first_passed, story
from durable_celery.store.memory_tables import PAGE, OpenStep, Run, Tables, key_of, milliseconds, place_of
from durable_celery.store.protocol import (
    Appended,
    Claim,
    Committed,
    Finished,
    Finishing,
    Lease,
    Mail,
    NewRun,
    PendingStep,
    Refusal,
    Refused,
    RunMessage,
    RunPage,
    RunRecord,
    RunStatus,
    Started,
    StepKey,
    StepMessage,
    StepState,
    Sweep,
    Turn,
    View,
    hastened,
    hosts_of,
)

__all__ = ["MemoryStore"]

#: Steps that nobody executes: their outcome comes from elsewhere.
_ELSEWHERE = {StepState.CHILD, StepState.CANCELLING, StepState.WAITING}


class MemoryStore(Tables):
    """A :class:`~durable_celery.store.protocol.Store` in the memory of this process; safe for threads."""

    # -- the life of a run -------------------------------------------------------------------------------------------

    def start(self, new: NewRun) -> Started:
        """See :meth:`Store.start`."""
        with self.lock:
            now = self.clock()
            if run := self.run_table.get(new.workflow_id):
                if (run.record.name, run.digest) != (new.name, new.digest):
                    raise WorkflowConflictError(
                        new.workflow_id, f"{run.record.name} ({run.digest})", f"{new.name} ({new.digest})"
                    )
                due = ("timer", new.workflow_id, 0) in self.agenda
                message = self._message(run) if run.record.status is RunStatus.PENDING and not due else None
                return Started(created=False, message=message)
            record = RunRecord(
                workflow_id=new.workflow_id,
                name=new.name,
                status=RunStatus.PENDING,
                created_at=now,
                parent=new.parent,
                envelope=new.envelope,
            )
            run = self.run_table[new.workflow_id] = Run(record=record, digest=new.digest)
            start_at = now + milliseconds(new.delay) if new.delay else None
            expires_at = None if new.expires is None else now + milliseconds(new.expires)
            self._append(
                run,
                RunStarted(
                    payload=new.payload,
                    name=new.name,
                    start_at=start_at,
                    expires_at=expires_at,
                    parent=new.parent,
                    version=new.version,
                ),
            )
            if start_at is not None:
                self.agenda["timer", new.workflow_id, 0] = start_at
                return Started(created=True, message=None)
            if new.unsent:
                self._rearm(run, 0.0)
                return Started(created=True, message=None)
            return Started(created=True, message=self._wake(run))

    def start_all(self, news: Sequence[NewRun]) -> list[Started | WorkflowConflictError]:
        """See :meth:`Store.start_all`."""
        answers: list[Started | WorkflowConflictError] = []
        for new in news:
            try:
                answers.append(self.start(new))
            except WorkflowConflictError as error:
                answers.append(error)
        return answers

    def append(self, workflow_id: str, event: Event, *, key: str, room: int = 0) -> Appended:
        """See :meth:`Store.append`."""
        with self.lock:
            run = self._run(workflow_id)
            if self._was_accepted(run, event, key):
                return Appended(added=False, message=self._wake(run, again=True))
            if run.record.status.is_closed:
                raise WorkflowClosedError(workflow_id, run.record.status)
            if 0 < room <= (unread := len(run.log) - run.record.read):
                raise InboxFullError(workflow_id, unread)
            if isinstance(event, TimerFired):
                self.agenda.pop(("timer", workflow_id, run.place(event.number)), None)
                key = f"timer:{event.number}"
            run.keys.add(key)
            run.cancel_requested |= isinstance(event, CancelRequested)
            self._append(run, event)
            return Appended(added=True, message=self._wake(run))

    def _was_accepted(self, run: Run, event: Event, key: str) -> bool:
        if isinstance(event, TimerFired) and event.number:
            return ("timer", run.record.workflow_id, run.place(event.number)) not in self.agenda
        if isinstance(event, TimerFired):
            return "timer:0" in run.keys
        return key in run.keys or (isinstance(event, CancelRequested) and run.cancel_requested)

    def take(self, workflow_id: str, owner: str, *, known: int) -> Turn | Refused:
        """See :meth:`Store.take`."""
        with self.lock:
            run = self.run_table.get(workflow_id)
            if run is None:
                return Refused(reason=Refusal.UNKNOWN)
            if run.record.delivered:
                return Refused(reason=Refusal.FINISHED)
            if self._is_held(run, owner):
                return Refused(reason=Refusal.HELD)
            return self._lease(run, owner, known)

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
        mail: Sequence[Mail] = (),  # noqa: ARG002 - the broker is elsewhere
    ) -> Committed:
        """See :meth:`Store.commit`."""
        written, before = ([finishing.outcome, *outputs], read - 1) if finishing else (outputs, read)
        with self.lock:
            run = self.run_table.get(lease.workflow_id)
            if run is not None and _is_repeated(run, lease, written, before):
                if _continues(outputs):
                    return self._continued(run)
                end = run.record.read - len(written)
                events, held = tuple(run.log[before:end][:PAGE]), run.record.owner is not None
                return Committed(events=events, length=run.record.read, held=held, now=self.clock())
            if run is not None and finishing is not None and self._may_finish(run, lease, finishing, before):
                self._forget_step(run, place_of(finishing.key))
                self._append(run, finishing.outcome, finishing.at)
                self._lease(run, lease.owner, read)
            if run is None or not _may_write(run, lease, outputs, read):
                raise StaleLeaseError(_stale_story(run, lease, read))
            unseen = tuple(run.log[read:])
            for event in outputs:
                self._append(run, event)
                self._follow(run, event)
            if outputs and isinstance(outputs[-1], RunContinued):
                self._continue(run, outputs[-1], unseen)
                return self._continued(run)
            if not run.record.status.is_closed:
                gated = ("timer", lease.workflow_id, 0) in self.agenda
                run.update(status=RunStatus.PENDING if gated else RunStatus.RUNNING, waiting=waiting)
            begun = begin is not None and self._is_alive(lease.owner)
            if begin is not None and begun:
                key = StepKey(workflow_id=lease.workflow_id, run=run.record.run, number=begin)
                self._begin(run, place_of(key), lease.owner)
            run.update(read=len(run.log), failures=0, reason="")
            held = hold or bool(unseen and not run.record.status.is_closed)
            if not held:
                self._give_back(run)
                self._wake(run)
            return Committed(events=unseen[:PAGE], length=len(run.log), held=held, now=self.clock(), begun=begun)

    def _may_finish(self, run: Run, lease: Lease, finishing: Finishing, read: int) -> bool:
        """Whether nothing has happened to a run since its last turn, while an attempt was made at a step of it."""
        record, step = run.record, run.steps.get(place_of(finishing.key))
        return (
            (record.token, record.owner) == (lease.token - 1, None)
            and not record.status.is_closed
            and record.read == len(run.log) == read
            and step is not None
            and (step.state, step.attempt) == (StepState.CLAIMED, finishing.token)
            and finishing.at <= self.clock()
            and self._is_alive(lease.owner)
        )

    def _continued(self, run: Run) -> Committed:
        """Return the answer to a commit that began this run; it tells of the one before."""
        return Committed(events=(), length=len(run.past[run.record.run - 1]), held=False, now=self.clock())

    def release(self, workflow_id: str, owner: str, *, delay: float, reason: str = "") -> None:
        """See :meth:`Store.release`."""
        with self.lock:
            run = self.run_table.get(workflow_id)
            if run is None or run.record.owner != owner:
                return
            self._give_back(run)
            run.update(failures=run.record.failures + 1, reason=reason)
            if reason and not run.record.status.is_closed:
                run.update(status=RunStatus.BLOCKED)
            self._rearm(run, delay)

    def deliver(self, lease: Lease) -> None:
        """See :meth:`Store.deliver`."""
        with self.lock:
            run = self.run_table.get(lease.workflow_id)
            if run is None or run.record.owner != lease.owner or not run.record.status.is_closed:
                return
            self._give_back(run)
            run.update(delivered=True)
            until = self.clock() + milliseconds(self.timing.retention)
            # Not before the logs of its earlier runs, should the retention have become shorter.
            self.agenda["retention", lease.workflow_id, 0] = max(until, run.past_until)

    # -- the life of a step ------------------------------------------------------------------------------------------

    def claim(
        self, key: StepKey, owner: str, *, progress: str | None = None, known: int | None = None
    ) -> Claim | Refused:
        """See :meth:`Store.claim`."""
        with self.lock:
            run = self.run_table.get(key.workflow_id)
            place = place_of(key)
            step = run.steps.get(place) if run else None
            if run is None or key.run > run.record.run:
                return Refused(reason=Refusal.UNKNOWN)
            if step is None:
                return self._refuse_step(run, key)
            if progress is not None and (refused := self._beat(run, key, owner, progress)):
                return refused
            is_foreign = step.state is StepState.CLAIMED and step.owner != owner
            if (is_foreign and self._is_alive(step.owner)) or (progress is None and step.state in _ELSEWHERE):
                return Refused(reason=Refusal.HELD)
            if is_foreign:
                self._free_step(run, place)
            if step.state is StepState.PENDING:
                if step.not_before > self.clock():
                    return Refused(reason=Refusal.EARLY)
                self._begin(run, place, owner)
            return Claim(
                key=key,
                token=step.attempt,
                owner=owner,
                attempt=step.attempt,
                lost=step.lost,
                retries=step.retries,
                scheduled=step.scheduled,
                override=step.override,
                progress=step.progress,
                view=None if known is None else self._view(run, key, known),
            )

    def _view(self, run: Run, key: StepKey, known: int) -> View | None:
        record = run.record
        is_at_rest = run.needs(key) and record.owner is None and record.read == record.length
        if not is_at_rest or not known < record.length <= known + PAGE:
            return None
        return View(run=replace(record), events=tuple(run.log[known:]), now=self.clock())

    def _begin(self, run: Run, place: int, owner: str) -> None:
        """Begin the next attempt of a step that waits for it."""
        step, workflow_id = run.steps[place], run.record.workflow_id
        self._hold(owner, workflow_id, place)
        step.state, step.owner, step.attempt = StepState.CLAIMED, owner, step.attempt + 1
        step.not_before, step.sends = 0, 0
        self.agenda.pop(("step", workflow_id, place), None)
        self._limit(run, place, "attempt", "heartbeat", over=("start",))

    def _beat(self, run: Run, key: StepKey, owner: str, progress: str) -> Refused | None:
        """Take a heartbeat; return why it is refused, or None."""
        place = place_of(key)
        step = run.steps[place]
        is_its_own = step.state is StepState.WAITING or (step.state, step.owner) == (StepState.CLAIMED, owner)
        if not run.needs(key):
            if is_its_own:
                self._forget_step(run, place)
            return Refused(reason=Refusal.FINISHED)
        if not is_its_own:
            return Refused(reason=Refusal.LOST)
        step.progress = progress or step.progress
        self._limit(run, place, "heartbeat")
        return None

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
        with self.lock:
            run = self.run_table.get(key.workflow_id)
            if run is None:
                return Finished(recorded=False)
            recorded = False
            step = run.steps.get(place_of(key))
            if step is not None and (token is None or (step.state, step.attempt) == (StepState.CLAIMED, token)):
                self._forget_step(run, place_of(key))
                if run.needs(key) and step.state is not StepState.CANCELLING:
                    self._append(run, outcome)
                    recorded = True
            if run.record.status.is_closed or not run.has_unread:
                return Finished(recorded=recorded)
            if take_over is not None and not self._is_held(run, take_over):
                return Finished(recorded=recorded, turn=self._lease(run, take_over, known))
            return Finished(recorded=recorded, message=self._wake(run, again=not recorded))

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
        with self.lock:
            run = self.run_table.get(key.workflow_id)
            place = place_of(key)
            step = run.steps.get(place) if run else None
            if run is None or step is None or step.state is not StepState.CLAIMED or step.owner != owner:
                return False
            self._drop(owner, key.workflow_id, place)
            step.error, step.override = error, override or step.override
            step.retries = step.retries if retries is None else retries
            if delay is None:
                step.state, step.owner = StepState.WAITING, None
                if not run.needs(key):
                    # Nobody waits for what somebody outside may tell.
                    self._forget_step(run, place)
                return True
            due = self.clock() + milliseconds(delay)
            step.state, step.owner, step.sends, step.not_before = StepState.PENDING, None, 0, due
            self.agenda["step", key.workflow_id, place] = due
            self._limit(run, place, over=("attempt", "heartbeat"))
            return True

    def settle(self, key: StepKey, *, cancel: bool = False) -> None:
        """See :meth:`Store.settle`."""
        with self.lock:
            run = self.run_table.get(key.workflow_id)
            place = place_of(key)
            step = run.steps.get(place) if run else None
            if run is None or step is None:
                return
            if step.state is StepState.CANCELLING and cancel:
                self._forget_step(run, place)
            elif step.state is StepState.PENDING and not cancel:
                step.state = StepState.CHILD
                self.agenda.pop(("step", key.workflow_id, place), None)
                if not run.needs(key):
                    # Nobody waits for the child's end.
                    self._forget_step(run, place)

    # -- what falls due ----------------------------------------------------------------------------------------------

    def renew(self, owners: Sequence[str], gone: Sequence[str] = ()) -> tuple[str, ...]:
        """See :meth:`Store.renew`."""
        with self.lock:
            now = self.clock()
            for owner in owners:
                if not self._is_alive(owner):
                    self._free(owner)
                self.agenda["owner", owner, 0] = now + milliseconds(self.timing.owner_ttl)
            for owner in gone:
                if ("owner", owner, 0) in self.agenda:
                    self.agenda["owner", owner, 0] = now
            hosts = hosts_of([*owners, *gone])
            known = [name for kind, name, _ in self.agenda if kind == "owner"]
            return tuple(sorted(name for name in known if not hosts or name.partition(":")[0] in hosts))

    def sweep(self, limit: int = 100) -> Sweep:
        """See :meth:`Store.sweep`."""
        with self.lock:
            now = self.clock()
            # Dead owners come first: what they held is then due as well.
            dead = sorted(entry for entry, at in self.agenda.items() if at <= now and entry[0] == "owner")[:limit]
            for _, process, _ in dead:
                self._free(process)
            counts = Counter({"owner": len(dead)} if dead else {})
            messages: list[RunMessage | StepMessage] = []
            due = sorted((at, entry) for entry, at in self.agenda.items() if at <= now and entry[0] != "owner")
            for _, entry in due[: limit - len(dead)]:
                # An earlier one of this sweep may have settled it.
                if entry in self.agenda:
                    counts[entry[0]] += 1
                    if message := getattr(self, f"_due_{entry[0]}")(*entry[1:]):
                        messages.append(message)
            next_at = min(self.agenda.values(), default=None)
            return Sweep(
                messages=tuple(messages),
                more=next_at is not None and next_at <= now,
                next_in=None if next_at is None else max(0, next_at - now) / 1000,
                counts=counts,
                processes=sum(kind == "owner" for kind, _, _ in self.agenda),
            )

    def hasten(self, oldest: int, newest: int = 0) -> None:
        """See :meth:`Store.hasten`."""
        with self.lock:
            now = self.clock()
            wait = milliseconds(self.timing.resend_after)
            soon = sorted((at, entry) for entry, at in self.agenda.items() if now < at <= now + wait)
            published = [(at, entry, what) for at, entry in soon if (what := self._published(*entry)) is not None]
            for at, entry, what in [*published[:oldest], *published[max(0, len(published) - newest) :]]:
                self.agenda[entry], what.sends = hastened(at, now, wait), 0

    def _published(self, kind: str, name: str, number: int) -> Run | OpenStep | None:
        """Return the run or step of an entry, if its message is out."""
        if kind not in {"run", "step"}:
            return None
        run = self.run_table[name]
        what = run if kind == "run" else run.steps[number]
        return what if what.sends else None

    def _due_run(self, workflow_id: str, _: int) -> RunMessage:
        run = self.run_table[workflow_id]
        run.woken = True
        self.agenda["run", workflow_id, 0] = self.clock() + self._wait(run.sends)
        run.sends += 1
        return replace(self._message(run), sends=run.sends - 1)

    def _due_step(self, workflow_id: str, number: int) -> StepMessage:
        run = self.run_table[workflow_id]
        step = run.steps[number]
        self.agenda["step", workflow_id, number] = self.clock() + self._wait(step.sends)
        step.sends += 1
        return StepMessage(
            key=key_of(workflow_id, number),
            scheduled=step.scheduled,
            workflow=run.record.name,
            envelope=run.record.envelope,
            attempt=step.attempt + 1,
            retries=step.retries,
            override=step.override,
            cancel=step.state is StepState.CANCELLING,
            sends=step.sends - 1,
        )

    def _due_timer(self, workflow_id: str, number: int) -> RunMessage | None:
        run = self.run_table[workflow_id]
        del self.agenda["timer", workflow_id, number]
        run.keys.add(f"timer:{number}")
        self._append(run, TimerFired(number=key_of(workflow_id, number).number))
        return self._wake(run)

    def _due_deadline(self, workflow_id: str, number: int) -> RunMessage | None:
        run = self.run_table[workflow_id]
        step = run.steps[number]
        passed, limits = first_passed(step.ends.items(), self.clock()), step.limits
        assert limits is not None and passed is not None  # noqa: S101, PT018 - the alarm stands at one of them
        if passed == "heartbeat" or (passed == "attempt" and not 0 < limits.tries <= step.attempt):
            self._free_step(run, number, SILENT if passed == "heartbeat" else ATTEMPT_OVER)
            return None
        if step.scheduled.kind == "workflow":
            self._cancel_step(run, number)
        else:
            self._forget_step(run, number)
        error, name = StepTimeoutError(story(passed, limits, step.scheduled)), key_of(workflow_id, number).number
        self._append(run, StepFailed(payload=failure_of(error, Codec()), number=name, attempt=step.attempt))
        return self._wake(run)

    def _due_retention(self, workflow_id: str, past: int) -> None:
        run = self.run_table[workflow_id]
        del self.agenda["retention", workflow_id, past]
        if past:
            del run.past[-past]
            return
        for number in list(run.steps):
            self._forget_step(run, number)
        del self.run_table[workflow_id]

    # -- looking -----------------------------------------------------------------------------------------------------

    def get(self, workflow_id: str) -> RunRecord | None:
        """See :meth:`Store.get`."""
        with self.lock:
            run = self.run_table.get(workflow_id)
            if run is None:
                return None
            steps = (
                PendingStep(
                    number=key_of(workflow_id, place).number,
                    state=step.state,
                    attempt=step.attempt,
                    lost=step.lost,
                    owner=step.owner,
                    error=step.error,
                    due_at=step.not_before or None,
                    progress=step.progress,
                )
                for place, step in sorted(run.steps.items())
                if place >= run.place(0)
            )
            return replace(run.record, steps=tuple(steps))

    def history(self, workflow_id: str, *, run: int | None = None, after: int = 0, limit: int = 1000) -> list[Recorded]:
        """See :meth:`Store.history`."""
        with self.lock:
            found = self.run_table.get(workflow_id)
            if found is None:
                return []
            log = found.log if run in {None, found.record.run} else found.past.get(run or 0, [])
            return log[after : after + limit]

    def runs(
        self, *, status: RunStatus | None = None, name: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> RunPage:
        """See :meth:`Store.runs`."""
        with self.lock:
            found = [
                replace(run.record)
                for run in self.run_table.values()
                if status in {None, run.record.status} and name in {None, run.record.name}
            ]
            found.sort(key=lambda record: (record.created_at, record.workflow_id), reverse=True)
            begin = int(cursor or 0)
            more = len(found) > begin + limit
            return RunPage(runs=tuple(found[begin : begin + limit]), cursor=str(begin + limit) if more else None)

    def _run(self, workflow_id: str) -> Run:
        try:
            return self.run_table[workflow_id]
        except KeyError:
            raise WorkflowNotFoundError(workflow_id) from None


def _is_repeated(run: Run, lease: Lease, outputs: Sequence[Event], read: int) -> bool:
    """Whether this commit has taken effect and comes again: its outputs are the last that were committed."""
    record = run.record
    if not outputs or record.token != lease.token or record.owner not in {None, lease.owner}:
        return False
    log, end = run.log, record.read
    if _continues(outputs):
        # Two runs may well end in the same way; it is the turn that tells.
        log = run.past.get(record.run - 1, []) if run.begun == lease.token else []
        end = len(log)
    begin = end - len(outputs)
    return read <= begin and [item.event for item in log[begin:end]] == list(outputs)


def _continues(outputs: Sequence[Event]) -> bool:
    return bool(outputs) and isinstance(outputs[-1], RunContinued)


def _may_write(run: Run, lease: Lease, outputs: Sequence[Event], read: int) -> bool:
    record = run.record
    if (record.token, record.owner) != (lease.token, lease.owner):
        return False
    return not outputs or not (record.status.is_closed or read < record.read)


def _stale_story(run: Run | None, lease: Lease, read: int) -> str:
    found = "is not in the store"
    if run is not None:
        found = f"has token {run.record.token}, owner {run.record.owner} and was read up to {run.record.read}"
    return f"lease {lease.token} of {lease.owner} is stale: workflow {lease.workflow_id!r} {found}, not {read}"
