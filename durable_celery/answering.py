"""What a workflow answers: the verbs of a durable task that declare queries and updates, or begin a run with a word.

The handlers belong to the task, not to an app: all apps that share the task have the same ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from durable_celery.codec import check_id
from durable_celery.errors import WorkflowConflictError
from durable_celery.updates import Request, UpdateHandle
from durable_celery.workflow import AsyncWorkflowContext, Handlers, Query, Signal, Update, WorkflowContext

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from durable_celery.app import Binding
    from durable_celery.handle import WorkflowHandle

__all__ = ["Answering"]

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Answering(Generic[R_co]):
    """The part of a durable task that says what its runs answer, and that begins a run with a word to it."""

    #: Queries and updates, the same ones in all apps that share the task; made by ``@durable_task``.
    handlers: Handlers

    if TYPE_CHECKING:
        name: str
        version: int

        @property
        def binding(self) -> Binding: ...  # noqa: D102

        apply_async: Callable[..., Any]
        AsyncResult: Callable[[str], WorkflowHandle[R_co]]

    @overload
    def query(self, function: Callable[Concatenate[Any, P], R], /) -> Query[P, R]: ...
    @overload
    def query(self, /, *, name: str) -> Callable[[Callable[Concatenate[Any, P], R]], Query[P, R]]: ...
    def query(self, function: Callable[..., Any] | None = None, /, *, name: str | None = None) -> Any:
        """Make a function ``(state, ...)`` a query of this workflow; see :meth:`WorkflowHandle.query`."""
        return self.handlers.query(function, name=name)

    @overload
    def update(self, function: Callable[Concatenate[WorkflowContext, P], R], /) -> Update[P, R]: ...
    @overload
    def update(self, function: Callable[Concatenate[AsyncWorkflowContext, P], Awaitable[R]], /) -> Update[P, R]: ...
    @overload
    def update(self, /, *, name: str) -> _UpdateDecorator: ...
    def update(self, function: Callable[..., Any] | None = None, /, *, name: str | None = None) -> Any:
        """Make a function ``(ctx, ...)`` an update of this workflow; see :meth:`WorkflowHandle.update`.

        It is workflow code, and has the form of its workflow: ``def`` or ``async def``.
        """
        return self.handlers.update(function, name=name)

    def signal_with_start(
        self,
        name: Signal[Any] | str,
        value: object = None,
        *,
        task_id: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        key: str | None = None,
        **options: Any,
    ) -> WorkflowHandle[R_co]:
        """Start a run, unless one with this id is open, and send it a signal; return its handle.

        An open run of this workflow is joined, whatever arguments it was started with. The two are two writes: if the
        caller dies between them the run is there without the signal. Repeated with the same ``task_id`` and ``key``
        it does what is missing, and nothing twice. (client, step)

        Args:
            name: which signal: a :class:`Signal`, or its name.
            value: its payload.
            task_id: the run.
            args: arguments of the workflow, if it is started.
            kwargs: its keyword arguments.
            key: signals with the same key are one.
            **options: those of ``apply_async``.

        Raises:
            WorkflowClosedError: the run of this id has ended, perhaps just now; it is not begun anew. Use another id.
            WorkflowConflictError: the id is that of another workflow's run.
            InvalidRequestError, PayloadError, TypeError: bad input; nothing was written.
        """
        client = self.binding.client
        event, event_key = client.signal_event(check_id(task_id), name, value, key, workflow=self.name)
        handle = self._join(task_id, args, kwargs, options)
        client.add(task_id, event, event_key)
        return handle

    @overload
    def update_with_start(
        self,
        update: Update[..., R],
        update_args: Sequence[Any] = (),
        update_kwargs: Mapping[str, Any] | None = None,
        *,
        task_id: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        key: str | None = None,
        **options: Any,
    ) -> UpdateHandle[R]: ...
    @overload
    def update_with_start(
        self,
        update: str,
        update_args: Sequence[Any] = (),
        update_kwargs: Mapping[str, Any] | None = None,
        *,
        task_id: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        key: str | None = None,
        **options: Any,
    ) -> UpdateHandle[Any]: ...
    def update_with_start(
        self,
        update: Update[..., Any] | str,
        update_args: Sequence[Any] = (),
        update_kwargs: Mapping[str, Any] | None = None,
        *,
        task_id: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        key: str | None = None,
        **options: Any,
    ) -> UpdateHandle[Any]:
        """Start a run, unless one with this id is open, and ask it for an update; return the update's handle.

        Everything else is as in :meth:`signal_with_start`. (client, step)
        """
        client = self.binding.client
        request = Request.make(
            client,
            task_id,
            update,
            update_args,
            update_kwargs or {},
            workflow=self.name,
            version=self.version,
            key=key,
        )
        self._join(task_id, args, kwargs, options)
        return request.send()

    def _join(
        self,
        task_id: str,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> WorkflowHandle[R_co]:
        """Start a run, or find the run of this workflow that has the id."""
        try:
            handle: WorkflowHandle[R_co] = self.apply_async(args, kwargs, task_id, **options)
        except WorkflowConflictError:
            run = self.binding.client.store.get(task_id)
            if run is None or run.name != self.name:
                raise
            return self.AsyncResult(task_id)
        return handle


class _UpdateDecorator:
    """What ``workflow.update(name=...)`` returns, for type checkers."""

    @overload
    def __call__(self, function: Callable[Concatenate[WorkflowContext, P], R], /) -> Update[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[AsyncWorkflowContext, P], Awaitable[R]], /) -> Update[P, R]: ...
    def __call__(self, function: Callable[..., Any], /) -> Any:
        raise TypeError(function)
