"""``durable``: a canvas as a workflow of its own, by one changed line.

Invariant: the signature is an argument of the run, so each replay reads the very same one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.canvas import Signature

from durable_celery.decorator import durable_task
from durable_celery.errors import UnknownTaskError

if TYPE_CHECKING:
    from durable_celery.handle import WorkflowHandle
    from durable_celery.workflow import WorkflowContext

    class DurableSignature(Signature):
        """A signature that starts a run, as type checkers see it."""

        def delay(self, *args: Any, **kwargs: Any) -> WorkflowHandle[Any]: ...
        def apply_async(self, *args: Any, **options: Any) -> WorkflowHandle[Any]: ...


__all__ = ["durable"]


@durable_task(name="durable_celery.canvas")
def canvas(ctx: WorkflowContext, /, *given: Any, signature: dict[str, Any], **more: Any) -> Any:
    """Do a canvas whose signature comes as plain JSON; what is given besides goes to its first tasks."""
    return ctx.step(signature, *given, **more)


def durable(signature: Signature) -> DurableSignature:
    """Return the signature of a workflow that does a canvas: ``durable(chain(a.s(1), b.s())).delay()``.

    Its ``delay`` and ``apply_async`` return a :class:`~durable_celery.WorkflowHandle`. Like any signature it may be
    part of another canvas, whose results then go to the first tasks of this one. (client, step)

    Raises:
        UnknownTaskError: it is given something else.
    """
    if not isinstance(signature, Signature):
        raise UnknownTaskError(f"durable() takes a signature, such as task.s(1) or chain(...), not {signature!r}")
    task: Any = signature.app.tasks[canvas.name]
    workflow: DurableSignature = task.s(signature=_plain(signature))
    return workflow


def _plain(value: Any) -> Any:
    """Return a signature as JSON would have it: without classes of Celery, and with its generators read.

    Which of its tasks are durable is said in it, so that the run does not depend on who knows them.
    """
    if isinstance(value, dict):
        form = {key: _plain(item) for key, item in value.items()}
        if isinstance(value, Signature) and value.task in value.app.tasks:
            form |= {"durable": True} if getattr(value.type, "is_durable", False) else {}
        return form
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
