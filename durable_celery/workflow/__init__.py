"""Workflow code: what it sees (contexts, handles) and what runs it (executions). Replay is a pure function of events.

Here is no Celery, no store, no clock and no I/O. The parts, from below: ``story`` and ``journal`` hold commands
against their records; ``guard``, ``loop`` and ``driver`` run user code; ``machine`` keeps what a run has open;
``verbs`` and ``context`` are what users call; ``execution`` feeds it all with events.
"""

from durable_celery.workflow.context import AsyncWorkflowContext, WorkflowContext, WorkflowInfo
from durable_celery.workflow.definition import Definition
from durable_celery.workflow.execution import Execution, replay
from durable_celery.workflow.handles import Handle, RaceResult, StepHandle
from durable_celery.workflow.logger import WorkflowLogger
from durable_celery.workflow.tasks import TaskLike

__all__ = [
    "AsyncWorkflowContext",
    "Definition",
    "Execution",
    "Handle",
    "RaceResult",
    "StepHandle",
    "TaskLike",
    "WorkflowContext",
    "WorkflowInfo",
    "WorkflowLogger",
    "replay",
]
