"""The durable task: the Celery task of a workflow.

What a caller does with a task (start it, look at its result) and what a worker does with its messages is here; the
engine does the work. Invariant: an end is noted as delivered only after Celery has stored the result and fired the
callbacks; whatever goes wrong before that, the agenda sends the run's message again.
"""

from __future__ import annotations

import copyreg
import functools
import inspect
import logging
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar

from celery import Task, current_app, signals, states
from celery.exceptions import Ignore, TaskPredicate
from celery.utils import uuid

from durable_celery.ahead import ENDING, Begun
from durable_celery.answering import Answering
from durable_celery.app import EAGER, binding_of
from durable_celery.codec import HIDDEN, HiddenFailure, Place, check_id, place_of, rebuild
from durable_celery.dispatch import ETA, VERSION, envelope, envelope_of_request, header_of, shown, took
from durable_celery.engine.starting import start_all, start_run
from durable_celery.errors import (
    CodecError,
    ConfigurationError,
    DurableError,
    InvalidIdError,
    RemoteError,
    UnknownTaskError,
    WorkflowConflictError,
)
from durable_celery.events import RunCancelled, RunCompleted, RunFailed
from durable_celery.handle import WorkflowHandle
from durable_celery.outbox import start_entry
from durable_celery.policy import type_name
from durable_celery.rows import close_rows
from durable_celery.steps import fail_unfit
from durable_celery.store.protocol import NewRun
from durable_celery.waits import RunWaits
from durable_celery.workflow import Definition, Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from celery import Celery

    from durable_celery.app import Binding
    from durable_celery.engine import Ending
    from durable_celery.store.protocol import Started

__all__ = ["DurableTask"]

_log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class _Checked(NamedTuple):
    """A start that may be written."""

    #: Without its digest.
    new: NewRun
    #: JSON text of its arguments, before ``durable_codec``.
    arguments: str


class DurableTask(Answering[R_co], Task, Generic[P, R_co]):
    """The Celery task of a workflow.

    Its messages only wake the run: the worker takes the run's lease, goes on as far as it can, and ends the message
    without a final state while the run is open. The last message delivers the end, so that Celery stores the result and
    fires the callbacks, once.
    """

    abstract = True
    is_durable = True
    # A message that is lost with its process comes at once where the broker can do that; else the agenda sends it.
    acks_late = True
    reject_on_worker_lost = True
    # The request sends the run's events; the strategy would send one task-received for each message.
    send_events = False
    Request = "durable_celery.request:RunRequest"
    Strategy = "durable_celery.request:strategy"
    #: The user's function; set by the decorator.
    workflow: Callable[..., Any]
    #: Which version of the workflow it is.
    version: int = 1
    #: All versions that the app has under the name, this one among them; the newest receives the messages of all.
    versions: Mapping[int, DurableTask[..., Any]]
    #: Queue of the runs that this version starts, from their start to their end; None: as Celery's routes say.
    run_queue: str | None = None
    #: The signals that the workflow takes, by name; empty where it does not say.
    takes: Mapping[str, Signal[Any]] = MappingProxyType({})

    if TYPE_CHECKING:
        # Celery has no types of its own; this is never None here.
        name: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Do what a message asks for; a workflow may be called by another one, as a step.

        Celery's own would copy the request where a task of the name is running, and what is noted on it were lost.
        """
        result: R_co = self.run(*args, **kwargs)
        return result

    @functools.cached_property
    def definition(self) -> Definition:
        """The workflow's name, code and version."""
        return Definition(
            name=self.name,
            function=inspect.unwrap(type(self).workflow),
            version=self.version,
            handlers=self.handlers,
        )

    @property
    def _own_app(self) -> Celery:
        app: Any = self._get_app()
        return app

    @property
    def binding(self) -> Binding:
        """The binding of the task's app."""
        return binding_of(self._own_app)

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> WorkflowHandle[R_co]:
        """Start the workflow with these arguments; see :meth:`apply_async`."""
        return self.apply_async(args, kwargs)

    def apply_async(  # noqa: PLR0917 - Celery's signature
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Any,
    ) -> WorkflowHandle[R_co]:
        """Start the workflow, or find the run that the same ``task_id`` has started.

        Takes what ``Task.apply_async`` takes. ``countdown`` and ``eta`` become a durable timer, ``expires`` is kept in
        the log. The run is in the store when this returns, also if the broker could not be reached. (client, step)

        Raises:
            TypeError: the arguments do not fit the workflow's signature.
            InvalidIdError, PayloadError: bad input; nothing was written.
            WorkflowConflictError: the id is taken by a run of another workflow or with other arguments.
            StoreUnavailableError: no answer from the store; repeat with the same ``task_id``.
        """
        caller: Any = self._own_app.current_worker_task
        given = {**options, "link": link, "link_error": link_error, "shadow": shadow}
        checked = self._checked(args, kwargs, task_id, given)
        if (post_office := self.binding.post_office) is not None and producer is None:
            checked = checked._replace(new=replace(checked.new, mail=post_office.of_start(checked.new)))
        started = self._start(checked)
        if started.message is not None:
            self.binding.dispatcher.publish_first(started.message, producer=producer)
        handle = self.AsyncResult(checked.new.workflow_id)
        if caller is not None and options.get("add_to_parent", True):
            caller.add_trail(handle)
        return handle

    def start_many(
        self, arguments: Iterable[Sequence[Any]], *, task_ids: Iterable[str] | None = None, **options: Any
    ) -> list[WorkflowHandle[R_co]]:
        """Start many runs in few round trips to the store, and publish nothing: the workers publish their messages.

        They begin when a worker looks at the agenda: within ``durable_sweep_interval``, if it has time. (client, step)

        Args:
            arguments: the positional arguments of each run.
            task_ids: the id of each, in the same order; without them each gets a new one.
            **options: those of :meth:`apply_async`, the same for all.

        Returns:
            Their handles, in the same order.

        Raises:
            TypeError: some arguments do not fit the workflow's signature; nothing was written.
            ValueError: there are more ids than runs, or fewer; nothing was written.
            InvalidIdError, PayloadError: bad input; nothing was written.
            WorkflowConflictError: an id is taken by a run of another workflow or with other arguments; all others are
                started.
            StoreUnavailableError: no answer from the store; some may be started. Repeat with the same ``task_ids``.
        """
        given = {"link": None, "link_error": None, "shadow": None, **options}
        many = list(arguments)
        ids: list[str | None] = [None] * len(many) if task_ids is None else list(task_ids)
        checked = [self._checked(args, None, task_id, given) for args, task_id in zip(many, ids, strict=True)]
        codec = self.binding.codec
        starts = [(new, list(codec.digests(text, Place(new.workflow_id, "start")))) for new, text in checked]
        self.binding.dispatcher.expect_results()
        if conflicts := start_all(self.binding.store, starts):
            raise conflicts[0]
        return [self.AsyncResult(new.workflow_id) for new, _ in checked]

    def start_in(
        self,
        session: object,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        task_id: str | None = None,
        **options: Any,
    ) -> WorkflowHandle[R_co]:
        """Start the workflow as part of a transaction: it is started when that commits, or not at all.

        It is a row in your database, from where a worker takes it to the store (``durable_outbox``). If the id is taken
        by then, by a run with other arguments, the row stays in the table with the reason, and it is logged. (client,
        step)

        Args:
            session: a session or connection of SQLAlchemy, or ``durable_celery.contrib.django.outbox()``.
            args: arguments of the workflow.
            kwargs: its keyword arguments.
            task_id: the run.
            **options: those of :meth:`apply_async`; ``countdown`` counts from now.

        Returns:
            The handle of the run, which does not exist before the commit.

        Raises:
            TypeError: the arguments do not fit the workflow's signature.
            ConfigurationError: ``durable_outbox`` is not set, or the table is missing.
            InvalidIdError, PayloadError: bad input; nothing was written.
        """
        given = {"link": None, "link_error": None, "shadow": None, **options}
        new, _ = self._checked(args, kwargs, task_id, given)
        self.binding.client.post.add(session, start_entry(new))
        return self.AsyncResult(new.workflow_id)

    def _checked(
        self,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        task_id: str | None,
        options: dict[str, Any],
    ) -> _Checked:
        """Return what a start writes, once nothing is wrong with it."""
        app = self._own_app
        if app.conf.task_always_eager:
            raise ConfigurationError(EAGER)
        args, kwargs = tuple(args or ()), dict(kwargs or {})
        if self.typing:
            self.__header__(*args, **kwargs)
        given = self._start_options(args, kwargs, options, app.current_worker_task)
        workflow_id = check_id(task_id or uuid())
        self._refuse_callbacks(given)
        text = envelope(given)
        # A queue that Celery does not know is the caller's mistake, and is refused before anything is written.
        self.binding.dispatcher.queue_of(self.name, text)
        return self._new(workflow_id, args, kwargs, text, **_waits(app, given))

    def _start_options(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any], caller: Any
    ) -> dict[str, Any]:
        """Return the options that a start's envelope is made of: the task's, then the caller's."""
        app = self._own_app
        own = {**self._get_exec_options(), "ignore_result": self.ignore_result, **self._own_queue()}
        given = {**own, **shown(args, kwargs, self.binding.codec), **options, **self._mark()}
        given["shadow"] = given["shadow"] or self.shadow_name(args, kwargs, given)
        if caller is not None:
            # As Celery does: what a task starts is its child. Set now, because later messages come from other places.
            given["root_id"] = given.get("root_id") or caller.request.root_id or caller.request.id
            given["parent_id"] = given.get("parent_id") or caller.request.id
        if self.binding.dispatcher.results_are_messages:
            # They go to the caller, whichever process publishes the message that delivers the end.
            given["reply_to"] = given.get("reply_to") or app.thread_oid
        if given.get("serializer") == app.conf.task_serializer:
            # What every publisher of this app would choose need not be kept with each run.
            del given["serializer"]
        return given

    def _own_queue(self) -> dict[str, str]:
        return {"queue": self.run_queue} if self.run_queue else {}

    def _mark(self) -> dict[str, int]:
        """Return what the envelope of a run of this version has; the first version has nothing."""
        return {VERSION: self.version} if self.version > 1 else {}

    def apply(self, *_: Any, **__: Any) -> Any:
        """Refuse to run here and now, which a workflow cannot."""
        raise ConfigurationError(EAGER)

    def AsyncResult(self, task_id: str, **_: Any) -> WorkflowHandle[R_co]:  # noqa: N802 - Celery's name
        """Return the handle of a run."""
        return WorkflowHandle(task_id, client=self.binding.client, app=self._own_app)

    def perform(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Do what a message asks for: take a turn, and deliver the end if there is one (worker)."""
        request, binding = self.request, self.binding
        if request.called_directly:
            msg = f"a workflow is started with {self.name}.delay(...), not called"
            raise DurableError(msg)
        self._check_message(args, kwargs)
        begun = request.get(ENDING)
        ending = begun.take() if isinstance(begun, Begun) else binding.engine.take_turn(request.id)
        if ending is None:
            raise RunWaits
        request.durable_ending = ending
        if binding.sends_events:
            close_rows(binding, ending.run, request.hostname)
        if isinstance(ending.event, RunCancelled):
            self._deliver_cancelled(ending)
        value = self._end(ending)
        if isinstance(ending.event, RunCompleted):
            return value
        raise value

    def _check_message(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Let only the id of a message count; a message from elsewhere starts its run."""
        try:
            check_id(self.request.id)
        except InvalidIdError as error:
            _log.warning("a message was dropped: %s", error)
            raise Ignore(str(error)) from error
        header = header_of(self.request)
        if header is None:
            self._adopt(args, kwargs)
        elif "step" in header:
            self._refuse_step(header)

    def _refuse_step(self, header: Mapping[str, Any]) -> None:
        """Fail a step that names this workflow by a text: where it was scheduled, nobody knew that it is one."""
        error = UnknownTaskError(
            f"{self.name} is a durable task: give ctx.step() the task and not its name, and it becomes a child workflow"
        )
        fail_unfit(self.binding.engine, header, self.name, error)
        raise Ignore(str(error))

    def _end(self, ending: Ending) -> Any:
        """Return a run's result, or the exception that it failed with, as Celery may see it.

        Raises:
            RunWaits: it cannot be opened here; it is delivered where the key is.
        """
        binding, run, event = self.binding, ending.run, ending.event
        completed = isinstance(event, RunCompleted)
        if completed and binding.hides_ends:
            return HIDDEN
        place = place_of(event, run.workflow_id, run.run)
        try:
            if completed:
                return binding.codec.decode(event.payload, place)
            failure = _presentable(rebuild(event.payload, binding.codec, place))
        except CodecError as error:
            _log.error("the end of %s is not delivered here: %s", run.workflow_id, error)
            self.request.durable_ending = None
            binding.engine.cancel_delivery(ending)
            raise RunWaits from None
        if not binding.hides_ends:
            return failure
        kind = failure.type_name if isinstance(failure, RemoteError) else type_name(type(failure))
        return HiddenFailure(kind, f"workflow {run.workflow_id}")

    def after_return(self, status: str, *_: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Note the delivery, once Celery has stored the result and fired the callbacks."""
        ending: Ending | None = self.request.get("durable_ending")
        # Where a callback could not be published, Celery fails a task that had succeeded: that end comes again.
        if ending is not None and status == _STATES[type(ending.event)]:
            self.binding.engine.delivered(ending)
            self.request.durable_ending = None

    def _adopt(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Make the run of a message from a producer that does not know this library (``send_task``, beat elsewhere)."""
        if self.typing and self.binding.store.get(check_id(self.request.id)) is None:
            # What a start by this library refuses at the caller can here only fail the task.
            self.__header__(*args, **kwargs)
        options = envelope_of_request(self.request)
        self._refuse_callbacks(options)
        if self.run_queue:
            # Wherever the message was put: on the version's own queue are the workers that have it.
            options |= {**self._own_queue(), "exchange": None, "routing_key": None}
        options |= self._mark()
        if self.binding.codec.hides:
            # The message has shown them already; the log need not.
            options |= shown(args, kwargs, self.binding.codec)
        text = envelope(options)
        waits = _waits(self._own_app, {"eta": self.request.get(ETA), "expires": self.request.expires})
        try:
            self._start(self._new(check_id(self.request.id), args, kwargs, text, **waits))
        except WorkflowConflictError as error:
            # The run that has the id goes on; the producer cannot be told, so the log must.
            _log.warning("a start was refused: %s", error)
            raise Ignore(str(error)) from error

    def _new(
        self, workflow_id: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: str, **waits: Any
    ) -> _Checked:
        codec, place = self.binding.codec, Place(workflow_id, "start")
        text = codec.dumps([list(args), dict(kwargs)], f"the arguments of workflow {self.name}")
        payload = codec.seal(text, place)
        new = NewRun(
            workflow_id=workflow_id,
            name=self.name,
            version=self.version,
            payload=payload,
            digest="",
            envelope=options,
            **waits,
        )
        return _Checked(new, text)

    def _start(self, checked: _Checked) -> Started:
        digests = self.binding.codec.digests(checked.arguments, Place(checked.new.workflow_id, "start"))
        return start_run(self.binding.store, checked.new, digests)

    def _refuse_callbacks(self, options: Mapping[str, Any]) -> None:
        """Refuse what would carry a hidden result through the broker in plain."""
        wanting = sorted(name for name in ("link", "chain", "chord") if options.get(name))
        if wanting and self.binding.hides_ends:
            msg = (
                f"{self.name} has a {' and a '.join(wanting)}, which gets its result through the broker in plain, and "
                "durable_codec hides results. Call the other task as a step, or set durable_reveal_results = True"
            )
            raise ConfigurationError(msg)

    def _deliver_cancelled(self, ending: Ending) -> None:
        """Deliver REVOKED, which Celery has no exception for."""
        request, reason = self.request, "cancelled"
        self.backend.mark_as_revoked(request.id, reason, request=request, store_result=not request.ignore_result)
        fields: dict[str, Any] = {
            "terminated": False,
            "signum": None,
            "expired": False,
            **took(header_of(request)),
        }
        self.send_event("task-revoked", **fields)
        self.binding.engine.delivered(ending)
        request.durable_ending = None
        raise Ignore(reason)


#: The state that Celery gives to a task for each end of a run.
_STATES = {RunCompleted: states.SUCCESS, RunFailed: states.FAILURE, RunCancelled: states.REVOKED}


def _presentable(error: Exception) -> Exception:
    """Return an exception that Celery takes for a failure: not one of those by which a task talks to its worker."""
    if not isinstance(error, TaskPredicate):
        return error
    stand_in = RemoteError(type_name(type(error)), str(error))
    stand_in.__cause__ = error.__cause__
    return stand_in


@signals.task_postrun.connect(weak=False)
def _give_back(sender: Any = None, **_: Any) -> None:
    """Give an end back that was not delivered, because the result backend or the broker failed: it comes again."""
    if getattr(sender, "is_durable", False) and (ending := sender.request.get("durable_ending")) is not None:
        sender.request.durable_ending = None
        sender.binding.engine.cancel_delivery(ending)


def _waits(app: Celery, options: Mapping[str, Any]) -> dict[str, float | None]:
    """Return delay and expiry in seconds from Celery's ``countdown``, ``eta`` and ``expires``."""
    delay, expires = options.get("countdown") or 0.0, options.get("expires")
    if eta := options.get("eta"):
        delay = _seconds_until(app, eta)
    if isinstance(expires, datetime | str):
        expires = _seconds_until(app, expires)
    return {"delay": max(0.0, float(delay)), "expires": None if expires is None else max(0.0, float(expires))}


def _seconds_until(app: Celery, moment: datetime | str) -> float:
    instant = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    if instant.tzinfo is None:
        # Celery reads a naive eta in the app's timezone.
        instant = instant.replace(tzinfo=app.timezone)
    now: datetime = app.now()
    return (instant - now).total_seconds()


def _handle(workflow_id: str, parent: Any) -> WorkflowHandle[Any]:
    app: Any = current_app._get_current_object()  # noqa: SLF001 - Celery's proxy
    return WorkflowHandle(workflow_id, client=binding_of(app).client, app=app, parent=parent)


# As with Celery's own results, the process that reads a pickled handle takes its current app.
copyreg.pickle(WorkflowHandle, lambda handle: (_handle, (handle.id, handle.parent)))
