"""Canvas: Celery's signatures, chains, groups and chords, done as steps.

A signature is known by its looks: a dict with ``task``, ``args``, ``kwargs``, ``options`` and ``immutable``. It is read
into a tree of parts before anything is issued, so what cannot be meant is refused at the call. Each task in it is then
a step with a record of its own. What is composed is made of branches, so the history needs no new events.

Where Celery's own canvas is followed: the arguments that are given come before those of the signature, an immutable one
ignores them, a group in a group is part of it, and one of a single task in a chain is that task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from datetime import datetime
from typing import Any

from durable_celery.errors import InvalidRequestError, UnknownTaskError
from durable_celery.policy import seconds
from durable_celery.records import record
from durable_celery.workflow.handles import Handle, drop_all
from durable_celery.workflow.machine import Machine
from durable_celery.workflow.tasks import CallOptions
from durable_celery.workflow.verbs import gather, sleep, sleep_until, spawned

__all__ = ["is_signature", "start"]

#: Options that say who a message is, which the run decides, or how it is published or its result kept.
_NOTHING_TO_SAY = frozenset({
    "task_id", "group_id", "group_index", "root_id", "parent_id", "reply_to", "retry", "retry_policy", "ignore_result",
})  # fmt: skip
#: Options that go into the step's message as they are.
_OF_THE_MESSAGE = ("time_limit", "soft_time_limit", "exchange", "routing_key", "serializer", "compression")
#: Options that are read here.
_READ = frozenset({"queue", "priority", "shadow", "countdown", "eta", "link", "link_error", *_OF_THE_MESSAGE})

_Args = tuple[Any, ...]
_Kwargs = Mapping[str, Any]


def is_signature(task: object) -> bool:
    """Tell whether what a step was given is a signature."""
    return isinstance(task, dict)


def start(
    machine: Machine, signature: Mapping[str, Any], args: _Args, kwargs: _Kwargs, options: CallOptions
) -> Handle[Any]:
    """Do a signature with the arguments given; ``options`` hold for each task in it that has none of its own.

    Raises:
        UnknownTaskError: it is no signature.
        InvalidRequestError: something in it cannot be meant in a workflow.
    """
    machine.check()
    return _started(machine, _read(signature, options), args, kwargs)


@record(frozen=True, slots=True)
class _DurableTask:
    """Stands for a durable task of which only the name is known, as in a signature that was plain JSON."""

    name: str
    is_durable: bool = True


# What is read.


@record(frozen=True, slots=True, kw_only=True)
class _Part:
    """A signature that was read; its kinds say how it is done."""

    #: Seconds to wait before it begins.
    countdown: float = 0.0
    #: When it begins, or None for at once.
    eta: datetime | None = None
    #: What is called with its result; what is called, without arguments, when it has failed.
    links: tuple[_Part, ...] = ()
    errbacks: tuple[_Part, ...] = ()

    async def perform(self, machine: Machine, args: _Args, kwargs: _Kwargs) -> Any:
        """Do what it says, without what stands before and after."""
        raise NotImplementedError


@record(frozen=True, slots=True, kw_only=True)
class _Call(_Part):
    task: Any
    args: _Args
    kwargs: dict[str, Any]
    immutable: bool
    options: CallOptions

    def step(self, machine: Machine, args: _Args, kwargs: _Kwargs) -> Handle[Any]:
        """Schedule the step."""
        if self.immutable:
            args, kwargs = (), {}
        return machine.start_step(self.task, (*args, *self.args), {**self.kwargs, **kwargs}, self.options)

    async def perform(self, machine: Machine, args: _Args, kwargs: _Kwargs) -> Any:
        return await self.step(machine, args, kwargs)


@record(frozen=True, slots=True, kw_only=True)
class _Chain(_Part):
    parts: tuple[_Part, ...]

    async def perform(self, machine: Machine, args: _Args, kwargs: _Kwargs) -> Any:
        value: Any = None
        for part in self.parts:
            value = await _done(machine, part, args, kwargs)
            args, kwargs = (value,), {}
        return value


@record(frozen=True, slots=True, kw_only=True)
class _Group(_Part):
    parts: tuple[_Part, ...]

    async def perform(self, machine: Machine, args: _Args, kwargs: _Kwargs) -> list[Any]:
        begun: list[Handle[Any]] = []
        try:
            begun.extend(_started(machine, part, args, kwargs) for part in self.parts)
        except BaseException:
            # One of them cannot begin, so the others have nothing to be part of.
            if not machine.at_rest:
                await drop_all(begun)
            raise
        return await gather(machine, begun, return_exceptions=False)


@record(frozen=True, slots=True, kw_only=True)
class _Chord(_Part):
    header: _Group
    body: _Part
    #: Keyword arguments for each task of the header.
    given: _Kwargs = field(default_factory=dict)

    async def perform(self, machine: Machine, args: _Args, kwargs: _Kwargs) -> Any:
        try:
            results = await _done(machine, self.header, args, {**self.given, **kwargs})
        except Exception:
            # As in Celery, it is the body that fails where its header does.
            await _call_back(machine, self.body.errbacks, ())
            raise
        return await _done(machine, self.body, (results,), {})


@record(frozen=True, slots=True, kw_only=True)
class _Map(_Part):
    """``task.map(items)``: one after the other, as Celery does it in one message."""

    calls: tuple[_Call, ...]

    async def perform(self, machine: Machine, args: _Args, kwargs: _Kwargs) -> list[Any]:  # noqa: ARG002 - it takes none
        return [await call.step(machine, (), {}) for call in self.calls]


# How it is done.


def _started(machine: Machine, part: _Part, args: _Args, kwargs: _Kwargs) -> Handle[Any]:
    """Start a part beside others. A task alone is a step at once, anything else a branch."""
    if isinstance(part, _Call) and not (part.countdown or part.eta or part.links or part.errbacks):
        return part.step(machine, args, kwargs)
    return spawned(machine, _done(machine, part, args, kwargs))


async def _done(machine: Machine, part: _Part, args: _Args, kwargs: _Kwargs) -> Any:
    """Do a part, and then what is linked to it."""
    if part.countdown:
        await sleep(machine, part.countdown)
    elif part.eta is not None:
        await sleep_until(machine, part.eta)
    try:
        value = await part.perform(machine, args, kwargs)
    except Exception:
        await _call_back(machine, part.errbacks, ())
        raise
    await _call_back(machine, part.links, (value,))
    return value


async def _call_back(machine: Machine, callbacks: Sequence[_Part], args: _Args) -> None:
    """Do what is linked to a part, and wait for it; how that ends changes nothing."""
    if callbacks and not (machine.at_rest or machine.fault):
        begun = [spawned(machine, _done(machine, callback, args, {})) for callback in callbacks]
        await gather(machine, begun, return_exceptions=True)


# How it is read.


def _read(signature: object, options: CallOptions) -> _Part:
    if not (isinstance(signature, dict) and isinstance(signature.get("task"), str)):
        raise UnknownTaskError(f"{signature!r} is neither a Celery task nor a signature of one")
    name, given = signature["task"], signature.get("kwargs") or {}
    own = _own_options(name, signature.get("options") or {})
    timing = _timing(name, own, options)
    options = _merged(options, own)
    match name:
        case "celery.chain":
            return _Chain(parts=_links_of_chain(given.get("tasks") or (), options), **timing)
        case "celery.group":
            return _Group(parts=_members(given.get("tasks") or (), options), **timing)
        case "celery.chord":
            return _chord(given, options, timing)
        case "celery.map" | "celery.starmap":
            return _Map(calls=_calls(name, given, options), **timing)
        case "celery.chunks":
            return _Group(parts=_chunks(given, options), **timing)
        case _:
            return _Call(
                task=_task_of(signature),
                args=tuple(signature.get("args") or ()),
                kwargs=dict(given),
                immutable=bool(signature.get("immutable")),
                options=options,
                **timing,
            )


def _task_of(signature: Mapping[str, Any]) -> Any:
    """Return a signature's task, which says whether it is durable; its name where nobody knows more."""
    try:
        return signature.type  # type: ignore[attr-defined]  # Celery's class has it, a plain dict has not
    except (AttributeError, LookupError):
        name = signature["task"]
        return _DurableTask(name) if signature.get("durable") else name


def _links_of_chain(signatures: Sequence[Any], options: CallOptions) -> tuple[_Part, ...]:
    parts: list[_Part] = []
    for part in (_read(signature, options) for signature in signatures):
        single = isinstance(part, _Group) and len(part.parts) == 1
        parts.append(part.parts[0] if single and isinstance(part, _Group) else part)
    return tuple(part for part in parts if not _is_empty(part)) or tuple(parts[:1])


def _members(signatures: Sequence[Any], options: CallOptions) -> tuple[_Part, ...]:
    members: list[_Part] = []
    for part in (_read(signature, options) for signature in signatures):
        if isinstance(part, _Group):
            members += part.parts
        elif not (isinstance(part, _Chain) and not part.parts):
            members.append(part)
    return tuple(members)


def _is_empty(part: _Part) -> bool:
    return isinstance(part, _Group | _Chain) and not part.parts


def _chord(given: Mapping[str, Any], options: CallOptions, timing: dict[str, Any]) -> _Chord:
    header, body = given.get("header"), given.get("body")
    if body is None:
        raise InvalidRequestError("a chord in a workflow needs a body; without one it is a group")
    tasks = [header] if isinstance(header, dict) else header or ()
    return _Chord(
        header=_Group(parts=_members(tasks, options)),
        body=_read(body, options),
        given=dict(given.get("kwargs") or {}),
        **timing,
    )


def _calls(name: str, given: Mapping[str, Any], options: CallOptions) -> tuple[_Call, ...]:
    # As in Celery, only the task of the signature counts, and not its arguments.
    task, star = _task_of(given["task"]), name == "celery.starmap"
    return tuple(
        _Call(task=task, args=tuple(item) if star else (item,), kwargs={}, immutable=True, options=options)
        for item in given["it"]
    )


def _chunks(given: Mapping[str, Any], options: CallOptions) -> tuple[_Part, ...]:
    calls, size = _calls("celery.starmap", given, options), int(given["n"])
    if size < 1:
        raise InvalidRequestError(f"chunks of {size} items cannot be made")
    return tuple(_Map(calls=calls[at : at + size]) for at in range(0, len(calls), size))


def _own_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in options.items() if value is not None and key not in _NOTHING_TO_SAY}
    if unknown := sorted(own.keys() - _READ):
        raise InvalidRequestError(
            f"the signature of {name} has the option {', '.join(unknown)}, which a step cannot keep. "
            "A step takes queue, priority, routing, time limits, countdown, eta, link and link_error"
        )
    return own


def _merged(options: CallOptions, own: Mapping[str, Any]) -> CallOptions:
    """Return the options of a signature's steps: its own before those around it."""
    message = {key: own[key] for key in _OF_THE_MESSAGE if key in own}
    queue = own.get("queue")
    return replace(
        options,
        queue=options.queue if queue is None else str(getattr(queue, "name", queue)),
        priority=own.get("priority", options.priority),
        name=own.get("shadow", options.name),
        message={**(options.message or {}), **message} or None,
    )


def _timing(name: str, own: Mapping[str, Any], options: CallOptions) -> dict[str, Any]:
    """Return what stands before and after a part."""
    eta = own.get("eta")
    if isinstance(eta, str):
        eta = datetime.fromisoformat(eta)
    if eta is not None and (not isinstance(eta, datetime) or eta.utcoffset() is None):
        raise InvalidRequestError(f"the eta of {name}, {eta!r}, names no instant: give it a time zone")
    errbacks = tuple(_read(errback, options) for errback in _listed(own.get("link_error")))
    if any(not (isinstance(errback, _Call) and errback.immutable) for errback in errbacks):
        raise InvalidRequestError(
            f"a link_error of {name} would get a request and a traceback, which no history holds: "
            "make it immutable, task.si(...), or catch the exception in the workflow"
        )
    return {
        "countdown": seconds(own.get("countdown", 0.0)),
        "eta": eta,
        "links": tuple(_read(callback, options) for callback in _listed(own.get("link"))),
        "errbacks": errbacks,
    }


def _listed(callbacks: Any) -> Sequence[Any]:
    return callbacks if isinstance(callbacks, list | tuple) else [] if callbacks is None else [callbacks]
