"""What each process asked of the store, and what it was told: one file per process, to be judged when all is over.

A line is written before a call and another after it, each with one `write` to a file opened for appending: so lines of
one file never mix, and a process that is killed leaves at worst a call without an answer, or a torn last line. The
clock is the machine's monotonic one, which all processes share and no fault moves.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import partial
from hashlib import sha1
from pathlib import Path
from typing import Any

from durable_celery.errors import StoreUnavailableError
from durable_celery.events import Event, Recorded, encode
from durable_celery.identity import process_name
from durable_celery.store.protocol import (
    Appended,
    Claim,
    Committed,
    Finished,
    Lease,
    NewRun,
    Refused,
    Started,
    StepKey,
    Turn,
)

SUFFIX = ".operations"


class Phase(StrEnum):
    """Where in its life an operation is."""

    #: It was asked for.
    INVOKE = "invoke"
    #: It was answered.
    OK = "ok"
    #: It was refused: it has not happened.
    FAIL = "fail"
    #: Nobody knows whether it has happened.
    INFO = "info"


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One line: a call or its answer."""

    #: Seconds of the machine's monotonic clock.
    at: float
    #: Owner name of the process.
    process: str
    #: Number of the call in its process: the same for a call and its answer.
    call: int
    verb: str
    phase: Phase
    workflow: str = ""
    step: int | None = None
    #: Who takes, claims or holds: `<process>#<call>`.
    owner: str | None = None
    #: Fencing token of a lease, attempt of a claim.
    token: int | None = None
    #: What the verb has besides, see `_asked` and `_answered`.
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int]:
        """What joins a call and its answer."""
        return self.process, self.call


def fingerprint(event: Event) -> str:
    """Return a short digest of an event's stored text."""
    return sha1(encode(event).encode()).hexdigest()[:12]  # noqa: S324 - to compare, not to protect


#: Numbers of calls. A process may have several recorders, whose calls must not be taken for one another's.
_NUMBERS = itertools.count(1)


class Recorder:
    """Writes the operations of the process that calls it, after a fork into a file of the child's own."""

    def __init__(self, directory: Path) -> None:
        """Write into a directory, which is made when missing."""
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._begin()

    def call(self) -> int:
        """Return a new call number of this process."""
        if self._pid != os.getpid():
            with self._forking:
                if self._pid != os.getpid():
                    self._begin()
        return next(_NUMBERS)

    def write(self, call: int, verb: str, phase: Phase, **fields: Any) -> None:
        """Append one line; it is with the kernel when this returns, so a SIGKILL does not lose it."""
        line = Operation(at=time.monotonic(), process=self._process, call=call, verb=verb, phase=phase, **fields)
        kept = {name: value for name, value in asdict(line).items() if value not in (None, "", {})}
        os.write(self._file, json.dumps(kept, separators=(",", ":")).encode() + b"\n")

    def _begin(self) -> None:
        self._pid, self._process = os.getpid(), process_name()
        self._forking = threading.Lock()
        name = self._process.replace(":", "_") + SUFFIX
        self._file = os.open(self.directory / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


class RecordedStore:
    """A store that writes down each call that changes or reads a run; it has the verbs of the store it stands for."""

    def __init__(self, store: Any, recorder: Recorder) -> None:
        self._store, self._recorder = store, recorder

    def __getattr__(self, verb: str) -> Any:
        plain = getattr(self._store, verb)
        return partial(self._call, verb, plain) if verb in _VERBS else plain

    def _call(self, verb: str, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        calls = [(self._recorder.call(), verb, _asked(verb, args, kwargs))]
        if (finishing := kwargs.get("finishing")) is not None:
            # Two or three verbs in one.
            told = {"token": finishing.token, "take_over": args[0].owner}
            asked = _asked("finish", (finishing.key, finishing.outcome), told)
            calls.insert(0, (self._recorder.call(), "finish", asked))
        if (begin := kwargs.get("begin")) is not None:
            lease = args[0]
            key = StepKey(workflow_id=lease.workflow_id, run=0, number=begin)
            calls.append((self._recorder.call(), "claim", _asked("claim", (key, lease.owner), {})))
        for call, name, asked in calls:
            self._recorder.write(call, name, Phase.INVOKE, **asked)
        try:
            answer = plain(*args, **kwargs)
        except BaseException as error:
            # A store that is away, and a process that is being ended, may have been heard all the same.
            is_refusal = isinstance(error, Exception) and not isinstance(error, StoreUnavailableError)
            phase, data = Phase.FAIL if is_refusal else Phase.INFO, {"error": f"{type(error).__name__}: {error}"[:300]}
            for call, name, asked in calls:
                self._recorder.write(call, name, phase, **_place(asked), data=data)
            raise
        for call, name, asked in calls:
            given = _answered(answer) if name == verb else _ALONG[name](args[0], answer)
            self._recorder.write(call, name, Phase.OK, **{**_place(asked), **given})
        return answer


_VERBS = frozenset({
    "start", "append", "take", "commit", "release", "deliver", "claim", "finish", "postpone", "settle", "history",
})  # fmt: skip


def _asked(  # noqa: PLR0911 - one case for each verb
    verb: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields of a call."""
    match verb, args:
        case "start", [NewRun() as new]:
            return {"workflow": new.workflow_id, "data": {"name": new.name, "digest": new.digest}}
        case "append", [str(workflow), Event() as event]:
            kind = type(event).__name__
            return {
                "workflow": workflow,
                "data": {"key": kwargs["key"], "event": kind, "print": fingerprint(event)},
            }
        case "take" | "release", [str(workflow), str(owner)]:
            return {"workflow": workflow, "owner": owner}
        case "commit", [Lease() as lease, outputs]:
            data = {"read": kwargs["read"], "outputs": [fingerprint(event) for event in outputs]}
            return {"workflow": lease.workflow_id, "owner": lease.owner, "token": lease.token, "data": data}
        case "deliver", [Lease() as lease]:
            return {"workflow": lease.workflow_id, "owner": lease.owner, "token": lease.token}
        case "claim" | "postpone", [StepKey() as key, str(owner)]:
            return {"workflow": key.workflow_id, "step": key.number, "owner": owner}
        case "finish", [StepKey() as key, Event() as outcome]:
            return {
                "workflow": key.workflow_id,
                "step": key.number,
                "owner": kwargs.get("take_over"),
                "token": kwargs["token"],
                "data": {"print": fingerprint(outcome)},
            }
        case "settle", [StepKey() as key]:
            return {"workflow": key.workflow_id, "step": key.number}
        case _:
            return {"workflow": args[0]}


def _place(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asked[name] for name in ("workflow", "step") if name in asked}


def _of_finishing(lease: Lease, answer: Committed) -> dict[str, Any]:
    """Return the fields of the outcome that a commit has recorded, with the lease that it took and may have kept."""
    return {"owner": lease.owner, "token": lease.token, "data": {"recorded": True, "held": answer.held}}


def _of_beginning(lease: Lease, answer: Committed) -> dict[str, Any]:
    """Return the fields of the claim of a step that a commit has scheduled, which is its first."""
    return {"owner": lease.owner, "token": 1} if answer.begun else {}


#: What a commit may do besides.
_ALONG = {"finish": _of_finishing, "claim": _of_beginning}


def _answered(answer: object) -> dict[str, Any]:  # noqa: PLR0911 - one case for each answer
    """Return the fields of an answer, on top of those of its call."""
    match answer:
        case Started():
            return {"data": {"created": answer.created}}
        case Appended():
            return {"data": {"added": answer.added}}
        case Refused():
            return {"data": {"refused": str(answer.reason)}}
        case Turn():
            return _of_turn(answer)
        case Committed():
            return {"data": {"length": answer.length, "held": answer.held, "events": _prints(answer.events)}}
        case Claim():
            return {"owner": answer.owner, "token": answer.token}
        case Finished(turn=Turn() as turn):
            given = _of_turn(turn)
            return {**given, "data": {**given["data"], "recorded": answer.recorded}}
        case Finished():
            return {"data": {"recorded": answer.recorded}}
        case list():
            return {"data": {"events": _prints(answer)}}
        case _:
            return {}


def _of_turn(turn: Turn) -> dict[str, Any]:
    data = {"length": turn.run.length, "events": _prints(turn.events)}
    return {"owner": turn.lease.owner, "token": turn.lease.token, "data": data}


def _prints(events: Iterable[Recorded]) -> list[tuple[int, str]]:
    return [(item.seq, fingerprint(item.event)) for item in events]


def read_operations(directory: Path) -> list[Operation]:
    """Return the operations of all processes in the order of their times.

    Raises:
        ValueError: a line other than the last one of its file cannot be read.
    """
    found: list[Operation] = []
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        # A last line without its end is torn.
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
            try:
                form: dict[str, Any] = json.loads(line)
                form["phase"] = Phase(form["phase"])
                found.append(Operation(**form))
            except (ValueError, TypeError) as error:
                msg = f"{path}:{number} is no operation: {line[:80]!r}"
                raise ValueError(msg) from error
    return sorted(found, key=lambda operation: operation.at)
