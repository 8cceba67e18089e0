"""The moves of a history: what happens next, and what goes wrong. Each is a function of the history it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from durable_celery.errors import WorkflowConflictError
from durable_celery.events import StepScheduled
from durable_celery.store.protocol import RunMessage, StepKey, StepMessage
from tests.simulation.chance import Stream
from tests.simulation.faults import Aimed, Brittle, Pause
from tests.simulation.system import Worker

if TYPE_CHECKING:
    from tests.simulation.chaos import Chaos


def end(chaos: Chaos) -> None:
    """Make no more moves."""


def deliver(chaos: Chaos) -> None:
    """Let a process handle the oldest message, or time pass."""
    world = chaos.world
    free = world.free_workers()
    if not free:
        wake(chaos)
    elif not world.broker:
        if world.delayed:
            world.broker.append(world.delayed.pop())
        else:
            chaos.say("time passes")
            world.pass_time()
    else:
        worker = chaos.chance.moves.pick(free)
        if chaos.narrate is not None:
            chaos.narrate(f"{worker.name} gets {_words(world.broker[0])}")
        worker.handle(world.broker.popleft())


def beat(chaos: Chaos) -> None:
    free = chaos.world.free_workers()
    if free:
        worker = chaos.chance.moves.pick(free)
        chaos.did("beat", f"of {worker.name}")
        worker.beat()


def reorder(chaos: Chaos) -> None:
    if len(chaos.world.broker) > 1:
        chaos.did("broker reorders")
        chaos.world.broker.rotate(1 + chaos.chance.moves.below(len(chaos.world.broker) - 1))


def lose(chaos: Chaos) -> None:
    if chaos.world.broker:
        chaos.did("broker loses", _words(chaos.world.broker.popleft()))


def refuse(chaos: Chaos) -> None:
    """Let the broker be away for the next attempts to publish."""
    chaos.world.refusals = 1 + chaos.chance.moves.below(5)
    chaos.did("broker is away", f"for {chaos.world.refusals} attempts")


def duplicate(chaos: Chaos) -> None:
    if chaos.world.broker:
        message = chaos.chance.moves.pick(list(chaos.world.broker))
        chaos.did("broker repeats", _words(message))
        chaos.world.broker.append(message)


def delay(chaos: Chaos) -> None:
    if chaos.world.broker:
        message = chaos.world.broker.popleft()
        chaos.did("broker delays", _words(message))
        chaos.world.delayed.append(message)


def kill(chaos: Chaos) -> None:
    worker = _anybody(chaos)
    chaos.did("kill", worker.name)
    worker.is_alive = False


def bury(chaos: Chaos) -> None:
    """Let a process that knows of a death say so."""
    worker = _anybody(chaos)
    chaos.did("kill", f"{worker.name}, and its host knows")
    worker.is_alive = False
    chaos.world.revive()
    free = chaos.world.free_workers()
    if free:
        free[0].beat(worker.name)


def die_inside(chaos: Chaos) -> None:
    """Let a process die in the next step, local step or delivery."""
    chaos.did("death to come", "in the next user code")
    chaos.deaths_to_come += 1


def jump(chaos: Chaos) -> None:
    """Let time pass in which no heart beats."""
    seconds = chaos.chance.moves.pick((11, 0.3, 4, 25, 400))
    chaos.did("clock jumps", f"{seconds} s")
    chaos.world.clock.advance(seconds)


def fault(chaos: Chaos) -> None:
    moves = chaos.chance.moves
    number = chaos.world.watch.count + 1 + moves.below(6)
    fault = Brittle(chaos, moves.below(4), number, moves.pick((0, 0, 2)))
    chaos.world.watch.hooks.append(fault)


def aim(chaos: Chaos) -> None:
    """Let the next call of a verb go wrong, and some after it."""
    moves = chaos.chance.moves
    fault = Aimed(chaos, moves.below(4), moves.pick(AIMED_AT), moves.pick((0, 2, 8)))
    chaos.world.watch.hooks.append(fault)


def pause(chaos: Chaos) -> None:
    """Let whoever next makes a certain call stand still before or after it."""
    moves = chaos.chance.moves
    chaos.world.may_pause = True
    pause = Pause(chaos, moves.pick(PAUSED_AT), is_after=moves.below(2) == 0, is_frozen=moves.below(3) > 0)
    chaos.world.watch.hooks.append(pause)


def wake(chaos: Chaos) -> None:
    """Let a process that stands still go on."""
    standing = chaos.world.standing()
    if standing:
        worker = chaos.chance.moves.pick(standing)
        chaos.did("goes on", worker.name)
        worker.go_on()


def outlive(chaos: Chaos) -> None:
    """Let the lives of those who stand frozen end, and another worker notice."""
    if any(worker.is_frozen for worker in chaos.world.standing()):
        chaos.did("a frozen process is given up")
        chaos.world.clock.advance(11)
        beat(chaos)


def hurry(chaos: Chaos) -> None:
    """Let clients do what they were to do later."""
    chaos.world.hurry()


def start_again(chaos: Chaos) -> None:
    """Start the run once more: the same arguments find it, others are refused (I7)."""
    world, flow = chaos.world, chaos.code.forms[chaos.form]
    chaos.did("client starts again")
    if world.start(flow, chaos.tree, **chaos.waits).created:
        chaos.require(["I7: a second start made a run"])
    try:
        world.start(flow, ["another"])
    except WorkflowConflictError:
        return
    chaos.require(["I7: a start with other arguments was not refused"])


def forge(chaos: Chaos) -> None:
    """Put messages into the broker that nobody has sent (I14): a wake-up, or a step that no run has."""
    chaos.did("forged message")
    moves, broker = chaos.chance.moves, chaos.world.broker
    scheduled = StepScheduled(number=1, cause=1, task="plus", digest="", payload="[[0],{}]")
    key = StepKey(
        workflow_id=moves.pick(("w", "w/1.1", "nobody")), run=1 + moves.below(2), number=1000 + moves.below(9)
    )
    if moves.below(2):
        broker.append(StepMessage(key=key, scheduled=scheduled, workflow="blocking", envelope="{}"))
    else:
        broker.append(RunMessage(workflow_id=key.workflow_id, name="blocking", envelope="{}", created_at=0))


def _anybody(chaos: Chaos) -> Worker:
    return chaos.chance.moves.pick(chaos.world.processes)


Move = Callable[["Chaos"], None]
#: The first is the plainest; how often one stands here says how often it is made.
MOVES: tuple[Move, ...] = (
    end,
    *[deliver] * 60,
    *[beat] * 4,
    *[reorder] * 6,
    *[wake] * 8,
    *[pause] * 8,
    *[fault] * 6,
    *[aim] * 6,
    *[outlive] * 6,
    *[lose, duplicate, jump, hurry] * 3,
    *[kill, delay, refuse] * 2,
    *[die_inside] * 3,
    *[bury, start_again, forge],
)
#: What goes wrong, once each.
TROUBLE = (
    *[reorder, pause, fault, aim, lose, duplicate, jump, hurry],
    *[kill, delay, refuse, die_inside, bury, start_again, forge],
)
#: Verbs at which a fault is aimed: those oftener that are called in fewer histories.
AIMED_AT = (
    *["finish", "postpone"] * 4,
    *["claim"] * 2,
    *["take", "commit", "deliver", "release", "settle", "start", "append", "sweep"],
)
#: Where a process may stand still; most races are about the first ones.
PAUSED_AT = (
    *["take", "commit", "finish", "settle"] * 3,
    *["claim", "start", "append", "deliver", "release", "postpone", "sweep", "renew"],
)


def table_of(shape: Stream) -> tuple[Move, ...]:
    """Return the moves of a history: in every second one only some kinds of trouble, and more of each.

    Faults that are rare together are found sooner where others do not come between them ("swarm testing").
    """
    if not shape.below(2):
        return MOVES
    chosen = [trouble for trouble in TROUBLE if shape.below(3) == 0]
    return (end, *[deliver] * 40, *[beat] * 4, *[wake] * 6, *[outlive] * 3, *chosen * 8)


def _words(message: RunMessage | StepMessage) -> str:
    """Return a message in a few words."""
    if isinstance(message, RunMessage):
        return f"the message of run {message.workflow_id}"
    told = " (cancel)" if message.cancel else ""
    return f"the message of step {message.key} ({message.scheduled.task}){told}"
