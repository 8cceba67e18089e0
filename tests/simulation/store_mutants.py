"""Mistakes in the memory store: fences, wake-ups, agenda, owners."""

from __future__ import annotations

from durable_celery.store import memory
from durable_celery.store.memory import MemoryStore
from durable_celery.store.memory_tables import Run, Tables
from tests.simulation.mutation import Mutant

__all__ = ["OF_THE_STORE"]

_FENCES = (
    Mutant(
        "a commit is not fenced",
        "rule 3, I4",
        memory._may_write,
        "if (record.token, record.owner) != (lease.token, lease.owner):",
        "if False:",
    ),
    Mutant(
        "an older lease's commit passes for one that comes again",
        "rule 3, I4",
        memory._is_repeated,
        "record.token != lease.token or ",
    ),
    Mutant(
        "an outcome is not fenced",
        "rule 6, I4",
        MemoryStore.finish,
        "(token is None or (step.state, step.attempt) == (StepState.CLAIMED, token))",
        "True",
    ),
    Mutant(
        "a lease is taken from its living owner",
        "rule 3",
        MemoryStore.take,
        "if self._is_held(run, owner):",
        "if False:",
    ),
    Mutant(
        "a finish takes the lease over from its living owner",
        "rule 6",
        MemoryStore.finish,
        "and not self._is_held(run, take_over)",
    ),
    Mutant(
        "a new lease has the token of the old one",
        "rule 3, I4",
        Tables._lease,
        "token=run.record.token + 1",
        "token=max(run.record.token, 1)",
    ),
    Mutant(
        "a take that comes again is a second take",
        "rule 3, I4",
        Tables._lease,
        "if run.record.owner != owner:",
        "if True:",
    ),
    Mutant(
        "a run is given out again after its end was delivered",
        "section 7, I9",
        MemoryStore.take,
        "if run.record.delivered:",
        "if False:",
    ),
    Mutant(
        "an input is accepted after the end",
        "I9",
        MemoryStore.append,
        "if run.record.status.is_closed:",
        "if False:",
    ),
    Mutant(
        "an outcome is accepted after the end",
        "I9",
        MemoryStore.finish,
        "if run.needs(key) and step.state",
        "if key.run == run.record.run and step.state",
    ),
    Mutant(
        "a signal that is sent again is received again",
        "rule 3, I10",
        MemoryStore._was_accepted,
        "return key in run.keys or",
        "return",
    ),
    Mutant(
        "a start that comes again begins the run anew",
        "I1, I7",
        MemoryStore.start,
        "if run := self.run_table.get(new.workflow_id):",
        "if (run := self.run_table.get(new.workflow_id)) and run.record.token:",
    ),
)

_FINISHING = (
    Mutant(
        "an outcome comes with a commit whatever came meanwhile",
        "rule 3, I8",
        MemoryStore._may_finish,
        "record.read == len(run.log) == read",
        "True",
    ),
)

_WAKE_UPS = (
    Mutant("a turn does not clear the wake mark", "rule 4, I6", Tables._lease, "            run.woken = False\n"),
    Mutant(
        "a turn clears the wake mark when it ends",
        "rule 4, I6",
        MemoryStore.commit,
        "                self._wake(run)\n",
        "                self._wake(run)\n"
        "                run.woken = False\n"
        '                self.agenda.pop(("run", lease.workflow_id, 0), None)\n',
    ),
    Mutant(
        "a commit does not look for inputs that came meanwhile",
        "rule 4, I6",
        MemoryStore.commit,
        "hold or bool(unseen and not run.record.status.is_closed)",
        "hold",
    ),
    Mutant(
        "nobody is woken for a closed run",
        "rule 1, I5",
        Tables._wake,
        "if not run.has_unread or",
        "if run.record.status.is_closed or not run.has_unread or",
    ),
    Mutant(
        "an input wakes nobody",
        "rule 4, I6",
        MemoryStore.append,
        "Appended(added=True, message=self._wake(run))",
        "Appended(added=True, message=self._message(run))",
    ),
    Mutant(
        "an outcome wakes nobody",
        "rule 4, I6",
        MemoryStore.finish,
        "message=self._wake(run, again=not recorded)",
        "message=self._message(run)",
    ),
    Mutant(
        "a timer wakes nobody",
        "rule 8, I6",
        MemoryStore._due_timer,
        "return self._wake(run)",
        "return self._message(run)",
    ),
    Mutant(
        "a deadline wakes nobody",
        "rule 8, I6",
        MemoryStore._due_deadline,
        "return self._wake(run)",
        "return self._message(run)",
    ),
    Mutant(
        "a start is published and not in the agenda",
        "rule 1, I5",
        MemoryStore.start,
        "return Started(created=True, message=self._wake(run))",
        "return Started(created=True, message=self._message(run))",
    ),
    Mutant(
        "a lease that is given back wakes nobody",
        "rule 8, I6",
        MemoryStore.release,
        "            self._rearm(run, delay)\n",
    ),
)

_AGENDA = (
    Mutant(
        "a wake-up has no agenda entry",
        "rule 1, I6",
        Tables._wake,
        '            self.agenda["run", run.record.workflow_id, 0] = self.clock() + self._wait(0)\n',
    ),
    Mutant(
        "a scheduled step has no agenda entry",
        "rule 1, I5",
        Tables._follow,
        '                self.agenda["step", workflow_id, number] = now + self._wait(0)\n',
    ),
    Mutant(
        "a timer has no agenda entry",
        "rule 8, I11",
        Tables._follow,
        'self.agenda["timer", workflow_id, run.place(event.number)] = due_at',
        "pass",
    ),
    Mutant(
        "a cancelled timer still fires",
        "I11",
        Tables._follow,
        '                self.agenda.pop(("timer", workflow_id, target), None)\n',
    ),
    Mutant(
        "a timer fires again and again",
        "I11",
        MemoryStore._due_timer,
        '        del self.agenda["timer", workflow_id, number]\n',
    ),
    Mutant(
        "a run's message is repeated once, and then no more",
        "rule 8, I6",
        MemoryStore._due_run,
        'self.agenda["run", workflow_id, 0] = self.clock() + self._wait(run.sends)',
        'del self.agenda["run", workflow_id, 0]',
    ),
    Mutant(
        "a step's message is repeated once, and then no more",
        "rule 8, I5",
        MemoryStore._due_step,
        'self.agenda["step", workflow_id, number] = self.clock() + self._wait(step.sends)',
        'del self.agenda["step", workflow_id, number]',
    ),
    Mutant(
        "a step that is executed is still in the agenda",
        "rule 8, I15",
        MemoryStore._begin,
        '        self.agenda.pop(("step", workflow_id, place), None)\n',
    ),
    Mutant(
        "a finished step is armed again",
        "rule 6, I15",
        MemoryStore.finish,
        "                    recorded = True\n",
        "                    recorded = True\n"
        '                    self.agenda["step", key.workflow_id, key.number] = self.clock()\n',
    ),
    Mutant(
        "a finished step stays open",
        "rule 6, I2",
        MemoryStore.finish,
        "                self._forget_step(run, place_of(key))\n",
    ),
    Mutant(
        "a retry has no agenda entry",
        "rule 8, I5",
        MemoryStore.postpone,
        '            self.agenda["step", key.workflow_id, place] = due\n',
    ),
    Mutant(
        "a retry does not wait",
        "rule 8",
        MemoryStore.claim,
        "if step.not_before > self.clock():",
        "if False:",
    ),
    Mutant(
        "a delivered end is kept for ever",
        "rule 8, I15",
        MemoryStore.deliver,
        'self.agenda["retention", lease.workflow_id, 0] =',
        "_ =",
    ),
)

_STEPS = (
    Mutant(
        "an attempt is not counted",
        "rule 5, I12",
        MemoryStore._begin,
        "step.attempt + 1",
        "max(step.attempt, 1)",
    ),
    Mutant(
        "a retry counts from the start",
        "rule 5, I12",
        MemoryStore.postpone,
        "step.state, step.owner, step.sends, step.not_before = StepState.PENDING, None, 0, due",
        "step.state, step.owner, step.attempt, step.not_before = StepState.PENDING, None, 0, due",
    ),
    Mutant(
        "a lost process is not counted",
        "rule 5, I12",
        Tables._free_step,
        "step.lost + 1",
        "step.lost",
    ),
    Mutant(
        "a cancelled child is forgotten, and not told",
        "rule 1, I13",
        Tables._cancel_step,
        'step.scheduled.kind == "workflow"',
        "False",
    ),
    Mutant(
        "a cancelled child is told once at most",
        "rule 1, I13",
        Tables._cancel_step,
        '            self.agenda["step", run.record.workflow_id, number] = self.clock()\n',
    ),
    Mutant(
        "the end of a run forgets children that are still to be cancelled",
        "rule 1, I13",
        Tables._close,
        "if step.state in told_outside]",
        "]",
    ),
)

_OWNERS = (
    Mutant(
        "a dead owner is forgotten with all that it held",
        "rule 7, I5",
        MemoryStore.sweep,
        "                self._free(process)\n",
        '                self.agenda.pop(("owner", process, 0))\n                self.held.pop(process, None)\n',
    ),
    Mutant(
        "a dead owner gives back its leases, and not its steps",
        "rule 7, I5",
        Tables._free,
        "                self._free_step(run, number)\n",
        "                pass\n",
    ),
    Mutant(
        "a dead owner gives back its steps, and not its leases",
        "rule 7, I6",
        Tables._free,
        "                self._free_lease(run)\n",
        "                pass\n",
    ),
    Mutant(
        "nobody is noted to have a claim",
        "rule 7, I5",
        MemoryStore._begin,
        "        self._hold(owner, workflow_id, place)\n",
    ),
    Mutant(
        "nobody is noted to have a lease",
        "rule 7, I6",
        Tables._lease,
        "            self._hold(owner, workflow_id, 0)\n",
    ),
    Mutant(
        "a process that takes something without a heartbeat is not known",
        "rule 7, I5",
        Tables._hold,
        '            self.agenda["owner", process, 0] = self.clock() + milliseconds(self.timing.owner_ttl)\n',
    ),
    Mutant(
        "a dead owner's run is not armed",
        "rule 7, I6",
        Tables._free_lease,
        "self._rearm(run, ",
        "(",
    ),
    Mutant(
        "a dead owner's step is not armed",
        "rule 7, I5",
        Tables._free_step,
        '        self.agenda["step", run.record.workflow_id, number] = self.clock()\n',
    ),
    Mutant(
        "a dead owner's step stays claimed",
        "rule 5, I5",
        Tables._free_step,
        "StepState.PENDING, None, 0, 0",
        "StepState.CLAIMED, None, 0, 0",
    ),
    Mutant(
        "a process that is said to be gone lives on",
        "rule 7",
        MemoryStore.renew,
        'if ("owner", owner, 0) in self.agenda:',
        "if False:",
    ),
)

_RUNS = (
    Mutant(
        "what the old run kept is left behind",
        "I10",
        Tables._continue,
        "for seq in end.kept]",
        "for seq in ()]",
    ),
    Mutant(
        "nobody is woken for the next run",
        "rule 4, I6",
        Tables._continue,
        "        self._wake(run)\n",
    ),
    Mutant(
        "timers of the old run fire in the next one",
        "I11",
        Tables._continue,
        "        self._close(run)\n",
    ),
    Mutant(
        "an outcome of the old run is recorded in the next one",
        "I3",
        Run.needs,
        "key.run == self.record.run and ",
    ),
)

#: All of them.
OF_THE_STORE: tuple[Mutant, ...] = (*_FENCES, *_FINISHING, *_WAKE_UPS, *_AGENDA, *_STEPS, *_OWNERS, *_RUNS)
