"""Runs: take a turn, go on under the lease, deliver the end, publish what follows.

Publishing comes after the commit, always; the agenda entry of the same commit repeats what is lost. Whatever goes wrong
in a turn, its execution is thrown away and its lease is given back.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from durable_celery.codec import HIDDEN, Codec, Place
from durable_celery.engine.cache import ExecutionCache, Parked, Rest
from durable_celery.engine.family import Family, is_for_family
from durable_celery.engine.limits import HistoryLimits
from durable_celery.engine.patience import Patience
from durable_celery.engine.turn import Ending, TurnDriver, run_message
from durable_celery.errors import (
    CodecError,
    HistoryLimitError,
    NonDeterminismError,
    SideEffectError,
    StaleLeaseError,
    StoreUnavailableError,
    WorkflowClosedError,
    WorkflowCodeError,
    WorkflowNotFoundError,
)
from durable_celery.events import Recorded, RunCancelled, RunCompleted, RunFailed, RunStarted
from durable_celery.store.protocol import Finishing, Refusal, RunMessage, StepMessage, Turn
from durable_celery.workflow import Execution

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from durable_celery.engine.ports import Ahead, Dispatcher, Workflows
    from durable_celery.events import StepCompleted, StepFailed
    from durable_celery.store.protocol import Claim, Lease, Mail, RunRecord, StepKey, Store, View
    from durable_celery.workflow import Definition

__all__ = ["Runs"]

_log = logging.getLogger(__name__)
#: Longest wait in seconds before a run that failed to take its turn is tried again.
_LONGEST_BACKOFF = 60
#: Errors that say why a run is blocked without anything of its payloads.
_HARMLESS = (NonDeterminismError, WorkflowCodeError, CodecError, HistoryLimitError)


class Runs:
    """The part of the engine that goes on with runs."""

    def __init__(
        self,
        store: Store,
        dispatcher: Dispatcher,
        workflows: Workflows,
        *,
        process: Callable[[], str],
        codec: Codec | None = None,
        cache_size: int = 500,
        patience: Patience | None = None,
    ) -> None:
        """Join the parts; see :class:`~durable_celery.engine.core.Engine`."""
        self.store, self.dispatcher, self.workflows, self.process = store, dispatcher, workflows, process
        self.codec, self.patience = codec or Codec(), patience or Patience()
        self.cache = ExecutionCache(cache_size)
        #: How long a history may grow; the binding of an app sets what its settings say.
        self.limits = HistoryLimits()
        #: Executes steps in this process, where it may.
        self.ahead: Ahead | None = None
        #: Gives messages the form in which the store itself can put them into the broker; nothing where it cannot.
        self.mail_of: Callable[[Sequence[StepMessage]], Sequence[Mail]] | None = None
        self.family = Family(store, dispatcher, self.codec)

    def take_turn(self, workflow_id: str) -> Ending | None:
        """Take the run's lease and go on with it as far as it goes.

        Returns:
            The end, if the run is closed and not delivered: the caller delivers it and calls :meth:`delivered`.
            None if the run waits, is in other hands, or is blocked, or if the store is away. There is nothing to do
            for the caller then: what the run needs stands in the agenda.
        """
        owner = self._owner()
        parked = self.cache.checkout(workflow_id)
        execution = parked.execution if parked else None
        known = execution.position if execution else 0
        try:
            answer = self.patience.persist(lambda: self.store.take(workflow_id, owner, known=known))
        except BaseException as error:
            self._discard(execution)
            self._untake(workflow_id, owner, error)
            if isinstance(error, Exception):
                return None
            raise
        if isinstance(answer, Turn):
            return self._drive(answer, execution, deliver=True)
        if parked is not None:
            self.cache.put(workflow_id, parked)
        if answer.reason is Refusal.UNKNOWN:
            _log.warning("a message names workflow %s, which is not in the store; dropped", workflow_id)
        return None

    def delivered(self, ending: Ending) -> None:
        """Note that an end was delivered, so that it is not delivered again."""
        self.patience.later(lambda: self.store.deliver(ending.lease), now=True)

    def cancel_delivery(self, ending: Ending) -> None:
        """Give an undelivered end back, to be delivered by a later message."""
        self._give_back(ending.lease, delay=self._backoff(ending.run))

    def publish(self, messages: Sequence[RunMessage | StepMessage | None]) -> list[RunMessage | StepMessage]:
        """Publish messages, and start or cancel the child runs among them. What is lost stands in the agenda.

        Returns:
            Those that the broker did not take.
        """
        real = [message for message in messages if message is not None]
        unsent = self._send([message for message in real if not is_for_family(message)])
        woken: list[RunMessage | None] = []
        try:
            for message in real:
                if isinstance(message, StepMessage) and is_for_family(message):
                    self._tell(message, woken)
        except StoreUnavailableError as error:
            _log.warning("child runs could not be told, the agenda repeats it: %s", error)
        return unsent + self._send([message for message in woken if message is not None])

    def _tell(self, message: StepMessage, woken: list[RunMessage | None]) -> None:
        try:
            woken.extend(self.family.tell(message))
        except CodecError as error:
            _log.warning("child run %s cannot be told here, the agenda repeats it: %s", message.key, error)

    def _send(self, messages: list[RunMessage | StepMessage]) -> list[RunMessage | StepMessage]:
        return messages[self.dispatcher.publish(messages) :] if messages else []

    # -- under the lease ---------------------------------------------------------------------------------------------

    def _drive(self, turn: Turn, execution: Execution | None, *, deliver: bool) -> Ending | None:
        """Go on with a run; the lease is given back or is in the ending, whatever happens."""
        run, lease = turn.run, turn.lease
        try:
            if run.status.is_closed:
                self._discard(execution)
                return self._ending(turn)
            execution = self._execution(turn, execution)
            driver = self._driver(execution, turn)
            self._drive_to_rest(driver, deliver=deliver)
            return self._after(driver, deliver=deliver)
        except Exception as error:  # noqa: BLE001 - a turn's error is never the run's outcome
            self._discard(execution)
            self._give_up(turn, error)
        except BaseException:
            # To give back may fail as well: the code is ended first, so that garbage collection need not do it.
            self._discard(execution)
            self._give_back(lease, delay=self._backoff(run))
            raise
        return None

    def _execution(self, turn: Turn, execution: Execution | None) -> Execution:
        """Return the cached execution, or a new one that begins at the start of the history.

        The workflow may have gone on as a new run meanwhile, and a store that was restored to an older state may have
        lost what a cached execution has seen.
        """
        run = turn.run
        if execution is not None and (execution.run != run.run or execution.position > run.length):
            execution.evict()
            execution = None
        return execution or Execution(self._definition(turn), run.workflow_id, run=run.run, codec=self.codec)

    def _definition(self, turn: Turn) -> Definition:
        """Return the code that a run stays on: of the version that its first event names."""
        run, page = turn.run, turn.events
        if not page or page[0].seq > 1:
            page = tuple(self.patience.persist(lambda: self.store.history(run.workflow_id, run=run.run, limit=1)))
        version = next((item.event.version for item in page[:1] if isinstance(item.event, RunStarted)), 1)
        return self.workflows(run.name, version)

    def _position(self, key: StepKey) -> int | None:
        """Return where suspended code stands that may go on with a step's outcome, if that is likely."""
        parked = self.cache.look(key.workflow_id)
        if parked is None:
            return None
        execution = parked.execution
        # Where it waits for many, much happens to it meanwhile.
        return execution.position if execution.run == key.run and execution.open_steps == 1 else None

    def _note(self, view: View) -> None:
        """Keep what suspended code has missed until it is to go on."""
        workflow_id = view.run.workflow_id
        if (parked := self.cache.checkout(workflow_id)) is not None:
            since = self.patience.monotonic()
            rest = Rest(run=view.run, token=view.run.token, now=view.now, since=since, took=parked.rest.took)
            self.cache.put(workflow_id, Parked(parked.execution, rest, view.events))

    def _catch_up(self, parked: Parked) -> Parked | None:
        """Feed suspended code with what it has missed, all of which turns elsewhere have read; None if it is of no use.

        Without a lease nothing may be run, so code that would begin a local step here is not what wrote this history.
        """
        execution, run = parked.execution, parked.rest.run
        try:
            execution.feed(parked.missed, fresh_after=run.read, before_local=_refuse_to_run)
        except Exception as error:  # noqa: BLE001 - the turn that takes its place meets it again, and tells of it
            _log.debug("suspended code of %s cannot go on from where its run stands: %s", run.workflow_id, error)
            return None
        return Parked(execution, parked.rest)

    def _end_and_go_on(self, claim: Claim, outcome: StepCompleted | StepFailed, parked: Parked, lease: Lease) -> bool:
        """Feed an outcome that is not recorded yet, and record it with the first commit of what the code makes of it.

        Spares a call of the store. Workflow code has no effects but what is committed, so it may be fed with what may
        turn out not to be so; the time of the outcome is one that the store's clock has reached.

        Returns:
            Whether it is recorded. If not, something else has happened to the run: the execution is of no use.

        Raises:
            StoreUnavailableError: no answer.
        """
        execution, rest = parked.execution, parked.rest
        at = rest.now + max(0, int(1000 * (self.patience.monotonic() - rest.since)))
        seq = execution.position + 1
        run = replace(rest.run, read=execution.position, length=seq, token=lease.token, owner=lease.owner)
        turn = Turn(lease=lease, run=run, events=(Recorded(seq=seq, at=at, event=outcome),), now=at)
        finishing = Finishing(key=claim.key, token=claim.token, outcome=outcome, at=at)
        driver = self._driver(execution, turn, finishing)
        try:
            self._drive_to_rest(driver, deliver=False)
            self._after(driver, deliver=False)
        except Exception as error:
            self._discard(execution)
            if driver.finishing is None:
                self._give_up(turn, error)
                return True
            if isinstance(error, StoreUnavailableError):
                raise
            _log.debug("a turn of %s was assumed wrongly: %s", run.workflow_id, error)
            return False
        return True

    def _driver(self, execution: Execution, turn: Turn, finishing: Finishing | None = None) -> TurnDriver:
        return TurnDriver(
            self.store, execution, turn, self.patience, ahead=self.ahead, finishing=finishing, mail_of=self.mail_of
        )

    def _drive_to_rest(self, driver: TurnDriver, *, deliver: bool) -> None:
        """Feed, commit and publish until nothing is new or the run has ended."""
        held = True
        while held and not driver.is_over:
            began = self.patience.monotonic()
            driver.feed()
            driver.took += self.patience.monotonic() - began
            self.limits.check(driver.execution)
            keeps = driver.execution.closed and (deliver or self._may_deliver(driver.turn.run))
            held = driver.commit(hold=keeps)
            driver.keeps_end = keeps and held
            messages, driver.messages = driver.messages, []
            self.publish(messages)

    def _after(self, driver: TurnDriver, *, deliver: bool) -> Ending | None:
        run = driver.turn.run
        if not driver.is_over:
            token, since = driver.turn.lease.token, self.patience.monotonic()
            rest = Rest(run=run, token=token, now=driver.now, since=since, took=driver.took)
            self.cache.put(run.workflow_id, Parked(driver.execution, rest))
            return None
        driver.execution.evict()
        if driver.terminal is None or not (deliver or driver.keeps_end):
            # The next run begins, or the end is delivered, by the run's own message.
            self.publish([run_message(run)])
            return None
        ending = self._reported(Ending(run=run, lease=driver.turn.lease, event=driver.terminal))
        if not deliver and self.ahead is not None:
            self.ahead.deliver(ending)
            return None
        return ending

    def _may_deliver(self, run: RunRecord) -> bool:
        return self.ahead is not None and self.ahead.may_deliver(run_message(run))

    def _ending(self, turn: Turn) -> Ending:
        workflow_id, length = turn.run.workflow_id, turn.run.length
        run = turn.run.run
        page = self.patience.persist(lambda: self.store.history(workflow_id, run=run, after=length - 1, limit=1))
        last = page[0].event
        assert isinstance(last, RunCompleted | RunFailed | RunCancelled)  # noqa: S101 - a closed history ends with one
        return self._reported(Ending(run=turn.run, lease=turn.lease, event=last))

    def _reported(self, ending: Ending) -> Ending:
        """Return the ending, after its parent was told."""
        self.publish([self.patience.persist(lambda: self.family.report(ending))])
        return ending

    # -- what goes wrong ---------------------------------------------------------------------------------------------

    def _give_up(self, turn: Turn, error: Exception) -> None:
        """End a turn that failed: the run is tried again, or parked, visibly."""
        run, lease = turn.run, turn.lease
        match error:
            case StaleLeaseError() | WorkflowClosedError() | WorkflowNotFoundError():
                _log.info("turn of %s given up: %s", run.workflow_id, error)
                self._give_back(lease, delay=self._backoff(run))
            case StoreUnavailableError():
                _log.warning("turn of %s given up, the store does not answer: %s", run.workflow_id, error)
                self._give_back(lease, delay=self._backoff(run))
            case _:
                self._block(run, lease, error)

    def _untake(self, workflow_id: str, owner: str, error: BaseException) -> None:
        """Give back a lease that may have been given, though no answer that could be read came of it."""
        delay, reason = 0.0, ""
        if isinstance(error, StoreUnavailableError):
            _log.warning("no turn of workflow %s, the store does not answer: %s", workflow_id, error)
        elif isinstance(error, Exception):
            delay, reason = _LONGEST_BACKOFF, f"{type(error).__name__}: {error}"
            _log.error("workflow %s cannot be read, it is parked", workflow_id, exc_info=error)
        self.patience.later(lambda: self.store.release(workflow_id, owner, delay=delay, reason=reason))

    def _block(self, run: RunRecord, lease: Lease, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        if self.codec.hides and not isinstance(error, _HARMLESS):
            # It may quote what the code had in hand.
            _log.error(
                "workflow %s is blocked by a %s; `celery durable show --decode` tells why",
                run.workflow_id, type(error).__name__,
            )  # fmt: skip
            reason = self._words(reason, Place(run.workflow_id, "reason", run=run.run))
        else:
            story = f"workflow {run.workflow_id} is blocked, it goes on after a fixed deploy: {error}"
            is_expected = isinstance(error, (*_HARMLESS, SideEffectError))
            _log.error("%s", story, exc_info=None if is_expected else error)
        self._give_back(lease, delay=self._backoff(run), reason=reason)

    def _words(self, words: str, place: Place) -> str:
        """Return words for people as they may stand in the store."""
        try:
            return self.codec.seal_words(words, place)
        except CodecError as error:
            _log.warning("%s", error)
            return HIDDEN

    def _give_back(self, lease: Lease, *, delay: float, reason: str = "") -> None:
        self.patience.later(
            lambda: self.store.release(lease.workflow_id, lease.owner, delay=delay, reason=reason), now=True
        )

    def _backoff(self, run: RunRecord) -> float:
        return float(min(2 ** min(run.failures, 6), _LONGEST_BACKOFF))

    def _discard(self, execution: Execution | None) -> None:
        if execution is not None:
            execution.evict()

    def _owner(self) -> str:
        return f"{self.process()}#{os.urandom(6).hex()}"


def _refuse_to_run() -> None:
    raise StaleLeaseError("a local step would begin without a lease")
