"""Steps inside a worker: the execution of a user's task is wrapped when a workflow called it, and only then.

``Task.run`` of each registered task is replaced in worker processes by a function that looks for this library's message
header. Without it the task runs as ever. With it the attempt is claimed in the store, the task runs, its outcome is
recorded, and if possible the workflow goes on in this very process.
"""

from __future__ import annotations

import functools
import logging
import signal
import threading
import time
from contextlib import contextmanager, nullcontext
from datetime import datetime
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.exceptions import Ignore, NotRegistered, Reject, Retry, SoftTimeLimitExceeded

from durable_celery.ahead import CLAIM, Begun
from durable_celery.codec import HIDDEN, HiddenFailure
from durable_celery.current import Pulse, StepInfo
from durable_celery.dispatch import header_of
from durable_celery.engine.core import is_at_most_once
from durable_celery.errors import (
    CodecError,
    CompleteLater,
    DurableError,
    PayloadError,
    StepCancelled,
    StepIgnoredError,
    StepLostError,
    StepTimeoutError,
)
from durable_celery.policy import RetryPolicy, type_name
from durable_celery.store.protocol import Claim, Refusal
from durable_celery.versions import versions_of
from durable_celery.vetting import Arguments, is_of, key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from contextlib import AbstractContextManager

    from celery import Task
    from celery.canvas import Signature

    from durable_celery.app import Binding
    from durable_celery.engine import Engine
    from durable_celery.store.protocol import StepKey

__all__ = ["fail_unfit", "wrap_task", "wrap_tasks"]

_log = logging.getLogger(__name__)


def wrap_tasks(binding: Binding) -> None:
    """Let every plain task of the app be executed as a step; durable tasks and Celery's own are left alone.

    All tasks that a worker can execute are registered by then: Celery itself looks at them once, when it begins.
    """
    for name, task in binding.app.tasks.items():
        if not name.startswith("celery.") and not getattr(task, "is_durable", False):
            wrap_task(task, binding)

    def on_unknown(message: Any, **_: Any) -> None:
        header = header_of(message.headers or {}) or {}
        key = key_of(header)
        if key is not None:
            _miss(binding.engine, key, message.headers["task"])

    signals.task_unknown.connect(on_unknown, weak=False, dispatch_uid=f"durable-{id(binding)}")


def wrap_task(task: Task, binding: Binding) -> None:
    """Let one task be executed as a step; it may be wrapped already."""
    plain = task.run
    if hasattr(plain, "durable_plain"):
        return

    @functools.wraps(plain)
    def run(*args: Any, **kwargs: Any) -> Any:
        request = task.request
        header = header_of(request)
        if header is None or request.get("durable_step") is not None:
            return plain(*args, **kwargs)
        attempt = _Attempt(task, binding, header, settles=hasattr(plain, "durable_settles"))
        if binding.codec.hides:
            return _hidden(attempt, plain, args, kwargs)
        return attempt.execute(plain, args, kwargs)

    run.durable_plain = plain  # type: ignore[attr-defined] # marks a wrapped task
    task.run = run
    plain_signature: Any = task.signature_from_request
    task.signature_from_request = functools.partial(_retry_signature, task, plain_signature)
    task.replace = functools.partial(_replace, task, task.replace)


def _hidden(attempt: _Attempt, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Execute an attempt and keep its end from Celery, which would show it in logs, events and monitors."""
    ended: Exception
    try:
        attempt.execute(plain, args, kwargs)
    except Reject as reject:
        ended = Reject(HIDDEN, requeue=reject.requeue)
    except Ignore:
        raise
    except Retry as retry:
        ended = Retry(exc=HiddenFailure(_kind(retry.exc), f"step {attempt.key}"), when=retry.when)
    except Exception as error:  # noqa: BLE001 - whatever a user's task raises is hidden
        ended = HiddenFailure(_kind(error), f"step {attempt.key}")
    else:
        return HIDDEN
    # Out here, so that the original is not in the traceback.
    raise ended


def _kind(error: object) -> str:
    return type_name(type(error))


def _miss(engine: Engine, key: StepKey, name: str) -> None:
    """Count an attempt of a step whose task this worker does not know; another worker may, in the midst of a deploy."""
    claim = engine.begin_step(key)
    if isinstance(claim, Claim):
        _end_without_outcome(engine, claim, NotRegistered(name), RetryPolicy().delay(claim.attempt, 0.0))


def fail_unfit(engine: Engine, header: Mapping[str, Any], name: str, error: Exception) -> None:
    """Fail the step that a message names, if it is one of the task that the message is for, which cannot be a step."""
    key = key_of(header)
    claim = None if key is None else engine.begin_step(key)
    if isinstance(claim, Claim) and is_of(claim, name, engine):
        engine.fail_step(claim, error)


def _end_without_outcome(engine: Engine, claim: Claim, error: Exception, delay: float) -> None:
    """End an attempt that was neither a success nor a failure of the task: by its policy, else a few times over."""
    has_policy = bool((claim.scheduled.options or {}).get("retry"))
    if has_policy or claim.attempt - claim.retries >= engine.lost_attempts:
        engine.fail_step(claim, error)
    else:
        engine.postpone_step(claim, delay=delay, error=repr(error))


class _Attempt:
    """One execution of a step's message."""

    def __init__(self, task: Task, binding: Binding, header: dict[str, Any], *, settles: bool) -> None:
        self.task, self.engine, self.codec, self.pace = task, binding.engine, binding.codec, binding.pace
        self.header, self.request, self.key = header, task.request, key_of(header)
        self.arguments = Arguments(binding.codec, task.request, self.key, header.get("sealed"))
        #: Whether it runs ahead: then it has no time limit, and the workflow's turns are taken here.
        self.is_ahead = isinstance(self.request.get(CLAIM), Begun)
        self.go_on = self.is_ahead or self._may_go_on(binding)
        #: Whether its outcome may stand in the task's own database.
        self.settles = settles

    def execute(self, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        args, kwargs = self.arguments.of_message(args, kwargs)
        claim = self._claim()
        args, kwargs = self._recorded(claim, args, kwargs)
        pulse = Pulse(self.engine, claim)
        pulse.is_lost = self.settles and self.engine.is_lost(claim)
        self._announce(claim, pulse)
        try:
            result = self._perform(pulse, plain, args, kwargs)
        except Retry as retry:
            self._postpone(claim, retry)
            raise
        except (Ignore, Reject) as error:
            self._ignore(claim, error)
            raise
        except Exception as error:
            self._raised(claim, error)
            raise
        except BaseException as error:
            self._interrupted(claim, error, pulse)
            raise
        self._complete(claim, result)
        return result

    def _claim(self) -> Claim:
        key = self.key
        if key is None:
            _log.warning("a message for %s names no step that could be; dropped", self.task.name)
            reason = "the message names no step"
            raise Ignore(reason)
        begun = self.request.get(CLAIM)
        claim = (
            begun.take()
            if isinstance(begun, Begun)
            else self.engine.begin_step(key, settles=self.settles, go_on=self.go_on)
        )
        if isinstance(claim, Refusal):
            if claim in {Refusal.CANCELLED, Refusal.FINISHED, Refusal.UNKNOWN}:
                self._close_row()
            reason = f"step {key} is not executed: {claim}"
            raise Ignore(reason)
        if not is_of(claim, self.request.task, self.engine):
            reason = f"step {key} is not executed: it is one of {claim.scheduled.task}"
            raise Ignore(reason)
        return claim

    def _recorded(self, claim: Claim, args: Any, kwargs: Any) -> tuple[Any, Any]:
        try:
            return self.arguments.of_log(claim, args, kwargs)
        except CodecError as error:
            # Nothing was tried, so nothing has failed: it waits for a key or a blob, as a run does.
            self.engine.postpone_step(claim, delay=RetryPolicy().delay(claim.attempt, 0.0), error=str(error))
            reason = f"step {claim.key} is not executed here: its arguments cannot be opened"
            raise Ignore(reason) from error

    def _announce(self, claim: Claim, pulse: Pulse) -> None:
        """Let the task's code find its step."""
        key = claim.key
        self.request.durable_step = StepInfo(
            workflow_id=key.workflow_id,
            workflow=str(self.header.get("name")),
            run=key.run,
            step=key.number,
            attempt=claim.attempt,
            key=str(key),
            pulse=pulse,
        )

    def _perform(self, pulse: Pulse, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run the task; if it does not return, the next attempt finds all the progress that it has made."""
        began = time.monotonic()
        try:
            return plain(*args, **kwargs)
        except BaseException as error:
            if pulse.settled is not None and isinstance(error, Exception):
                # A time limit that struck after the commit changes nothing any more.
                return pulse.settled[0]
            pulse.flush()
            raise
        finally:
            if self.pace is not None:
                self.pace.note(str(self.task.name), time.monotonic() - began)

    def _close_row(self) -> None:
        """Leave no row of a monitor open. Where an earlier message of the step had its end, that stands."""
        self.task.send_event("task-revoked", terminated=False, signum=None, expired=False)

    def _complete(self, claim: Claim, result: object) -> None:
        with self._unlimited():
            try:
                self.engine.complete_step(claim, result, go_on=self.go_on)
            except PayloadError as error:
                self.engine.fail_step(claim, error, go_on=self.go_on)
                raise

    def _fail(self, claim: Claim, error: Exception, *, is_final: bool = False) -> float | None:
        with self._unlimited():
            return self.engine.fail_step(claim, error, go_on=self.go_on, is_final=is_final)

    def _unlimited(self) -> AbstractContextManager[None]:
        return nullcontext() if self.is_ahead else _no_soft_limit()

    def _raised(self, claim: Claim, error: Exception) -> None:
        """End an attempt that raised: it is tried again, or its failure is recorded."""
        timeout = (claim.scheduled.options or {}).get("attempt_timeout")
        if isinstance(error, SoftTimeLimitExceeded) and timeout is not None and self._soft_limit == timeout:
            cause, error = (
                error,
                StepTimeoutError(f"the attempt did not end within its attempt_timeout of {timeout:g} s"),
            )
            error.__cause__ = cause
            # The store would not repeat it either, had it been first.
            delay = self._fail(claim, error, is_final=is_at_most_once(claim))
        else:
            delay = self._fail(claim, error)
        if delay is not None:
            raise Retry(str(error), exc=error, when=delay) from error

    @property
    def _soft_limit(self) -> float | None:
        return (self.request.timelimit or (None, None))[1]

    def _interrupted(self, claim: Claim, error: BaseException, pulse: Pulse) -> None:
        """End an attempt that ended by no error of the task's."""
        if isinstance(error, CompleteLater):
            self.engine.postpone_step(claim, delay=None, error="")
            raise Ignore(str(error)) from None
        if isinstance(error, StepCancelled) and pulse.refusal is not None:
            # The claim is gone already: there is nothing to be recorded.
            if pulse.refusal is not Refusal.LOST:
                self._close_row()
            raise Ignore(str(error)) from None
        # The process is about to end, or the task has called sys.exit(), which in some pools ends nothing at all.
        if is_at_most_once(claim):
            self.engine.lose_step(claim, f"was ended by {type(error).__name__}")
            return
        # The attempt is given back, so that another worker need not wait for the lease; a few times, not for ever.
        lost = StepLostError(f"step {claim.key} was ended by {error!r}; no attempt is left")
        _end_without_outcome(self.engine, claim, lost, 0.0)

    def _ignore(self, claim: Claim, error: Ignore | Reject) -> None:
        """End an attempt by whose task no result is wanted; the workflow waits for one, so it must be told.

        ``Reject(requeue=True)`` is another attempt, as in Celery. ``Ignore`` and any other ``Reject`` fail the step.
        """
        if isinstance(error, Reject) and error.requeue:
            lost = StepLostError(
                f"step {claim.key} was rejected again and again ({error.reason!r}); no attempt is left"
            )
            _end_without_outcome(self.engine, claim, lost, 1.0)
            return
        self._fail(claim, StepIgnoredError(f"step {claim.key} ({self.task.name}) raised {error!r} and has no result"))

    def _postpone(self, claim: Claim, retry: Retry) -> None:
        """The task asked Celery for a retry: the agenda keeps its time, and any changed arguments."""
        sig: Any = retry.sig
        args, kwargs = list(sig.args), dict(sig.kwargs)
        changed = (args, kwargs) != (list(self.request.args or ()), dict(self.request.kwargs or {}))
        key, override = claim.key, None
        if changed:
            place = key.place("override")
            override = self.codec.encode([args, kwargs], f"the retry of step {key}", place)
        self.engine.postpone_step(
            claim,
            delay=_seconds(retry.when, self.task),
            error=repr(retry.exc) if retry.exc else str(retry),
            retries=self.request.retries + 1,
            override=override,
        )

    def _may_go_on(self, binding: Binding) -> bool:
        """Whether the workflow's next turn may run in this process, within this task's execution.

        Not where its code or queue is not this worker's, and not under a time limit, which is the step's alone.
        """
        app, task = binding.app, self.task
        limits = (*(self.request.timelimit or ()), task.time_limit, task.soft_time_limit)
        return (
            not any(limits)
            and str(self.header.get("version", 1)) in map(str, versions_of(app, str(self.header.get("name"))))
            and str(self.header.get("queue")) in app.amqp.queues.consume_from
        )


def _retry_signature(task: Task, plain: Callable[..., Signature], *args: Any, **kwargs: Any) -> Signature:
    """Stand in for ``Task.signature_from_request``: what ``self.retry`` would publish stays unpublished in a step.

    A Celery countdown would sit in a worker's memory and, on Redis, run again after each visibility timeout; the agenda
    sends the step when the retry is due.
    """
    made = plain(*args, **kwargs)
    if task.request.get("durable_step") is not None:
        made.apply_async = lambda *_, **__: None
    return made


def _replace(task: Task, plain: Callable[..., Any], sig: Signature) -> Any:
    """Stand in for ``Task.replace``: the replacement would take the step's id, and no outcome would reach the run.

    Raises:
        DurableError: the task is executed as a step.
    """
    if task.request.get("durable_step") is None:
        return plain(sig)
    msg = f"{task.name} calls self.replace(), which a step cannot do: call {sig.task} as a step of the workflow"
    raise DurableError(msg)


def _seconds(when: datetime | float | None, task: Task) -> float:
    if isinstance(when, datetime):
        # Celery reads a naive eta in the app's timezone.
        aware = when if when.tzinfo else when.replace(tzinfo=task.app.timezone)
        return max(0.0, float((aware - task.app.now()).total_seconds()))
    return max(0.0, float(when or 0))


@contextmanager
def _no_soft_limit() -> Generator[None, None, None]:
    """Keep the task's soft time limit from cutting into the recording of its outcome.

    The prefork pool raises it from a handler of SIGUSR1, at any line. The task itself is done by then.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGUSR1"):
        yield
        return
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)
