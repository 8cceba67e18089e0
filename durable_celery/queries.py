"""Queries: what a run shows of itself, worked out in the process that asks.

The history is replayed here, from its start, in an execution of its own that is thrown away afterwards. Nothing is
written and no worker takes part, so a query also answers for runs that are blocked or have ended. Invariant: no step,
no local step and no message comes of it. Where the code reaches a local step that is not recorded, it stops.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from durable_celery.dispatch import version_of
from durable_celery.errors import InvalidRequestError, WorkflowCodeError
from durable_celery.workflow import Execution

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from durable_celery.client import Client
    from durable_celery.events import Recorded
    from durable_celery.workflow import Definition, Query, State

__all__ = ["answer"]

P = ParamSpec("P")
R = TypeVar("R")


def answer(
    client: Client, workflow_id: str, query: Query[..., R] | str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> R:
    """Return what a query says of a run; see :meth:`Conversation.query`."""
    run = client.describe(workflow_id)
    definition = _definition(client, run.name, version_of(run.envelope))
    found: Query[..., R] = definition.handlers.find_query(query, run.name)
    found.check_arguments(args, kwargs)
    execution = Execution(definition, workflow_id, run=run.run, codec=client.codec)
    return _read(execution, client.history(workflow_id, run.run), partial(_ask, found, args, kwargs))


def _definition(client: Client, name: str, version: int) -> Definition:
    try:
        return client.engine.workflows(name, version)
    except WorkflowCodeError as error:
        raise WorkflowCodeError(
            f"a query is answered by the workflow's code, in the process that asks, and {name!r} is not registered in "
            "this one; import its module"
        ) from error


def _ask(query: Query[..., R], args: tuple[Any, ...], kwargs: Mapping[str, Any], state: State) -> R:
    value: R = query(state, *args, **kwargs)
    try:
        # The code's own objects change when it is ended.
        return copy.deepcopy(value)
    except TypeError as error:
        raise InvalidRequestError(f"query {query.name!r} returned what is no plain data: {error}") from error


class _AtLocalStep(Exception):  # noqa: N818 - carries the answer out of a replay, never seen by users
    """The code is about to run a local step that is not recorded; the state has been read."""


def _read(execution: Execution, history: Sequence[Recorded], read: Callable[[State], R]) -> R:
    """Replay a run as far as its history goes, and read its state there, before anything in it is ended."""
    answers: list[R] = []

    def stop() -> None:
        answers.append(read(execution.state))
        raise _AtLocalStep

    try:
        execution.feed(history, fresh_after=len(history), before_local=stop, keep=True)
        answers.append(read(execution.state))
    except _AtLocalStep:
        pass
    finally:
        execution.evict()
    return answers[0]
