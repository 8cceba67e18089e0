"""Mistakes in the engine and in the execution of workflow code: order, leaks, the cache, what is fed."""

from __future__ import annotations

from durable_celery.engine.cache import ExecutionCache
from durable_celery.engine.core import Engine
from durable_celery.engine.family import Family
from durable_celery.engine.patience import Patience
from durable_celery.engine.runs import Runs
from durable_celery.engine.turn import TurnDriver, unclaim_step
from durable_celery.workflow.execution import Execution
from tests.simulation.mutation import Mutant

__all__ = ["OF_THE_ENGINE"]

_ORDER = (
    Mutant(
        "a turn publishes before it commits",
        "rule 1, I3",
        Runs._drive_to_rest,
        "            held = driver.commit(",
        "            driver._collect(tuple(execution._machine.journal._pending.values()))\n"
        "            self.publish(driver.messages)\n"
        "            held = driver.commit(",
    ),
    Mutant(
        "a child is noted as started before it is",
        "rule 1, I5",
        Family.tell,
        "        if message.cancel:\n",
        "        self.store.settle(message.key, cancel=message.cancel)\n        if message.cancel:\n",
    ),
    Mutant(
        "the gate of a delayed run opens early",
        "rule 9, I11",
        TurnDriver._try_gate,
        "(started.start_at is None or self.now >= started.start_at)",
        "True",
    ),
)

_FAMILY = (
    Mutant(
        "the end of a child is reported by the turn that ended it, and by no other",
        "I5",
        Runs._ending,
        "self._reported(Ending(run=turn.run, lease=turn.lease, event=last))",
        "Ending(run=turn.run, lease=turn.lease, event=last)",
    ),
    Mutant(
        "the turn that ends a child does not report it",
        "I5",
        Runs._after,
        "self._reported(Ending(run=run, lease=driver.turn.lease, event=driver.terminal))",
        "Ending(run=run, lease=driver.turn.lease, event=driver.terminal)",
    ),
    Mutant(
        "a child that is not there yet needs no cancel",
        "rule 1, I13",
        Family._cancel,
        "            self._start_child(message, delay=_NEVER)\n",
        "            if self.store.get(str(message.key)) is None:\n                return None\n",
    ),
)

_LEAKS = (
    Mutant(
        "a take without an answer keeps what it may have got",
        "rule 7, I5",
        Runs.take_turn,
        "            self._untake(workflow_id, owner, error)\n",
    ),
    Mutant(
        "a turn that cannot commit keeps its lease",
        "rule 7, I5",
        Runs._give_up,
        'the store does not answer: %s", run.workflow_id, error)\n'
        "                self._give_back(lease, delay=self._backoff(run))\n",
        'the store does not answer: %s", run.workflow_id, error)\n',
    ),
    Mutant(
        "a claim without an answer keeps what it may have got",
        "rule 7, I5",
        unclaim_step,
        '    patience.later(lambda: store.postpone(key, owner, delay=0.0, error="the store was away"))\n',
    ),
    Mutant(
        "a commit without an answer keeps the step that it may have begun",
        "rule 7, I5",
        TurnDriver._write,
        "                unclaim_step(self.store, self.patience, begin.key, lease.owner)\n",
        "                pass\n",
    ),
    Mutant(
        "a step that a repeated commit began is executed without a look",
        "rule 5, I12",
        TurnDriver._begin,
        "        if not is_claimed:\n            claim = claim_step(self.store, self.patience, key, owner)\n",
        "",
    ),
    Mutant(
        "an outcome that was refused with its turn is forgotten",
        "rule 6, I5",
        Runs._end_and_go_on,
        "            return False\n",
        "            return True\n",
    ),
    Mutant(
        "an outcome that could not be recorded is forgotten",
        "rule 6, I5",
        Engine._finish,
        "                lambda: self.publish([self.store.finish(claim.key, outcome, token=claim.token).message])\n",
        "                lambda: None\n",
    ),
    Mutant(
        "a lease that came with an outcome is kept if nobody said so",
        "rule 7, I6",
        Engine._finish,
        "                self.patience.later(lambda: self.store.release(workflow_id, owner, delay=0.0))\n",
        "                pass\n",
    ),
    Mutant(
        "a retry that could not be noted is forgotten",
        "rule 8, I5",
        Engine.postpone_step,
        "            self.patience.later(postpone)\n",
    ),
    Mutant(
        "what is to be given back is tried once",
        "rule 7, I5",
        Patience.later,
        "            except StoreUnavailableError:\n",
        "            except StoreUnavailableError:\n                return\n",
    ),
    Mutant(
        "a delivered end is noted if the store answers at once",
        "rule 7, I5",
        Runs.delivered,
        "self.patience.later(lambda: self.store.deliver(ending.lease), now=True)",
        "self.store.deliver(ending.lease)",
    ),
)

_ATTEMPTS = (
    Mutant(
        "a step with a retry policy is taken over from lost processes for ever",
        "rule 5, I12",
        Engine.is_lost,
        "return claim.lost > 0 and 0 < policy.maximum_attempts < claim.attempt",
        "return False",
    ),
    Mutant(
        "a step that fails is tried for ever",
        "rule 5, I12",
        Engine.fail_step,
        "wait_after(policy, error, claim.attempt, random.random)",
        "wait_after(policy, error, 1, random.random)",
    ),
)

_REPLAY = (
    Mutant(
        "an execution that is in use stays in the cache",
        "section 4, I8",
        ExecutionCache.checkout,
        "self._mine().pop(workflow_id, None)",
        "self._mine().get(workflow_id)",
    ),
    Mutant(
        "an execution of the old run goes on with the next one",
        "section 4, I8",
        Runs._execution,
        "execution.run != run.run or ",
    ),
    Mutant(
        "inputs that came during a turn are not fed",
        "rule 4, I6",
        TurnDriver.commit,
        "if all(isinstance(item.event, Output) for item in self.backlog):",
        "if True:",
    ),
    Mutant(
        "an execution is said to have seen what it was not fed",
        "section 4, I8",
        TurnDriver.commit,
        "            self.execution.position = self.seen\n",
        "        self.execution.position = self.seen\n",
    ),
    Mutant(
        "inputs are fed all at once",
        "section 4, I8",
        Execution._see,
        "                self._come_to_rest()\n",
        "                if recorded.seq % 2:\n                    self._come_to_rest()\n",
    ),
)

#: All of them.
OF_THE_ENGINE: tuple[Mutant, ...] = (*_ORDER, *_FAMILY, *_LEAKS, *_ATTEMPTS, *_REPLAY)
