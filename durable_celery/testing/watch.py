"""Eyes and hands on each call of a store: who called what, hooks before and after, and faults at the n-th call."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, Protocol

from durable_celery.errors import StoreUnavailableError
from durable_celery.store.protocol import Claim, Committed, Finished, Lease, Turn


class Crash(BaseException):
    """The simulated process ends here: nothing of it reaches the store any more."""


class Caller(Protocol):
    """Who calls a store."""

    name: str
    is_alive: bool


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a verb."""

    #: Counts all calls of the world, from 1.
    number: int
    caller: Caller
    verb: str
    args: tuple[Any, ...]


class Hook(Protocol):
    """Something that happens at calls."""

    def before(self, call: Call) -> None: ...

    def after(self, call: Call) -> None: ...


class Watch:
    """Counts the calls of a world, notes what the invariants ask for, and calls the hooks."""

    def __init__(self) -> None:
        self.count = 0
        self.hooks: list[Hook] = []
        #: Claims that were given, by step key: what attempts were counted.
        self.claims: Counter[str] = Counter()
        #: What was written under a token that was not the newest.
        self.stale_writes: list[str] = []
        self._tail: deque[str] = deque(maxlen=40)
        self._claimants: set[str] = set()
        #: Newest token of each run and each step.
        self._newest: dict[str, int] = {}

    def begin(self, caller: Caller, verb: str, args: tuple[Any, ...]) -> Call:
        if not caller.is_alive:
            raise Crash
        self.count += 1
        self._tail.append(f"  {self.count} {caller.name} {verb} {args!r:.150}")
        return Call(number=self.count, caller=caller, verb=verb, args=args)

    def note(self, answer: object) -> None:
        """Note the tokens that were given out."""
        match answer:
            case Claim():
                self.claims[str(answer.key)] += answer.owner not in self._claimants
                self._claimants.add(answer.owner)
                self._newest[str(answer.key)] = answer.token
            case Turn(lease=lease) | Finished(turn=Turn(lease=lease)):
                self._newest[lease.workflow_id] = lease.token
            case _:
                pass

    def note_write(self, call: Call, token: int | None, answer: object) -> None:
        """Look at the token of a call that wrote something."""
        match answer:
            case Committed() if call.args[1]:
                lease: Lease = call.args[0]
                self._check_token(call, lease.workflow_id, lease.token)
            case Finished(recorded=True) if token is not None:
                self._check_token(call, str(call.args[0]), token)
            case _:
                pass

    def _check_token(self, call: Call, name: str, token: int) -> None:
        if token != self._newest[name]:
            self.stale_writes.append(
                f"call {call.number}: {call.verb} of {name} under {token}, not {self._newest[name]}"
            )

    def tail(self) -> Sequence[str]:
        return tuple(self._tail)


class WatchedStore:
    """A store as one caller has it. It has the verbs of :class:`~durable_celery.store.protocol.Store`, by name."""

    def __init__(self, store: object, watch: Watch, caller: Caller) -> None:
        self._store, self._watch, self._caller = store, watch, caller

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        return partial(self._call, verb)

    def _call(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        call = self._watch.begin(self._caller, verb, args)
        for hook in self._watch.hooks:
            hook.before(call)
        answer = getattr(self._store, verb)(*args, **kwargs)
        self._watch.note_write(call, kwargs.get("token"), answer)
        self._watch.note(answer)
        for hook in self._watch.hooks:
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
        self.kind, self.number, self.more = kind, number, more
        #: Whether it has happened.
        self.is_spent = False

    def before(self, call: Call) -> None:
        if self._is_due(call) and self.kind in {Kind.UNREACHED, Kind.CRASH_BEFORE}:
            self._strike(call)

    def after(self, call: Call) -> None:
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
        self.verb, self.action, self.is_after, self.when = verb, action, after, when
        self.is_spent = False

    def before(self, call: Call) -> None:
        if not self.is_after:
            self._act(call)

    def after(self, call: Call) -> None:
        if self.is_after:
            self._act(call)

    def _act(self, call: Call) -> None:
        if call.verb == self.verb and not self.is_spent and self.when(call):
            self.is_spent = True
            self.action()
