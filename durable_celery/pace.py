"""How far the processes of a worker may run ahead: for a time slice, with steps that fit, until they are told not to.

A step that takes longer than its message costs gains nothing by running ahead, and all that wait in the queue would
wait for it. So only steps of tasks that have been quick lately are executed without a message.
"""

from __future__ import annotations

import mmap

__all__ = ["Pace"]

#: What is left of the longest time that a task has taken, after one more execution. A slow one is held against its task
#: for some dozens of quick ones.
_FORGETS = 0.9


class Pace:
    """What the threads of a process know of the time that steps take.

    Args:
        time_slice: For so many seconds one message may bring about step after step; 0 for none.
    """

    def __init__(self, time_slice: float) -> None:
        self.time_slice = time_slice
        #: By task name, in seconds: longer than most of what it took lately.
        self._takes: dict[str, float] = {}
        # Anonymous and shared: what a worker's main process writes is read by the pool processes that it has forked.
        self._halted = mmap.mmap(-1, 1)

    def note(self, task: str, seconds: float) -> None:
        """Learn how long a step of a task took."""
        self._takes[task] = max(seconds, self._takes.get(task, 0.0) * _FORGETS)

    def fits(self, task: str, left: float) -> bool:
        """Tell whether a step of a task is likely to end within so many seconds; of an unknown task it is not."""
        return self._takes.get(task, left) < left and not self._halted[0]

    def halt(self) -> bool:
        """Let no process of this worker run ahead any more; return whether one might have."""
        might = bool(self.time_slice) and not self._halted[0]
        self._halted[0] = 1
        return might
