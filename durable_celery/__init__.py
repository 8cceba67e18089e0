"""Durable execution for Celery: workflows that survive crashes, as ordinary Celery tasks.

The names are loaded when they are used. The ``celery`` command loads the plug-ins of all installed packages, ours among
them, for every app; an app that does not use this library must not get its bootstep by that.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from durable_celery.client import WorkflowHandle
    from durable_celery.current import StepInfo, current_step
    from durable_celery.errors import (
        BatchFailedError,
        ChildCancelledError,
        CompensationError,
        ConfigurationError,
        DurableError,
        ExternalError,
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
        WaitTimeoutError,
        WorkflowCancelled,
        WorkflowClosedError,
        WorkflowConflictError,
        WorkflowNotFoundError,
    )
    from durable_celery.policy import RetryPolicy
    from durable_celery.task import DurableTask, durable_task
    from durable_celery.workflow import AsyncWorkflowContext, BatchResult, Tolerance, WorkflowContext

__all__ = [
    "AsyncWorkflowContext",
    "BatchFailedError",
    "BatchResult",
    "ChildCancelledError",
    "CompensationError",
    "ConfigurationError",
    "DurableError",
    "DurableTask",
    "ExternalError",
    "NonDeterminismError",
    "NonRetryable",
    "RemoteError",
    "RetryAfter",
    "RetryPolicy",
    "SideEffectError",
    "StepCancelled",
    "StepIgnoredError",
    "StepInfo",
    "StepLostError",
    "StepNotOpenError",
    "StepTimeoutError",
    "Tolerance",
    "WaitTimeoutError",
    "WorkflowCancelled",
    "WorkflowClosedError",
    "WorkflowConflictError",
    "WorkflowContext",
    "WorkflowHandle",
    "WorkflowNotFoundError",
    "current_step",
    "durable_task",
]

_HOMES = {
    "AsyncWorkflowContext": "workflow",
    "BatchResult": "workflow",
    "DurableTask": "task",
    "RetryPolicy": "policy",
    "StepInfo": "current",
    "Tolerance": "workflow",
    "WorkflowContext": "workflow",
    "WorkflowHandle": "client",
    "current_step": "current",
    "durable_task": "task",
}


def __getattr__(name: str) -> Any:
    """Load a public name, and with it the binding of the process's apps: a worker of steps alone needs that too."""
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    import_module("durable_celery.task")
    value = getattr(import_module(f"durable_celery.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value
