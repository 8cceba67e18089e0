"""The ways in which a history is replayed in one process; pure, as :mod:`durable_celery.workflow` is.

*Cold*: all events at once, in a new execution, as a worker does that has never seen the run. *Warm*: in pieces, as a
worker sees them that keeps the execution suspended. A cut is made only where such a worker could have stood: every
command of the inputs before the cut stands before it as well, and so does what made ``patched`` give the old side. All
ways must lead to the same place. No local step ever runs: where the code reaches one that history does not have,
history has ended as far as it is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from durable_celery.errors import DurableError, NonDeterminismError, WorkflowCodeError
from durable_celery.events import Output
from durable_celery.workflow import Execution
from durable_celery.workflow.story import ADVICE, describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from durable_celery.codec import Codec
    from durable_celery.events import Recorded
    from durable_celery.workflow import Definition

__all__ = ["COLD", "End", "History", "Mismatch", "replay_all_ways"]

#: How many of the smallest pieces make a batch.
_BATCH = 3

COLD = "from its start"
PIECES = "one turn at a time, as a worker does that keeps it suspended"
BATCHES = "several turns at a time, as a worker does that keeps it suspended"

_PATCH = """\
Open runs that were written like this one will be blocked by this code, with nothing lost, until code that fits is
deployed. Restore the order of commands that this history was written with, or keep both sides in the code: the new one
under `if ctx.patched("name-of-the-change"):`, the old one under `else:`."""
_STATE = """\
From its start this history replays. What differs is that the code ran in this process before: it keeps something
between two runs (a module's variable, a class's, a cache). Keep what a workflow remembers in its own variables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A run's history, complete or up to some point."""

    workflow_id: str
    #: Name of the workflow.
    name: str
    #: From the first event, without gaps.
    events: Sequence[Recorded]
    #: Which execution of the workflow id.
    run: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Where a replay stands at the end of the history."""

    #: Whether the code has ended.
    is_closed: bool
    #: What it waits for, in words.
    waiting: str
    #: The commands that history does not have yet, in words.
    commands: tuple[str, ...]

    def __str__(self) -> str:
        issued = f" after {', '.join(self.commands)}" if self.commands else ""
        return f"{'has ended' if self.is_closed else f'waits for {self.waiting}' if self.waiting else 'waits'}{issued}"


class Mismatch(Exception):  # noqa: N818 - a finding on its way to the report, never seen by users
    """Code and history disagree: in which way of replaying, the story, and what to do."""

    def __init__(self, way: str, story: str, advice: str) -> None:
        super().__init__(way, story, advice)
        self.way, self.story, self.advice = way, story, advice


class _UnrecordedLocalStepError(Exception):
    """The code is about to run a local step that history does not have."""


def replay_all_ways(definition: Definition, history: History, codec: Codec) -> End:
    """Replay a history cold and warm; return where it stands at its end.

    Raises:
        Mismatch: the code does not do what the history says, or not in each way the same.
    """
    end, old_sides = _replay(definition, history, codec, (COLD, [history.events], _PATCH))
    pieces = _pieces(history.events, old_sides)
    batches = [list(chain(*pieces[at : at + _BATCH])) for at in range(0, len(pieces), _BATCH)]
    for way, parts in ((PIECES, pieces), (BATCHES, batches)):
        other, _ = _replay(definition, history, codec, (way, parts, _STATE))
        if other != end:
            raise Mismatch(way, f"At the end of the history the code {other}. {COLD.capitalize()} it {end}.", _STATE)
    return end


def _replay(
    definition: Definition, history: History, codec: Codec, plan: tuple[str, Sequence[Sequence[Recorded]], str]
) -> tuple[End, Sequence[tuple[int, int]]]:
    """Replay in one way: its name, what to feed at a time, what to advise."""
    way, parts, advice = plan
    execution = Execution(definition, history.workflow_id, run=history.run, codec=codec)
    reached_local = False
    try:
        for events in parts:
            execution.feed(events, fresh_after=history.events[-1].seq, before_local=_refuse)
    except _UnrecordedLocalStepError:
        reached_local = True
    except NonDeterminismError as error:
        raise Mismatch(way, error.story.removesuffix(ADVICE).rstrip(), advice) from error
    except WorkflowCodeError as error:
        raise Mismatch(way, str(error), "") from error
    except DurableError as error:
        raise Mismatch(way, f"{type(error).__name__}: {error}", "") from error
    finally:
        waiting, is_closed = execution.waiting, execution.closed
        execution.evict()
    commands = tuple(describe(command, codec) for command in execution.take_outputs() if isinstance(command, Output))
    waiting = "a local step that is not in the history" if reached_local else waiting
    return End(is_closed=is_closed, waiting=waiting, commands=commands), execution.old_sides


def _refuse() -> None:
    raise _UnrecordedLocalStepError


def _pieces(events: Sequence[Recorded], old_sides: Sequence[tuple[int, int]]) -> list[list[Recorded]]:
    """Cut a history wherever a worker could have kept the execution; the smallest such pieces."""
    places = {item.event.number: item.seq for item in events if isinstance(item.event, Output)}
    # Up to which seq an input's consequences reach.
    reaches = {item.event.cause: item.seq for item in events if isinstance(item.event, Output)}
    for cause, number in old_sides:
        reaches[cause] = max(reaches.get(cause, 0), places.get(number, 0))
    pieces: list[list[Recorded]] = [[]]
    reach = 0
    for item in events:
        pieces[-1].append(item)
        reach = max(reach, reaches.get(item.seq, 0))
        if reach <= item.seq:
            pieces.append([])
    return [piece for piece in pieces if piece]
