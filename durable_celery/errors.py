"""Every error of durable_celery, in one tree.

::

    DurableError
    +-- ConfigurationError          a setting or a server that would lose work
    +-- InvalidRequestError         bad input, refused at the caller, nothing written
    |   +-- InvalidIdError
    |   +-- PayloadError
    |   +-- UnknownTaskError
    |   +-- InboxFullError          too many signals wait for a run
    +-- WorkflowNotFoundError
    +-- WorkflowConflictError       the id is taken by a run with other arguments
    +-- WorkflowClosedError         the run has ended, nothing can be sent to it
    +-- BatchFailedError            more items of a batch failed than were tolerated
    +-- CompensationError           a saga could not undo all that it had done
    +-- RetryAfter                  raised by a task: try again, after so many seconds
    +-- NonRetryable                raised by a task: do not try again
    +-- EventConflictError          a named event has another value already, or was cancelled
    +-- EventCancelledError         a named event that a workflow waits for was cancelled
    +-- UpdateError                 an update came to no end of its own
    +-- WaitTimeoutError            a wait with a timeout (also a TimeoutError)
    |   +-- HeartbeatTimeoutError   who was to answer a callback gave no sign of life
    +-- InvalidSignalError          a signal came with a value of another type (also a ValueError)
    +-- CallbackFailedError         an outside system said that it failed
    +-- RemoteError                 a failure whose class cannot be rebuilt here
    +-- StepTimeoutError            a step, or its attempt, did not end in time
    +-- StepLostError               a step lost its process too often
    +-- StepNotOpenError            a step that was named by its token takes no outcome
    +-- ExternalError               somebody outside said that a step has failed
    +-- StepIgnoredError            a step's task raised Ignore or Reject
    +-- ChildCancelledError         a child run was cancelled, and not by its parent
    +-- NonDeterminismError         code and history disagree
    +-- SideEffectError             workflow code touched the outside world
    +-- WorkflowCodeError           the code of a run cannot be loaded
    +-- CodecError                  a payload cannot be opened or sealed here
    +-- HistoryLimitError           a history has grown too long to go on
    +-- StoreError
        +-- StaleLeaseError         a write with an old fencing token was refused
        +-- StoreUnavailableError   the store does not answer

    WorkflowCancelled (asyncio.CancelledError)   raised at the await of a cancelled run
    Continued (BaseException)                    leaves the code of a run that goes on as the next one
    Evicted (BaseException)                      unwinds a suspended execution
    StepCancelled (BaseException)                raised in a task at its heartbeat: the step is not wanted any more
    CompleteLater (BaseException)                raised by a task: the step's outcome will come from outside

The control-flow exceptions derive from ``BaseException``, so that ``except Exception`` in a user's code does not
swallow them, and never reach Celery.
"""

from __future__ import annotations

from asyncio import CancelledError
from datetime import timedelta

__all__ = [
    "BatchFailedError",
    "CallbackFailedError",
    "ChildCancelledError",
    "CodecError",
    "CompensationError",
    "CompleteLater",
    "ConfigurationError",
    "Continued",
    "DurableError",
    "EventCancelledError",
    "EventConflictError",
    "Evicted",
    "ExternalError",
    "HeartbeatTimeoutError",
    "HistoryLimitError",
    "InboxFullError",
    "InvalidIdError",
    "InvalidRequestError",
    "InvalidSignalError",
    "NonDeterminismError",
    "NonRetryable",
    "PayloadError",
    "RemoteError",
    "RetryAfter",
    "SideEffectError",
    "StaleLeaseError",
    "StepCancelled",
    "StepIgnoredError",
    "StepLostError",
    "StepNotOpenError",
    "StepTimeoutError",
    "StoreError",
    "StoreUnavailableError",
    "UnknownTaskError",
    "UpdateError",
    "WaitTimeoutError",
    "WorkflowCancelled",
    "WorkflowClosedError",
    "WorkflowCodeError",
    "WorkflowConflictError",
    "WorkflowNotFoundError",
]


class DurableError(Exception):
    """Base of all errors of durable_celery."""


class ConfigurationError(DurableError):
    """A setting is wrong, or a server is set up so that it would lose work."""


class InvalidRequestError(DurableError, ValueError):
    """The caller's input was refused before anything was written."""


class InvalidIdError(InvalidRequestError):
    """A workflow id is empty, too long, or has characters that are not allowed."""


class PayloadError(InvalidRequestError):
    """A value cannot be written to the log: its type is unknown or it is too large."""


class UnknownTaskError(InvalidRequestError):
    """A step was asked for that is no Celery task."""


class InboxFullError(InvalidRequestError):
    """So many events wait for a run's next turn that no more is taken in (``durable_inbox_limit``)."""

    def __init__(self, workflow_id: str, unread: int) -> None:
        super().__init__(workflow_id, unread)
        self.workflow_id, self.unread = workflow_id, unread

    def __str__(self) -> str:
        return (
            f"workflow {self.workflow_id!r} has {self.unread} events that no turn has read (durable_inbox_limit); "
            "nothing was written. See why it does not go on (celery durable show), and send it again then"
        )


class WorkflowNotFoundError(DurableError):
    """No run with this workflow id, or with this number, is in the store."""

    def __init__(self, workflow_id: str, run: int | None = None) -> None:
        super().__init__(workflow_id, run)
        self.workflow_id, self.run = workflow_id, run

    def __str__(self) -> str:
        which = "" if self.run is None else f" with a run {self.run}"
        return f"no workflow {self.workflow_id!r}{which} in the store (never started, or its retention has passed)"


class WorkflowConflictError(DurableError):
    """A run with this workflow id exists, started as another workflow or with other arguments."""

    def __init__(self, workflow_id: str, existing: str, asked: str) -> None:
        super().__init__(workflow_id, existing, asked)
        self.workflow_id, self.existing, self.asked = workflow_id, existing, asked

    def __str__(self) -> str:
        return (
            f"workflow {self.workflow_id!r} was already started as {self.existing}; "
            f"it cannot be started again as {self.asked}. Use another task_id, or the same workflow and arguments"
        )


class WorkflowClosedError(DurableError):
    """The run has ended; a signal or cancel that comes now has no effect."""

    def __init__(self, workflow_id: str, status: str) -> None:
        super().__init__(workflow_id, status)
        self.workflow_id, self.status = workflow_id, status

    def __str__(self) -> str:
        return f"workflow {self.workflow_id!r} is already {self.status}"


class WaitTimeoutError(DurableError, TimeoutError):
    """A wait ended by its timeout, not by what it waited for."""


class EventConflictError(DurableError):
    """A named event cannot be published: it has another value already, or was cancelled."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(name, why)
        self.name, self.why = name, why

    def __str__(self) -> str:
        return f"event {self.name!r} {self.why}"


class EventCancelledError(DurableError):
    """A named event that a workflow waits for was cancelled, and is not published any more."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"event {self.name!r} was cancelled: it will not be published"


class UpdateError(DurableError):
    """An update came to no end of its own: it was cancelled, or its run ended before it was done."""


class HeartbeatTimeoutError(WaitTimeoutError):
    """Who was to answer a callback has given no sign of life for too long."""


class InvalidSignalError(DurableError, ValueError):
    """A signal came whose value is not of the type that the workflow waits for; its sender did not check it."""


class CallbackFailedError(DurableError):
    """An outside system answered a callback by saying that it failed."""


class BatchFailedError(DurableError):
    """More items of a batch failed than were tolerated."""


class CompensationError(DurableError):
    """A saga could not undo all that it had done: somebody has to look at what is named."""


class RetryAfter(DurableError):  # noqa: N818 - a request, which only becomes an error when no attempt is left
    """Raised by a step's task: try again after so many seconds, in place of the wait of the step's policy.

    It uses up one of the policy's attempts; without a policy there are ten.
    """

    def __init__(self, seconds: timedelta | float, message: str = "") -> None:
        self.seconds = seconds.total_seconds() if isinstance(seconds, timedelta) else float(seconds)
        self.message = message
        super().__init__(self.seconds, message)

    def __str__(self) -> str:
        return self.message or f"asked to be tried again after {self.seconds:g} s"


class NonRetryable(DurableError):  # noqa: N818 - says what to do, as RetryAfter does
    """Raised by a step's task: it has failed for good, whatever the step's policy says."""


class RemoteError(DurableError):
    """A failure whose exception class cannot be found or rebuilt in this process."""

    def __init__(self, type_name: str, message: str) -> None:
        super().__init__(type_name, message)
        self.type_name, self.message = type_name, message

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}"


class StepTimeoutError(DurableError, TimeoutError):
    """A step, or one attempt of it, did not begin or end within the time that its workflow gave it."""


class StepLostError(DurableError):
    """Each attempt of a step lost the process that ran it, and no attempt is left."""


class StepNotOpenError(DurableError):
    """A step that was named by its token takes no outcome: it has one, or nobody waits for it."""

    def __init__(self, token: str, why: str) -> None:
        super().__init__(token, why)
        self.token, self.why = token, why

    def __str__(self) -> str:
        return f"step {self.token} takes no outcome from outside: {self.why}; nothing was written"


class ExternalError(DurableError):
    """Somebody outside said that a step has failed."""


class StepIgnoredError(DurableError):
    """A step's task raised ``Ignore`` or ``Reject``, so there is no result that the workflow could wait for."""


class ChildCancelledError(DurableError):
    """A child run that a workflow waits for was cancelled by somebody else."""


class NonDeterminismError(DurableError):
    """The workflow code issued other commands than its history holds; the run is parked as *blocked*."""

    def __init__(self, workflow_id: str, story: str) -> None:
        super().__init__(workflow_id, story)
        self.workflow_id, self.story = workflow_id, story

    def __str__(self) -> str:
        return f"workflow {self.workflow_id!r}: the code does not do what its history says\n{self.story}"


class SideEffectError(DurableError):
    """Workflow code reached for the outside world, which only a step may do."""


class WorkflowCodeError(DurableError):
    """The code of a run cannot be loaded here; the run is parked as *blocked*."""


class CodecError(DurableError):
    """A payload cannot be opened or sealed here: a codec or key is missing, it was changed, or it belongs elsewhere.

    Nothing was written. A run that meets it is parked as *blocked*, and goes on when codec and key are there.
    """

    def __init__(self, place: object, problem: str) -> None:
        super().__init__(str(place), problem)
        self.place, self.problem = str(place), problem

    def __str__(self) -> str:
        return f"payload ({self.place}): {self.problem}"


class HistoryLimitError(DurableError):
    """A history has reached ``durable_history_limit``; the run is parked as *blocked*."""


class StoreError(DurableError):
    """The store refused or failed an operation."""


class StaleLeaseError(StoreError):
    """A write came with a fencing token that is no longer the newest; nothing was written."""


class StoreUnavailableError(StoreError):
    """The store does not answer; whether the operation took effect is unknown, and repeating it is safe."""


class WorkflowCancelled(CancelledError):  # noqa: N818 - control flow, no error
    """Raised in workflow code at the await (or blocking verb) where a cancel finds it."""


class Continued(BaseException):
    """Leaves the code of a run that continues as a new one, as a ``return`` would; to catch it changes nothing."""


class StepCancelled(BaseException):
    """Raised in a task at its heartbeat: the step is not wanted any more, or this attempt of it. Let it pass.

    The attempt ends without an outcome; what it returns or raises instead is not used either.
    """


class CompleteLater(BaseException):
    """Raised by a task (``raise current_step().complete_later()``): somebody outside will tell the step's outcome."""


class Evicted(BaseException):
    """Unwinds a suspended execution that leaves the cache; no verb does anything meanwhile."""
