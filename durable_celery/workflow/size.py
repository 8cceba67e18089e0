"""How large a history is, as workflow code may know it and as the engine limits it.

Code that asks gets the size up to the input that it reacts to, so a replay tells it the same, whatever the batches were
and whoever wrote what stands there.
"""

from __future__ import annotations

from collections.abc import Iterable

from durable_celery.events import Event, Output, Recorded

__all__ = ["SUGGESTED_BYTES", "SUGGESTED_EVENTS", "HistorySize", "weight"]

#: From here on a run is told that it might continue as new: well before anybody is warned. No settings, because code
#: decides by them: another value is another history. To change one is a change of the form of histories.
SUGGESTED_EVENTS, SUGGESTED_BYTES = 5_000, 5 * 1024 * 1024
#: About what an event takes besides its payload, in bytes.
_HEADER = 60


def weight(events: Iterable[Event]) -> int:
    """Return about how many bytes events take in the store."""
    return sum(map(_weight, events))


def _weight(event: Event) -> int:
    return _HEADER + len(event.payload or "")


class HistorySize:
    """The size of one history as far as it was seen."""

    def __init__(self) -> None:
        #: Seq of the last event that was seen.
        self.events = 0
        #: Bytes of all events up to it.
        self.bytes = 0
        # Commands that were issued and taken, and have not been seen in the log: number -> bytes.
        self._issued: dict[int, int] = {}

    @property
    def suggests_continuing(self) -> bool:
        """Whether a run of this size should go on as a new one."""
        return self.events >= SUGGESTED_EVENTS or self.bytes >= SUGGESTED_BYTES

    def see(self, recorded: Recorded) -> None:
        """Count an event of the log."""
        self.events = recorded.seq
        self.bytes += _weight(recorded.event)
        if self._issued and isinstance(recorded.event, Output):
            self._issued.pop(recorded.event.number, None)

    def issue(self, outputs: Iterable[Output]) -> None:
        """Count commands on their way to the log."""
        self._issued |= {output.number: _weight(output) for output in outputs}

    def confirm(self, seq: int) -> None:
        """Note that the log ends at ``seq``, and holds all commands on their way; they will not be seen."""
        self.events = seq
        self.bytes += sum(self._issued.values())
        self._issued.clear()

    def with_outputs(self, outputs: Iterable[Output]) -> tuple[int, int]:
        """Return how many events and bytes there will be when these, and all that is on its way, are in the log."""
        coming = list(outputs)
        events = self.events + len(self._issued) + len(coming)
        return events, self.bytes + sum(self._issued.values()) + weight(coming)
