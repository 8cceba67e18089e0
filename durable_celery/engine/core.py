"""The engine: what a worker does with a run, a step and the agenda.

A verb of the store that fails is repeated while there is patience; what this process may still hold after that is given
back later, so that a store that was away for a moment leaves nothing stuck behind a live owner.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Any

from durable_celery.codec import Codec, failure_of, failure_text
from durable_celery.engine.runs import Runs
from durable_celery.engine.turn import claim_step
from durable_celery.errors import CodecError, PayloadError, StepLostError
from durable_celery.events import StepCompleted, StepFailed
from durable_celery.policy import RetryPolicy, wait_after
from durable_celery.store.protocol import Claim, Lease, Refusal, Refused, RunMessage, StepKey, Sweep

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable_celery.engine.cache import Parked
    from durable_celery.engine.patience import Patience
    from durable_celery.engine.ports import Dispatcher, Workflows
    from durable_celery.store.protocol import StepMessage, Store

__all__ = ["Engine", "is_at_most_once"]

_log = logging.getLogger(__name__)
#: With more open steps than these, a result only wakes the run: the turn that follows takes in many results at once,
#: instead of one turn for each. Its message may have to queue behind the steps, which is what makes them many.
_CROWD = 10
#: Seconds that the code of a turn may take for its outcome to be recorded after it.
_QUICK = 0.01
#: How many messages that the broker did not take are kept for the next sweep.
_KEPT = 1000


class Engine(Runs):
    """The protocol's three verbs (a turn, a step, a sweep), as a worker process uses them."""

    def __init__(
        self,
        store: Store,
        dispatcher: Dispatcher,
        workflows: Workflows,
        *,
        process: Callable[[], str],
        codec: Codec | None = None,
        cache_size: int = 500,
        lost_attempts: int = 5,
        patience: Patience | None = None,
    ) -> None:
        """Join the parts.

        Args:
            store: where runs live.
            dispatcher: publishes messages.
            workflows: finds the code of a workflow.
            process: the owner name of the process that calls; it is another one after a fork.
            codec: writes and reads payloads.
            cache_size: how many suspended executions each thread keeps.
            lost_attempts: after how many lost processes a step without a retry policy fails.
            patience: how long an outcome waits for a store that is away; a simulation gives its own.
        """
        super().__init__(
            store,
            dispatcher,
            workflows,
            process=process,
            codec=codec,
            cache_size=cache_size,
            patience=patience,
        )
        self.lost_attempts = lost_attempts
        #: What the broker did not take of the last sweep; the next one publishes it first.
        self.unsent: list[RunMessage | StepMessage] = []

    # -- steps -------------------------------------------------------------------------------------------------------

    def begin_step(self, key: StepKey, *, settles: bool = False, go_on: bool = False) -> Claim | Refusal:
        """Claim the next attempt of a step; a refusal means that it must not be executed.

        With ``go_on`` the run is to go on here when the step is done; so suspended code hears what it has missed.

        An attempt that is one too many fails the step; where it ``settles``, it may first look what was committed: ask
        :meth:`is_lost`.

        Raises:
            StoreUnavailableError: no answer; the attempt, if there was one, is given back.
        """
        known = self._position(key) if go_on else None
        answer = claim_step(self.store, self.patience, key, self._owner(), known)
        if isinstance(answer, Refused):
            self.publish([answer.message])
            return answer.reason
        if answer.view is not None:
            self._note(answer.view)
        if not settles and self.is_lost(answer):
            self.lose_step(answer)
            return Refusal.FINISHED
        return answer

    def beat_step(self, claim: Claim, progress: str = "") -> Refusal | None:
        """Give a heartbeat of an attempt, with progress (sealed) to be saved if there is some.

        Returns:
            None while the attempt is wanted; else why it is not. It has lost its claim then.

        Raises:
            StoreUnavailableError: no answer; a later heartbeat makes up for it.
        """
        answer = self.store.claim(claim.key, claim.owner, progress=progress)
        return answer.reason if isinstance(answer, Refused) else None

    def lose_step(self, claim: Claim, why: str = "") -> None:
        """Fail a step that has no attempt left for one that lost its process.

        No codec is asked: the failure holds nothing of the user's, and may be recorded where no key is.

        Raises:
            StoreUnavailableError: no answer; it is recorded in the background if this process lives on.
        """
        story = f"step {claim.key} lost its process {claim.lost} times; no attempt is left"
        if is_at_most_once(claim):
            story = (
                f"step {claim.key} {why or 'lost its process'} and is not repeated (at_most_once): "
                "nobody knows whether it took effect"
            )
        payload = failure_of(StepLostError(story), Codec())
        self._finish(claim, StepFailed(number=claim.key.number, attempt=claim.attempt, payload=payload))

    def complete_step(self, claim: Claim, result: object, *, go_on: bool = False) -> None:
        """Record a step's result; with ``go_on`` also take the run's next turn here, if it is free.

        Raises:
            PayloadError: the result cannot be recorded; nothing was written.
            CodecError: a codec failed; the step is tried again later.
            StoreUnavailableError: no answer; it is recorded in the background if this process lives on.
        """
        text = self.codec.dumps(result, f"the result of step {claim.key} ({claim.scheduled.task})")
        payload = self._sealed(claim, text)
        self._finish(claim, StepCompleted(number=claim.key.number, attempt=claim.attempt, payload=payload), go_on=go_on)

    def fail_step(
        self, claim: Claim, error: BaseException, *, go_on: bool = False, is_final: bool = False
    ) -> float | None:
        """End an attempt that raised: by the step's retry policy it is tried again, else its failure is recorded.

        With ``is_final`` it is recorded whatever the policy says.

        Returns:
            The seconds until the next attempt, or None if the step has failed.

        Raises:
            CodecError: a codec failed; the step is tried again later.
            StoreUnavailableError: no answer; it is recorded in the background if this process lives on.
        """
        policy = None if isinstance(error, PayloadError) else _policy(claim)
        delay = None if is_final else wait_after(policy, error, claim.attempt, random.random)
        if delay is not None:
            self.postpone_step(claim, delay=delay, error=repr(error))
            return delay
        payload = self._sealed(claim, failure_text(error, self.codec))
        self._finish(claim, StepFailed(number=claim.key.number, attempt=claim.attempt, payload=payload), go_on=go_on)
        return None

    def postpone_step(
        self, claim: Claim, *, delay: float | None, error: str, retries: int | None = None, override: str | None = None
    ) -> None:
        """End an attempt without an outcome; the agenda sends the step again after ``delay`` seconds.

        With None it never does: the step waits for an outcome from outside.

        Raises:
            StoreUnavailableError: no answer; it is noted in the background if this process lives on.
        """
        words = self._words(error[:200], claim.key.place("error"))

        def postpone() -> bool:
            return self.store.postpone(
                claim.key, claim.owner, delay=delay, error=words, retries=retries, override=override
            )

        try:
            self.patience.persist(postpone)
        except BaseException:
            self.patience.later(postpone)
            raise

    def revoke_step(self, key: StepKey, error: BaseException) -> bool:
        """Fail a step from outside, whoever may be executing it; return whether it was still open."""
        place = key.place("outcome")
        return self.tell_step(key, StepFailed(number=key.number, payload=failure_of(error, self.codec, place)))

    def tell_step(self, key: StepKey, outcome: StepCompleted | StepFailed) -> bool:
        """Record an outcome that is told from outside, whoever may be executing the step; return whether it was open.

        Raises:
            StoreUnavailableError: no answer; it may be told again.
        """
        answer = self.patience.persist(lambda: self.store.finish(key, outcome, token=None))
        self.publish([answer.message])
        return answer.recorded

    def incarnation(self, key: StepKey) -> str:
        """Return what tells a step's run from others that had its workflow id: when it began, in ms since 1970.

        An id may be used again when its run is forgotten.

        Raises:
            StoreUnavailableError: no answer.
        """
        return str(self.store.history(key.workflow_id, run=key.run, limit=1)[0].at)

    def _sealed(self, claim: Claim, text: str) -> str:
        """Return the payload of an outcome; where a codec fails, the attempt ends without one and is repeated.

        A step that may not be repeated is lost.
        """
        key = claim.key
        try:
            return self.codec.seal(text, key.place("outcome"))
        except CodecError as error:
            if is_at_most_once(claim):
                self.lose_step(claim, "has an outcome that no codec here can seal")
            else:
                self.postpone_step(claim, delay=RetryPolicy().delay(claim.attempt, 0.0), error=str(error))
            raise

    def is_lost(self, claim: Claim) -> bool:
        """Tell whether this attempt is one too many of a step that loses its processes."""
        policy = _policy(claim)
        if is_at_most_once(claim):
            return claim.lost > 0
        if policy is None:
            return 0 < self.lost_attempts <= claim.lost
        return claim.lost > 0 and 0 < policy.maximum_attempts < claim.attempt

    def _finish(self, claim: Claim, outcome: StepCompleted | StepFailed, *, go_on: bool = False) -> None:
        workflow_id = claim.key.workflow_id
        parked = self.cache.checkout(workflow_id) if go_on else None
        if parked is not None and parked.execution.open_steps > _CROWD and isinstance(outcome, StepCompleted):
            self.cache.put(workflow_id, parked)
            parked, go_on = None, False
        owner = self._owner() if go_on else None
        execution = parked.execution if parked else None
        try:
            if parked is not None and parked.missed:
                parked = self._catch_up(parked)
                execution = parked.execution if parked else None
            if parked is not None and owner is not None and _may_go_on_first(parked, claim):
                lease = Lease(workflow_id=workflow_id, token=parked.rest.token + 1, owner=owner)
                if self._end_and_go_on(claim, outcome, parked, lease):
                    return
                # Under another name: what the first may have been given is given back.
                parked, execution, owner = None, None, self._owner()
            known = execution.position if execution else 0
            answer = self.patience.persist(
                lambda: self.store.finish(claim.key, outcome, token=claim.token, take_over=owner, known=known)
            )
        except BaseException:
            self._discard(execution)
            # The outcome is known, so it is recorded and not worked out again.
            self.patience.later(
                lambda: self.publish([self.store.finish(claim.key, outcome, token=claim.token).message])
            )
            if owner is not None:
                self.patience.later(lambda: self.store.release(workflow_id, owner, delay=0.0))
            raise
        if not answer.recorded:
            _log.warning("an outcome of step %s, attempt %s, was not recorded now", claim.key, claim.attempt)
        if answer.turn is not None:
            self._drive(answer.turn, execution, deliver=False)
            return
        if parked is not None:
            self.cache.put(workflow_id, parked)
        self.publish([answer.message])

    # -- the agenda --------------------------------------------------------------------------------------------------

    def sweep(self, limit: int = 100) -> Sweep:
        """Settle what is due and publish what has to be published, and what the broker did not take the last time.

        The agenda counts that as sent, and would wait longer and longer for a broker that is only away.
        """
        sweep = self.store.sweep(limit)
        # Taken out first: one that cannot be published at all is the agenda's affair again.
        unsent, self.unsent = self.unsent, []
        due = {_name(message): message for message in (*unsent, *sweep.messages)}
        self.unsent = self.publish(list(due.values()))[:_KEPT]
        return sweep


def _name(message: RunMessage | StepMessage) -> object:
    """Return what a message is about; a newer one about the same takes the place of an older one."""
    return message.workflow_id if isinstance(message, RunMessage) else (message.key, message.cancel)


def _may_go_on_first(parked: Parked, claim: Claim) -> bool:
    """Tell whether code may be fed with an outcome before it is recorded.

    It is the only one that the code waits for; code that was left behind, because the run went on in another process,
    waits for another one. And what happens to the process meanwhile costs the step: so not where the code takes its
    time, where the step lost a process already, perhaps by that very code, and where an attempt that is lost is the
    last.
    """
    return (
        parked.execution.run == claim.key.run
        and parked.execution.is_only_step(claim.key.number)
        and parked.rest.took < _QUICK
        and not claim.lost
        and not is_at_most_once(claim)
    )


def is_at_most_once(claim: Claim) -> bool:
    """Tell whether an attempt of a step that may have had its effect is the last."""
    return bool((claim.scheduled.options or {}).get("at_most_once"))


def _policy(claim: Claim) -> RetryPolicy | None:
    form: Any = (claim.scheduled.options or {}).get("retry")
    return RetryPolicy.from_json(form) if form else None
