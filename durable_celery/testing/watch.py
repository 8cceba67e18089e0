"""Eyes and hands on each call of a store: who called what, hooks before and after, and faults at the n-th call.

Nothing here looks into a store. What is noted of the calls (claims, tokens) is what the invariants ask for later.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, Protocol

from durable_celery.errors import StaleLeaseError, StoreUnavailableError
from durable_celery.store.protocol import Claim, Committed, Finished, Finishing, Lease, Refused, StepKey, Turn

__all__ = ["At", "Call", "Caller", "Crash", "Fault", "Hook", "Kind", "Watch", "WatchedStore"]

#: Verbs that give out tokens, or are given one to write under.
_FENCED = frozenset({"take", "commit", "claim", "finish"})
#: How many of the last calls a story shows.
_TAIL = 40


class Crash(BaseException):
    """The simulated process ends here: nothing of it reaches the store any more."""


class Caller(Protocol):
    """Who calls a store."""

    name: str
    #: A call of somebody dead raises :class:`Crash` and does not reach the store.
    is_alive: bool


# Not frozen: one is made for each call, and a frozen one takes three times as long.
@dataclass(slots=True)
class Call:
    """One call of a verb."""

    #: Counts all calls of the world, from 1.
    number: int
    caller: Caller
    verb: str
    args: tuple[Any, ...]
    options: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.number} {self.caller.name} {self.verb} {self.args!r:.150}"


class Hook(Protocol):
    """Something that happens at calls."""

    def before(self, call: Call) -> None:
        """See a call that has not reached the store yet; what is raised here is the caller's answer."""
        ...

    def after(self, call: Call) -> None:
        """See a call that has taken effect; what is raised here takes the place of the answer."""
        ...


class Watch:
    """Counts the calls of a world, notes what the invariants ask for, and calls the hooks."""

    def __init__(self) -> None:
        self.count = 0
        self.hooks: list[Hook] = []
        #: Called with each call that has taken effect, before the hooks.
        self.witness: Callable[[Call], object] | None = None
        #: Claims that were given, by step key: what attempts were counted.
        self.claims: Counter[str] = Counter()
        #: What was written under a token that was not the newest.
        self.stale_writes: list[str] = []
        #: What was refused, and how often: stale commits, claims and outcomes, by reason.
        self.refusals: Counter[str] = Counter()
        #: The last calls, oldest first.
        self.calls: deque[Call] = deque(maxlen=_TAIL)
        self._claimants: set[tuple[str, str]] = set()
        #: Newest token of each run and each step.
        self._newest: dict[str, int] = {}
        #: Which run of a workflow a lease was for, by the lease's token.
        self._runs: dict[tuple[str, int], int] = {}

    def begin(self, caller: Caller, verb: str, args: tuple[Any, ...], options: Mapping[str, Any]) -> Call:
        """Count a call.

        Raises:
            Crash: the caller is dead.
        """
        if not caller.is_alive:
            raise Crash
        self.count += 1
        call = Call(self.count, caller, verb, args, options)
        self.calls.append(call)
        return call

    def note(self, answer: object) -> None:
        """Note the tokens that were given out."""
        if isinstance(answer, Claim):
            self._note_claim(answer.key, answer.owner, answer.token)
            return
        if isinstance(answer, Refused):
            self.refusals[answer.reason] += 1
            return
        turn = answer
        if isinstance(answer, Finished):
            turn = answer.turn
            self.refusals["outcome"] += not answer.recorded
        if isinstance(turn, Turn):
            self._newest[turn.lease.workflow_id] = turn.lease.token
            self._runs[turn.lease.workflow_id, turn.lease.token] = turn.run.run

    def note_finishing(self, call: Call, lease: Lease, finishing: Finishing) -> None:
        """Look at the token of an outcome that was recorded with a commit, and note that of the lease."""
        self._check_token(call, str(finishing.key), finishing.token)
        before = self._newest[lease.workflow_id]
        if before not in {lease.token - 1, lease.token}:
            self.stale_writes.append(f"call {call.number}: {lease.workflow_id} has {lease.token} after {before}")
        self._newest[lease.workflow_id] = lease.token
        self._runs[lease.workflow_id, lease.token] = finishing.key.run

    def note_begun(self, lease: Lease, number: int) -> None:
        """Note the token of a step that began with its commit."""
        run = self._runs[lease.workflow_id, lease.token]
        self._note_claim(StepKey(workflow_id=lease.workflow_id, run=run, number=number), lease.owner, 1)

    def _note_claim(self, key: StepKey, owner: str, token: int) -> None:
        name = str(key)
        self.claims[name] += (name, owner) not in self._claimants
        self._claimants.add((name, owner))
        self._newest[name] = token

    def note_write(self, call: Call, token: int | None, answer: object) -> None:
        """Look at the token of a call that wrote something."""
        if isinstance(answer, Committed) and call.args[1]:
            lease: Lease = call.args[0]
            self._check_token(call, lease.workflow_id, lease.token)
        elif isinstance(answer, Finished) and answer.recorded and token is not None:
            self._check_token(call, str(call.args[0]), token)

    def _check_token(self, call: Call, name: str, token: int) -> None:
        if token != self._newest[name]:
            self.stale_writes.append(
                f"call {call.number}: {call.verb} of {name} under {token}, not {self._newest[name]}"
            )

    def tail(self) -> Sequence[str]:
        """Return the last calls, for people."""
        return [f"  {call}" for call in self.calls]


class WatchedStore:
    """A store as one caller has it. It has the verbs of :class:`~durable_celery.store.protocol.Store`, by name."""

    def __init__(self, store: object, watch: Watch, caller: Caller) -> None:
        """Stand between a caller and a store."""
        self._store, self._watch, self._caller = store, watch, caller

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        bound = partial(self._call, verb, getattr(self._store, verb))
        # Found without a search from now on.
        setattr(self, verb, bound)
        return bound

    def _call(self, verb: str, perform: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        watch = self._watch
        call = watch.begin(self._caller, verb, args, kwargs)
        if watch.hooks:
            for hook in tuple(watch.hooks):
                hook.before(call)
        try:
            answer = perform(*args, **kwargs)
        except StaleLeaseError:
            watch.refusals["stale commit"] += 1
            raise
        if verb in _FENCED:
            if (finishing := kwargs.get("finishing")) is not None:
                watch.note_finishing(call, args[0], finishing)
            watch.note_write(call, kwargs.get("token"), answer)
            watch.note(answer)
            if isinstance(answer, Committed) and answer.begun:
                watch.note_begun(args[0], kwargs["begin"])
        if watch.witness is not None:
            watch.witness(call)
        if watch.hooks:
            for hook in tuple(watch.hooks):
                hook.after(call)
        return answer


class Kind(StrEnum):
    """What can go wrong at a call."""

    #: It does not reach the store.
    UNREACHED = "unreached"
    #: It takes effect, and is reported to have failed.
    LOST_REPLY = "lost reply"
    #: The caller's process ends before it, or after it.
    CRASH_BEFORE = "crash before"
    CRASH_AFTER = "crash after"


class Fault:
    """A hook that makes the ``number``-th call go wrong, and ``more`` calls after it."""

    def __init__(self, kind: Kind, number: int, more: int = 0) -> None:
        """Say what goes wrong, and from which call of the world on."""
        self.kind, self.number, self.more = kind, number, more
        #: Whether it has happened.
        self.is_spent = False

    def before(self, call: Call) -> None:
        """See :meth:`Hook.before`."""
        if self._is_due(call) and self.kind in {Kind.UNREACHED, Kind.CRASH_BEFORE}:
            self._strike(call)

    def after(self, call: Call) -> None:
        """See :meth:`Hook.after`."""
        if self._is_due(call) and self.kind in {Kind.LOST_REPLY, Kind.CRASH_AFTER}:
            self._strike(call)

    def _is_due(self, call: Call) -> bool:
        return self.number <= call.number <= self.number + self.more

    def _strike(self, call: Call) -> None:
        self.is_spent = True
        if self.kind in {Kind.UNREACHED, Kind.LOST_REPLY}:
            raise StoreUnavailableError(f"{self.kind} at call {call.number}, {call.verb}")
        call.caller.is_alive = False
        raise Crash


class At:
    """A hook that does something before, or after, the first call of a verb that fits."""

    def __init__(
        self,
        verb: str,
        action: Callable[[], object],
        *,
        after: bool = False,
        when: Callable[[Call], bool] = lambda _: True,
    ) -> None:
        """Say what is done, and at which call."""
        self.verb, self.action, self.is_after, self.when = verb, action, after, when
        self.is_spent = False

    def before(self, call: Call) -> None:
        """See :meth:`Hook.before`."""
        if not self.is_after:
            self._act(call)

    def after(self, call: Call) -> None:
        """See :meth:`Hook.after`."""
        if self.is_after:
            self._act(call)

    def _act(self, call: Call) -> None:
        if call.verb == self.verb and not self.is_spent and self.when(call):
            self.is_spent = True
            self.action()
