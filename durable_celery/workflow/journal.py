"""The journal of one execution: commands get their numbers, and each is held against its record.

A command is written as the output event that records it. If the history holds a record under the command's number,
the two must agree; if not, the command is new and waits to be taken. So replaying and running are the same thing, but
for what is already there.

Invariant: number n is given to the n-th command that the code issued, and no command passes that its history denies.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable

from durable_celery.codec import Codec
from durable_celery.errors import NonDeterminismError
from durable_celery.events import Event, LocalStepFailed, Output, PatchMarked, Recorded, RunContinued
from durable_celery.workflow.story import Line, difference, tell

__all__ = ["Journal"]

#: How many agreeing commands a story shows before the bad one, and how many records after it.
_BEFORE, _AFTER = 4, 2


class Journal:
    """The commands of one run, by number."""

    def __init__(self, workflow_id: str, run: int, codec: Codec) -> None:
        self._workflow_id, self._run, self._codec = workflow_id, run, codec
        #: Number of the next command.
        self.next = 1
        # What history holds and the code has not issued yet, and how many of these each input caused.
        self._records: dict[int, Output] = {}
        self._causes: defaultdict[int, int] = defaultdict(int)
        # What the code issued and history does not hold yet: not taken, and taken but not seen in the log.
        self._pending: dict[int, Output] = {}
        self._unconfirmed: dict[int, Output] = {}
        self._trail: deque[Line] = deque(maxlen=_BEFORE)
        #: Where history decided by going on: the code took the old side of a change, or did not refuse an update. The
        #: input's seq, and the number that the mark would have had.
        self.old_sides: list[tuple[int, int]] = []
        # Deprecated marks that were passed over: the code may ask for them, and need not.
        self._passed: set[str] = set()

    def index(self, events: Iterable[Recorded]) -> list[Event]:
        """Take in the records among events, before any of the inputs is applied.

        Returns:
            The events that are no records of commands that this execution issued itself.

        Raises:
            NonDeterminismError: a record denies a command that this execution issued itself.
        """
        fresh: list[Event] = []
        for recorded in events:
            event = recorded.event
            if isinstance(event, Output):
                if event.number < self.next:
                    self._confirm(event, recorded.seq)
                    continue
                self._records[event.number] = event
                self._causes[event.cause] += 1
            fresh.append(event)
        self._pass_marks()
        return fresh

    def _confirm(self, record: Output, seq: int) -> None:
        issued = self._pending.pop(record.number, None) or self._unconfirmed.pop(record.number, None)
        problem = issued and difference(issued, record)
        if problem:
            where = f"run {self._run}, event {seq} records another command {record.number} than was issued here: "
            raise self._mismatch(where + problem, Line(number=record.number, history=record, code=issued))

    def issue(self, command: Output) -> Output:
        """Hold the next command against its record; return the record, or the command itself where it is new.

        Raises:
            NonDeterminismError: they differ.
        """
        number = self.next
        record = self._records.get(number)
        self._check(command, record)
        self.next += 1
        if record is None:
            self._pending[number] = command
        else:
            del self._records[number]
            self._causes[record.cause] -= 1
        self._trail.append(Line(number, record, command))
        self._pass_marks()
        return record or command

    def holds(self, command: Output) -> bool:
        """Tell whether history has this very command next; where it has another, the code may have been refused it."""
        record = self._records.get(self.next)
        return record is not None and difference(command, record) is None

    @property
    def holds_next(self) -> bool:
        """Whether history has a record of the next command."""
        return self.next in self._records

    @property
    def holds_continuation(self) -> bool:
        """Whether history says that the run goes on as a new one."""
        return any(isinstance(record, RunContinued) for record in self._records.values())

    @property
    def pending(self) -> Iterable[Output]:
        """The new commands that have not been taken."""
        return self._pending.values()

    @property
    def next_digest(self) -> str | None:
        """The digest in the record of the next command, or None."""
        return getattr(self._records.get(self.next), "digest", None)

    def recorded(self, command: Output) -> Output | None:
        """Return the record of the next command, if there is one; it is not issued by that.

        Raises:
            NonDeterminismError: they differ.
        """
        record = self._records.get(self.next)
        self._check(command, record)
        return record

    def patch(self, patch_id: str, cause: int, *, is_deprecated: bool = False) -> bool:
        """Decide whether the code takes the new side of a change; its mark is issued if so.

        A history that goes on without the mark was written by code from before the change, or by code that no longer
        asks. A deprecated mark tells those that still ask, and binds nobody.
        """
        if patch_id in self._passed:
            return True
        record = self._records.get(self.next)
        marked = isinstance(record, PatchMarked) and record.patch_id == patch_id
        if self._records and not marked:
            self.old_sides.append((cause, self.next))
            return False
        self.issue(PatchMarked(number=self.next, cause=cause, patch_id=patch_id, is_deprecated=is_deprecated))
        return True

    def _pass_marks(self) -> None:
        """Step over deprecated marks that come next, so that code which no longer has the call replays."""
        while isinstance(mark := self._records.get(self.next), PatchMarked) and mark.is_deprecated:
            del self._records[self.next]
            self._causes[mark.cause] -= 1
            self._passed.add(mark.patch_id)
            self.next += 1

    def was_refused(self, name: str, cause: int) -> bool | None:
        """Tell whether history has a refusal of this name next; None where it has nothing, so that the code decides.

        A history that goes on otherwise was written by code that did not refuse.
        """
        record = self._records.get(self.next)
        if isinstance(record, LocalStepFailed) and record.name == name:
            return True
        if not self._records:
            return None
        self.old_sides.append((cause, self.next))
        return False

    def settle(self, seq: int) -> None:
        """Check, after the code came to rest on input ``seq``, that it issued all that history says it caused.

        Raises:
            NonDeterminismError: a command is missing.
        """
        if self._causes.pop(seq, 0):
            number = min(number for number, record in self._records.items() if record.cause == seq)
            problem = f"run {self._run}, event {seq}: the code came to rest without command {number} that history has"
            raise self._mismatch(problem, Line(number=number, history=self._records[number], code=None))

    def take(self) -> tuple[Output, ...]:
        """Return the new commands, in order; from now on they count as recorded."""
        taken = tuple(self._pending.values())
        self._unconfirmed |= self._pending
        self._pending.clear()
        return taken

    def confirm(self) -> None:
        """Note that all commands taken so far stand in the log and will not be shown again."""
        self._unconfirmed.clear()

    def _check(self, command: Output, record: Output | None) -> None:
        # A record of a later number means that history holds this place for something else.
        problem = None if record is None else difference(command, record)
        if problem:
            where = f"run {self._run}, event {command.cause}, command {command.number}: "
            raise self._mismatch(where + problem, Line(number=command.number, history=record, code=command))

    def _mismatch(self, problem: str, bad: Line) -> NonDeterminismError:
        before = [line for line in self._trail if line.number < bad.number]
        after = [
            Line(number=number, history=record, code=None)
            for number, record in sorted(self._records.items())
            if number > bad.number
        ][:_AFTER]
        return NonDeterminismError(self._workflow_id, tell(problem, [*before, bad, *after], bad.number, self._codec))
