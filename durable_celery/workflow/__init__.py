"""Workflow code: what it sees (contexts, handles) and what runs it (executions). Replay is a pure function of events.

Here is no Celery, no store, no clock and no I/O. The parts, from below: ``story`` and ``journal`` hold commands
against their records; ``guard``, ``loop`` and ``driver`` run user code; ``machine`` keeps what a run has open;
``verbs``, ``batch``, ``saga`` and the contexts are what users call; ``execution`` feeds it all with events.
"""

from durable_celery.workflow.awaited import AsyncWorkflowContext
from durable_celery.workflow.batch import BatchItem, BatchResult, ItemStatus, Tolerance
from durable_celery.workflow.blocking import WorkflowContext
from durable_celery.workflow.callbacks import Callback
from durable_celery.workflow.context import WorkflowInfo
from durable_celery.workflow.definition import Definition
from durable_celery.workflow.execution import Execution, replay
from durable_celery.workflow.foreign import ForeignTask
from durable_celery.workflow.handlers import Handlers, Query, State, Update
from durable_celery.workflow.handles import Handle, RaceResult, StepHandle
from durable_celery.workflow.logger import WorkflowLogger
from durable_celery.workflow.notes import Note, Stream, read_note
from durable_celery.workflow.tasks import ParentClose, TaskLike
from durable_celery.workflow.typed_signal import Signal
from durable_celery.workflow.updates import UPDATE, is_update

__all__ = [
    "UPDATE",
    "AsyncWorkflowContext",
    "BatchItem",
    "BatchResult",
    "Callback",
    "Definition",
    "Execution",
    "ForeignTask",
    "Handle",
    "Handlers",
    "ItemStatus",
    "Note",
    "ParentClose",
    "Query",
    "RaceResult",
    "Signal",
    "State",
    "StepHandle",
    "Stream",
    "TaskLike",
    "Tolerance",
    "Update",
    "WorkflowContext",
    "WorkflowInfo",
    "WorkflowLogger",
    "is_update",
    "read_note",
    "replay",
]
