"""One turn: feed the new events to the code, commit what it decided, publish after, until nothing is new.

Invariant: the code's outputs enter the log under the lease's token before any message of theirs is published. Whatever
goes wrong, the execution is thrown away and the lease is given back; the log alone says how to go on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from durable_celery.errors import WorkflowNotFoundError
from durable_celery.events import (
    CommandCancelled,
    Event,
    Output,
    Recorded,
    RunCancelled,
    RunCompleted,
    RunContinued,
    RunFailed,
    StepScheduled,
    TerminalEvent,
    TimerFired,
)
from durable_celery.store.protocol import Claim, Finishing, Refused, RunMessage, StepKey, StepMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from durable_celery.engine.patience import Patience
    from durable_celery.engine.ports import Ahead
    from durable_celery.store.protocol import Lease, Mail, RunRecord, Store, Turn
    from durable_celery.workflow import Execution

__all__ = ["Ending", "TurnDriver", "claim_step", "run_message"]

#: How many events are asked for at once.
_PAGE = 1000
#: How many messages may go into the broker with a commit; more of them have few round trips as well.
_FEW = 10
#: Outputs by which a run ends; nobody may be left to hear of a step.
_NOT_AHEAD = RunContinued | RunCompleted | RunFailed | RunCancelled


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """A closed run whose end the caller has to deliver, under the lease."""

    run: RunRecord
    lease: Lease
    event: TerminalEvent


def run_message(run: RunRecord) -> RunMessage:
    """Return the message that wakes a run that has had a turn."""
    return RunMessage(
        workflow_id=run.workflow_id, name=run.name, envelope=run.envelope, created_at=run.created_at, first=False
    )


def claim_step(store: Store, patience: Patience, key: StepKey, owner: str, known: int | None = None) -> Claim | Refused:
    """Claim the next attempt of a step; with ``known``, as :meth:`Store.claim` has it.

    Raises:
        StoreUnavailableError: no answer; the attempt, if there was one, is given back.
    """
    try:
        return patience.persist(lambda: store.claim(key, owner, known=known))
    except BaseException:
        unclaim_step(store, patience, key, owner)
        raise


def unclaim_step(store: Store, patience: Patience, key: StepKey, owner: str) -> None:
    """Give an attempt back that was perhaps claimed, though no answer came, and that nobody has begun."""
    patience.later(lambda: store.postpone(key, owner, delay=0.0, error="the store was away"))


class TurnDriver:
    """The state of one turn while it lasts."""

    def __init__(
        self,
        store: Store,
        execution: Execution,
        turn: Turn,
        patience: Patience,
        *,
        ahead: Ahead | None = None,
        finishing: Finishing | None = None,
        mail_of: Callable[[Sequence[StepMessage]], Sequence[Mail]] | None = None,
    ) -> None:
        """Join a lease with an execution that stands at or before the lease's events."""
        self.store, self.execution, self.turn, self.patience = store, execution, turn, patience
        self.ahead, self.mail_of = ahead, mail_of
        #: The outcome that the turn begins with, until a commit has recorded it; only then the lease is given.
        self.finishing = finishing
        self.now = turn.now
        #: How long the code took, in seconds.
        self.took = 0.0
        #: The seq up to which the history is known here, own outputs included.
        self.seen = execution.position
        #: Events that are known and still to be fed.
        self.backlog: list[Recorded] = []
        #: Messages that a commit entails, to be published now.
        self.messages: list[StepMessage | RunMessage] = []
        self.terminal: TerminalEvent | None = None
        #: Whether the lease of a run that has ended was kept, because the end is delivered here.
        self.keeps_end = False
        #: Whether the run has ended, as the end of the workflow or to go on as the next one.
        self.is_over = False
        # An execution that takes the place of a cached one begins further back than the page that was asked for.
        events = turn.events if turn.events and turn.events[0].seq == self.seen + 1 else ()
        self._learn(events, turn.run.length)

    def feed(self) -> None:
        """Feed all that is known, to quiescence.

        Raises:
            NonDeterminismError, SideEffectError, WorkflowCodeError: the run has to be blocked.
        """
        while self.backlog:
            events, self.backlog = self.backlog, []
            self.execution.feed(events, fresh_after=self.turn.run.read, before_local=self._save)
        if self.execution.gated:
            self._try_gate()

    def commit(self, *, hold: bool) -> bool:
        """Write the outputs and learn what came meanwhile; return whether the lease is still held."""
        outputs = self.execution.take_outputs()
        held = self._write(outputs, hold=hold, begin=self._step_ahead(outputs))
        if all(isinstance(item.event, Output) for item in self.backlog):
            # Nothing came meanwhile, and the code need not be shown its own commands.
            self.backlog.clear()
            self.execution.position = self.seen
        return held

    def _save(self) -> None:
        """Write what was decided before a local step begins, so that a crash repeats that step alone."""
        outputs = self.execution.take_outputs()
        if outputs or self.finishing:
            self._write(outputs, hold=True)

    def _step_ahead(self, outputs: Sequence[Event]) -> StepMessage | None:
        """Return the step that this process executes itself, if there is one: it is all that the code wants done."""
        steps = [event for event in outputs if isinstance(event, StepScheduled)]
        if self.ahead is None or len(steps) != 1 or steps[0].kind != "task" or isinstance(outputs[-1], _NOT_AHEAD):
            return None
        if any(isinstance(event, CommandCancelled) and event.target == steps[0].number for event in outputs):
            return None
        message = self._step_message(steps[0])
        return message if self.ahead.may(message) else None

    def _write(self, outputs: Sequence[Event], *, hold: bool, begin: StepMessage | None = None) -> bool:
        waiting, lease, number = self.execution.waiting, self.turn.lease, begin.key.number if begin else None
        messages = self._messages(outputs, begin)
        mail = self.mail_of(messages) if self.mail_of and 0 < len(messages) <= _FEW else ()
        try:
            answer = self.patience.persist(
                lambda: self.store.commit(
                    lease,
                    outputs,
                    read=self.seen,
                    waiting=waiting,
                    hold=hold,
                    begin=number,
                    finishing=self.finishing,
                    mail=mail,
                )
            )
        except BaseException:
            if begin is not None:
                unclaim_step(self.store, self.patience, begin.key, lease.owner)
            raise
        self.finishing = None
        if begin is not None:
            self._begin(begin, is_claimed=answer.begun)
        self.now = answer.now
        if not answer.mailed:
            self.messages += messages
        self._note_end(outputs)
        if self.is_over and self.terminal is None:
            # The log that this turn knows was set aside; what came meanwhile stands in that of the next run.
            return False
        before = answer.length - len(outputs)
        self._learn(answer.events, before)
        self.backlog += [Recorded(seq=before + i, at=self.now, event=event) for i, event in enumerate(outputs, 1)]
        self.seen = answer.length
        return answer.held

    def _begin(self, message: StepMessage, *, is_claimed: bool) -> None:
        """Hand over a step that this process executes; that of a commit that was repeated may have another fate."""
        owner, key = self.turn.lease.owner, message.key
        claim: Claim | Refused = Claim(
            key=key, token=1, owner=owner, attempt=1, lost=0, retries=0, scheduled=message.scheduled
        )
        if not is_claimed:
            claim = claim_step(self.store, self.patience, key, owner)
        if isinstance(claim, Refused):
            self.messages += [claim.message] if claim.message else []
        elif self.ahead is not None:
            self.ahead.take(message, claim)

    def _learn(self, events: Sequence[Recorded], length: int) -> None:
        """Take over a page of events and read the rest, up to seq ``length``."""
        self._add(events)
        while self.seen < length:
            page = self.patience.persist(
                lambda: self.store.history(
                    self.turn.lease.workflow_id,
                    run=self.turn.run.run,
                    after=self.seen,
                    limit=min(_PAGE, length - self.seen),
                )
            )
            if not page:
                raise WorkflowNotFoundError(self.turn.lease.workflow_id)
            self._add(page)

    def _add(self, events: Sequence[Recorded]) -> None:
        if events:
            self.backlog.extend(events)
            self.seen = events[-1].seq

    def _try_gate(self) -> None:
        """Open the gate of a run whose time has come; the code does not begin if it came too late."""
        started, workflow_id = self.execution.started, self.turn.lease.workflow_id
        if started is not None and (started.start_at is None or self.now >= started.start_at):
            self.patience.persist(lambda: self.store.append(workflow_id, TimerFired(number=0), key="timer:0"))

    def _messages(self, outputs: Sequence[Event], begun: StepMessage | None) -> list[StepMessage]:
        """Return the messages that outputs entail, of steps that somebody still wants and nobody has begun."""
        unwanted = {event.target for event in outputs if isinstance(event, CommandCancelled)}
        unwanted |= {begun.key.number} if begun else set()
        steps = [event for event in outputs if isinstance(event, StepScheduled)]
        return [self._step_message(event) for event in steps if event.number not in unwanted]

    def _note_end(self, outputs: Sequence[Event]) -> None:
        for event in outputs:
            if isinstance(event, RunContinued):
                self.is_over = True
            elif isinstance(event, RunCompleted | RunFailed | RunCancelled):
                self.terminal, self.is_over = event, True

    def _step_message(self, event: StepScheduled) -> StepMessage:
        run = self.turn.run
        key = StepKey(workflow_id=run.workflow_id, run=run.run, number=event.number)
        return StepMessage(key=key, scheduled=event, workflow=run.name, envelope=run.envelope)
