"""What the tasks of a test were called with, what they did, and what is done in their place."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from durable_celery.current import current_step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from durable_celery.current import StepInfo
    from durable_celery.store.protocol import Store
    from durable_celery.testing.stubs import Script

__all__ = ["Calls", "Execution"]


@dataclass(slots=True, kw_only=True)
class Execution:
    """One time that a task's function was entered."""

    #: Name of the task.
    task: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    #: The step's idempotency key; None where no workflow called the task.
    key: str | None
    #: Which attempt of the step this was, from 1; 0 for no step.
    attempt: int
    #: What it returned.
    result: Any = None
    #: What it raised, or None.
    error: BaseException | None = None


@dataclass(slots=True)
class _Performed:
    """The last act of one step."""

    lost: int
    act: Callable[..., Any] | None


@dataclass(slots=True)
class Calls:
    """Stands between a message and the function of its task."""

    store: Store
    scripts: dict[str, Script] = field(default_factory=dict)
    #: All executions, in their order.
    log: list[Execution] = field(default_factory=list)
    _positions: Counter[str] = field(default_factory=Counter)
    _last: dict[str, _Performed] = field(default_factory=dict)

    def override(self, scripts: Mapping[str, Script]) -> None:
        """Put scripts in the place of tasks; each begins at its start."""
        self.scripts.update(scripts)
        for name in scripts:
            self._positions.pop(name, None)

    def perform(self, name: str, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function of a task, or what stands in its place."""
        step = current_step()
        execution = Execution(
            task=name,
            args=args,
            kwargs=kwargs,
            key=step.key if step else None,
            attempt=step.attempt if step else 0,
        )
        self.log.append(execution)
        try:
            execution.result = (self._act(name, step) or plain)(*args, **kwargs)
        except BaseException as error:
            execution.error = error
            raise
        return execution.result

    def _act(self, name: str, step: StepInfo | None) -> Callable[..., Any] | None:
        """Return what the script says, or None for the real task.

        An attempt that was lost with its process is not an act of its own: the next one does the same again. So a
        script says what the tasks do, however often the system has to ask.
        """
        script = self.scripts.get(name)
        if script is None:
            return None
        lost = 0 if step is None else self._lost(step)
        before = self._last.get(step.key) if step is not None else None
        if before is not None and lost > before.lost:
            before.lost = lost
            return before.act
        act = script.act(self._positions[name])
        self._positions[name] += 1
        if step is not None:
            self._last[step.key] = _Performed(lost, act)
        return act

    def _lost(self, step: StepInfo) -> int:
        run = self.store.get(step.workflow_id)
        return next((one.lost for one in run.steps if one.number == step.step), 0) if run is not None else 0
