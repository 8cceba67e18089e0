"""Durable execution for Celery: workflows that survive crashes, as ordinary Celery tasks.

The names are loaded when they are used. The ``celery`` command loads the plug-ins of all installed packages, ours among
them, for every app; an app that does not use this library must not get its bootstep by that.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from durable_celery.canvas import durable
    from durable_celery.current import StepInfo, current_step
    from durable_celery.decorator import durable_task
    from durable_celery.errors import (
        BatchFailedError,
        CallbackFailedError,
        ChildCancelledError,
        CompensationError,
        ConfigurationError,
        DurableError,
        EventCancelledError,
        EventConflictError,
        ExternalError,
        HeartbeatTimeoutError,
        InvalidSignalError,
        NonDeterminismError,
        NonRetryable,
        RemoteError,
        RetryAfter,
        SideEffectError,
        StepCancelled,
        StepIgnoredError,
        StepLostError,
        StepNotOpenError,
        StepTimeoutError,
        UpdateError,
        WaitTimeoutError,
        WorkflowCancelled,
        WorkflowClosedError,
        WorkflowConflictError,
        WorkflowNotFoundError,
    )
    from durable_celery.handle import WorkflowHandle
    from durable_celery.named_events import publish_event
    from durable_celery.outbox.tables import outbox_table
    from durable_celery.outside import complete_callback, fail_callback, heartbeat_callback
    from durable_celery.policy import RetryPolicy
    from durable_celery.task import DurableTask
    from durable_celery.transactions import outcome_table, transactional_step
    from durable_celery.updates import UpdateHandle
    from durable_celery.workflow import (
        AsyncWorkflowContext,
        BatchResult,
        Callback,
        ForeignTask,
        Query,
        Signal,
        Tolerance,
        Update,
        WorkflowContext,
    )

__all__ = [
    "AsyncWorkflowContext",
    "BatchFailedError",
    "BatchResult",
    "Callback",
    "CallbackFailedError",
    "ChildCancelledError",
    "CompensationError",
    "ConfigurationError",
    "DurableError",
    "DurableTask",
    "EventCancelledError",
    "EventConflictError",
    "ExternalError",
    "ForeignTask",
    "HeartbeatTimeoutError",
    "InvalidSignalError",
    "NonDeterminismError",
    "NonRetryable",
    "Query",
    "RemoteError",
    "RetryAfter",
    "RetryPolicy",
    "SideEffectError",
    "Signal",
    "StepCancelled",
    "StepIgnoredError",
    "StepInfo",
    "StepLostError",
    "StepNotOpenError",
    "StepTimeoutError",
    "Tolerance",
    "Update",
    "UpdateError",
    "UpdateHandle",
    "WaitTimeoutError",
    "WorkflowCancelled",
    "WorkflowClosedError",
    "WorkflowConflictError",
    "WorkflowContext",
    "WorkflowHandle",
    "WorkflowNotFoundError",
    "complete_callback",
    "current_step",
    "durable",
    "durable_task",
    "fail_callback",
    "heartbeat_callback",
    "outbox_table",
    "outcome_table",
    "publish_event",
    "transactional_step",
]

_HOMES = {
    "AsyncWorkflowContext": "workflow",
    "BatchResult": "workflow",
    "Callback": "workflow",
    "DurableTask": "task",
    "ForeignTask": "workflow",
    "Query": "workflow",
    "RetryPolicy": "policy",
    "Signal": "workflow",
    "StepInfo": "current",
    "Tolerance": "workflow",
    "Update": "workflow",
    "UpdateHandle": "updates",
    "WorkflowContext": "workflow",
    "WorkflowHandle": "handle",
    "complete_callback": "outside",
    "current_step": "current",
    "durable": "canvas",
    "durable_task": "decorator",
    "fail_callback": "outside",
    "heartbeat_callback": "outside",
    "outbox_table": "outbox.tables",
    "outcome_table": "transactions",
    "publish_event": "named_events",
    "transactional_step": "transactions",
}


def __getattr__(name: str) -> Any:
    """Load a public name, and with it the binding of the process's apps: a worker of steps alone needs that too."""
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    # These have tasks of their own, which belong to the process's apps as any shared task.
    import_module("durable_celery.canvas")
    import_module("durable_celery.foreign")
    import_module("durable_celery.named_events")
    value = getattr(import_module(f"durable_celery.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value
