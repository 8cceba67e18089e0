"""Steps inside a worker: the execution of a user's task is wrapped when a workflow called it, and only then.

``Task.run`` of each registered task is replaced in worker processes by a function that looks for this library's message
header. Without it the task runs as ever. With it the attempt is claimed in the store, the task runs, its outcome is
recorded, and if possible the workflow goes on in this very process.
"""

from __future__ import annotations

import functools
import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from celery import current_task, signals
from celery.exceptions import Ignore, NotRegistered, Reject, Retry

from durable_celery.dispatch import HEADER
from durable_celery.errors import DurableError, PayloadError, StepIgnoredError, StepLostError
from durable_celery.policy import RetryPolicy
from durable_celery.store.protocol import Claim, Refusal, StepKey

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from celery import Task
    from celery.canvas import Signature

    from durable_celery.app import Binding
    from durable_celery.engine import Engine

__all__ = ["StepInfo", "current_step", "wrap_tasks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """Which step of which workflow the current task executes."""

    workflow_id: str
    #: Name of the workflow.
    workflow: str
    run: int
    #: The step's number in its run.
    step: int
    #: Which try this is, from 1.
    attempt: int
    #: The idempotency key: the same for every attempt, and the task's id.
    key: str


def current_step() -> StepInfo | None:
    """Return the step that the current task executes, or None if no workflow called it (step)."""
    request = current_task.request if current_task else None
    return getattr(request, "durable_step", None)


def wrap_tasks(binding: Binding) -> None:
    """Let every plain task of the app be executed as a step; durable tasks and Celery's own are left alone.

    All tasks that a worker can execute are registered by then: Celery itself looks at them once, when it begins.
    """
    for name, task in binding.app.tasks.items():
        if not name.startswith("celery.") and not getattr(task, "is_durable", False):
            _wrap(task, binding)

    def on_unknown(message: Any, **_: Any) -> None:
        header = (message.headers or {}).get(HEADER) or {}
        if "step" in header:
            _miss(binding.engine, _key(header), message.headers["task"])

    signals.task_unknown.connect(on_unknown, weak=False, dispatch_uid=f"durable-{id(binding)}")


def _wrap(task: Task, binding: Binding) -> None:
    plain = task.run
    if hasattr(plain, "durable_plain"):
        return

    @functools.wraps(plain)
    def run(*args: Any, **kwargs: Any) -> Any:
        request = task.request
        header = request.get(HEADER)
        if header is None or request.get("durable_step") is not None:
            return plain(*args, **kwargs)
        return _Attempt(task, binding, header).execute(plain, args, kwargs)

    run.durable_plain = plain  # type: ignore[attr-defined] # marks a wrapped task
    task.run = run
    plain_signature: Any = task.signature_from_request
    task.signature_from_request = functools.partial(_retry_signature, task, plain_signature)
    task.replace = functools.partial(_replace, task, task.replace)


def _key(header: dict[str, Any]) -> StepKey:
    return StepKey(workflow_id=header["id"], run=header["run"], number=header["step"])


def _miss(engine: Engine, key: StepKey, name: str) -> None:
    """Count an attempt of a step whose task this worker does not know; another worker may, in the midst of a deploy."""
    claim = engine.begin_step(key)
    if isinstance(claim, Claim):
        _end_without_outcome(engine, claim, NotRegistered(name), RetryPolicy().delay(claim.attempt, 0.0))


def _end_without_outcome(engine: Engine, claim: Claim, error: Exception, delay: float) -> None:
    """End an attempt that was neither a success nor a failure of the task: by its policy, else a few times over."""
    has_policy = bool((claim.scheduled.options or {}).get("retry"))
    if has_policy or claim.attempt - claim.retries >= engine.lost_attempts:
        engine.fail_step(claim, error)
    else:
        engine.postpone_step(claim, delay=delay, error=repr(error))


class _Attempt:
    """One execution of a step's message."""

    def __init__(self, task: Task, binding: Binding, header: dict[str, Any]) -> None:
        self.task, self.engine, self.codec = task, binding.engine, binding.codec
        self.header, self.request = header, task.request
        self.go_on = self._may_go_on(binding)

    def execute(self, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        claim = self._claim()
        try:
            result = plain(*args, **kwargs)
        except Retry as retry:
            self._postpone(claim, retry)
            raise
        except (Ignore, Reject) as error:
            self._ignore(claim, error)
            raise
        except Exception as error:
            delay = self._fail(claim, error)
            if delay is not None:
                raise Retry(str(error), exc=error, when=delay) from error
            raise
        except BaseException as error:
            # The process is about to end, or the task has called sys.exit(), which in some pools ends nothing at all.
            # The attempt is given back, so that another worker need not wait for the lease; a few times, not for ever.
            lost = StepLostError(f"step {claim.key} was ended by {error!r}; no attempt is left")
            _end_without_outcome(self.engine, claim, lost, 0.0)
            raise
        self._complete(claim, result)
        return result

    def _claim(self) -> Claim:
        key = _key(self.header)
        claim = self.engine.begin_step(key)
        if isinstance(claim, Refusal):
            if claim in {Refusal.CANCELLED, Refusal.FINISHED, Refusal.UNKNOWN}:
                # So that no row of a monitor stays open. Where an earlier message of the step had its end, that stands.
                self.task.send_event("task-revoked", terminated=False, signum=None, expired=False)
            reason = f"step {key} is not executed: {claim}"
            raise Ignore(reason)
        self.request.durable_step = StepInfo(
            workflow_id=key.workflow_id,
            workflow=self.header["name"],
            run=key.run,
            step=key.number,
            attempt=claim.attempt,
            key=str(key),
        )
        return claim

    def _complete(self, claim: Claim, result: object) -> None:
        with _no_soft_limit():
            try:
                self.engine.complete_step(claim, result, go_on=self.go_on)
            except PayloadError as error:
                self.engine.fail_step(claim, error, go_on=self.go_on)
                raise

    def _fail(self, claim: Claim, error: Exception) -> float | None:
        with _no_soft_limit():
            return self.engine.fail_step(claim, error, go_on=self.go_on)

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
        override = self.codec.encode([args, kwargs], f"the retry of step {claim.key}") if changed else None
        self.engine.postpone_step(
            claim,
            delay=_seconds(retry.when),
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
            and getattr(app.tasks.get(self.header["name"]), "is_durable", False)
            and self.header["queue"] in app.amqp.queues.consume_from
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


def _seconds(when: datetime | float | None) -> float:
    if isinstance(when, datetime):
        when = (when - datetime.now(when.tzinfo or UTC)).total_seconds()
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
