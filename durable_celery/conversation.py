"""Talking to a run: the verbs of its handle that ask, ask for something, and look on.

What each does is in :mod:`durable_celery.queries`, :mod:`durable_celery.updates` and :mod:`durable_celery.progress`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from celery.result import assert_will_not_block

from durable_celery import progress, queries
from durable_celery.dispatch import version_of
from durable_celery.updates import Request, UpdateHandle
from durable_celery.workflow import Note, Query, Update

if TYPE_CHECKING:
    from collections.abc import Iterator

    from durable_celery.client import Client

__all__ = ["Conversation"]

P = ParamSpec("P")
R = TypeVar("R")


class Conversation:
    """The part of a handle that talks to its run."""

    id: Any
    client: Client

    @overload
    def query(self, query: Query[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def query(self, query: str, /, *args: Any, **kwargs: Any) -> Any: ...
    def query(self, query: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Ask a query of the workflow, or the one with this name; return its answer.

        The answer is worked out here, by a replay of the history with the code of this process: no worker takes part,
        nothing is written, and the run may be open, blocked or closed. It costs as much as its history is long.

        Raises:
            WorkflowNotFoundError: there is no such run.
            WorkflowCodeError: the workflow is not registered in this process.
            InvalidRequestError: it has no such query, or the query does not take these arguments.
            NonDeterminismError: the code of this process does not fit the history; the run is not touched.
            Exception: what the query raised.
        """
        return queries.answer(self.client, self.id, query, args, kwargs)

    @overload
    def update(
        self,
        update: Update[..., R],
        /,
        *args: Any,
        key: str | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> R: ...
    @overload
    def update(
        self, update: str, /, *args: Any, key: str | None = None, timeout: float | None = None, **kwargs: Any
    ) -> Any: ...
    def update(
        self,
        update: Update[..., Any] | str,
        /,
        *args: Any,
        key: str | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Ask the run for an update, wait for its outcome and return it.

        Args:
            update: the update, or its name.
            *args: its arguments.
            key: requests with the same key are one, with one outcome; give it where the call may be repeated.
            timeout: seconds to wait for the outcome at most.
            **kwargs: its keyword arguments.

        Raises:
            celery.exceptions.TimeoutError: there was no outcome in time; the update goes on all the same.
            UpdateError: it was cancelled, or the run ended before it was done.
            Exception: what the handler failed with, or what the validator refused it with.
            InvalidRequestError, WorkflowClosedError, WorkflowNotFoundError: see :meth:`start_update`.
        """
        assert_will_not_block()
        return self.start_update(update, *args, key=key, **kwargs).result(timeout)

    @overload
    def start_update(
        self, update: Update[..., R], /, *args: Any, key: str | None = None, **kwargs: Any
    ) -> UpdateHandle[R]: ...
    @overload
    def start_update(self, update: str, /, *args: Any, key: str | None = None, **kwargs: Any) -> UpdateHandle[Any]: ...
    def start_update(
        self, update: Update[..., Any] | str, /, *args: Any, key: str | None = None, **kwargs: Any
    ) -> UpdateHandle[Any]:
        """Ask the run for an update and do not wait; the handle's ``result()`` gives the outcome.

        Raises:
            InvalidRequestError: the workflow has no such update, it does not take these arguments, or the key was used
                for another request; nothing was written.
            PayloadError: the arguments cannot be recorded; nothing was written.
            WorkflowNotFoundError: there is no such run.
            WorkflowClosedError: the run has ended, and had no request with this key.
            InboxFullError: the run has not taken in ``durable_inbox_limit`` earlier inputs; nothing was written.
        """
        run = self.client.describe(self.id)
        version = version_of(run.envelope)
        request = Request.make(self.client, self.id, update, args, kwargs, workflow=run.name, version=version, key=key)
        return request.send()

    @overload
    def published(self) -> dict[str, Any]: ...
    @overload
    def published(self, key: str, default: Any = None) -> Any: ...
    def published(self, key: str | None = None, default: Any = None) -> Any:
        """Return the newest value that the run published under a key, or ``default``; without a key all of them.

        Raises:
            WorkflowNotFoundError: there is no such run.
        """
        if key is None:
            return progress.published(self.client, self.id)
        return progress.newest(self.client, self.id, key, default)

    def stream(
        self, name: str, *, after: int = 0, follow: bool = True, timeout: float | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Yield ``(offset, value)`` of each item of a stream, in order, until the run ends.

        Args:
            name: which stream.
            after: go on behind this offset; offsets grow, with gaps.
            follow: wait for items to come; else yield those that are there.
            timeout: for how many seconds nothing new may be recorded in the run.

        Raises:
            celery.exceptions.TimeoutError: for ``timeout`` seconds nothing came.
            WorkflowNotFoundError: there is no such run.
        """
        if follow:
            assert_will_not_block()
            items = progress.follow(self.client, self.id, after=after, timeout=timeout)
        else:
            items = progress.so_far(self.client, self.id, after=after)
        return ((one.offset, one.value) for one in items if (one.kind, one.key) == (Note.STREAM, name))
