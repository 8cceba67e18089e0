"""A whole system in one thread: worker processes, a broker and a store, where nothing happens but by a call.

The engine, the workflow room and the memory store are the real ones. The broker is a list that a test may lose from,
repeat and shuffle; the clock goes when it is told to; a process is an engine with a name, which may be killed at any
store call, in a step, in a local step or in a delivery. So each history is repeatable.

What goes wrong, and when, is not decided here: tests do that with the hooks of :mod:`durable_celery.testing.watch`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar, cast

from durable_celery.codec import Codec, Place, place_of
from durable_celery.engine import Ending, Engine, Patience
from durable_celery.engine.starting import start_run
from durable_celery.errors import (
    CompleteLater,
    DurableError,
    StepCancelled,
    StoreUnavailableError,
    WorkflowClosedError,
    WorkflowCodeError,
    WorkflowNotFoundError,
)
from durable_celery.events import (
    CancelRequested,
    Recorded,
    RunCompleted,
    SignalReceived,
    StepCompleted,
    TerminalEvent,
)
from durable_celery.store.memory import MemoryStore
from durable_celery.store.protocol import (
    Claim,
    NewRun,
    RunMessage,
    RunRecord,
    RunStatus,
    Started,
    StepKey,
    StepMessage,
    Store,
    Timing,
)
from durable_celery.testing.surroundings import CLIENT, EPOCH, TICK, Clock, Message, OpenStore, Publisher, Task
from durable_celery.testing.watch import Crash, Watch, WatchedStore
from durable_celery.workflow import Definition, Handlers

__all__ = [
    "CLIENT",
    "EPOCH",
    "TICK",
    "Clock",
    "Message",
    "OpenStore",
    "Process",
    "Publisher",
    "Task",
    "World",
    "crash_in",
    "mortal",
]

T = TypeVar("T")


class Process:
    """A worker process with one slot: its own engine, hence its own cache."""

    def __init__(self, world: World, name: str) -> None:
        """Begin to live, with an empty cache."""
        self.world, self.name, self.is_alive = world, name, True
        #: The claim of the step that it executes now.
        self.claim: Claim | None = None
        self.engine = Engine(
            cast("Store", WatchedStore(world.store, world.watch, self)),
            Publisher(world.broker),
            world.definition,
            process=lambda: self.name,
            codec=world.codec,
            cache_size=world.cache_size,
            lost_attempts=world.lost_attempts,
            patience=Patience(world.patience, world.clock.advance, world.clock.seconds, background=False),
        )
        self.engine.ahead = self
        #: The step that it executes next, without a message.
        self.next: tuple[StepMessage, Claim] | None = None
        #: The end that it delivers next, without a message.
        self.ended: Ending | None = None

    def handle(self, message: Message) -> None:
        """Do what a worker does with a message."""
        with mortal(self):
            if isinstance(message, RunMessage):
                self._turn(message.workflow_id)
            else:
                self._step(message)
        while self.is_alive and (self.next is not None or self.ended is not None):
            with mortal(self):
                if self.ended is not None:
                    ended, self.ended = self.ended, None
                    self._end(ended)
                elif self.next is not None:
                    (ahead, claim), self.next = self.next, None
                    self._execute(ahead, claim)

    def may(self, _: StepMessage) -> bool:
        """See :meth:`Ahead.may`."""
        return self.world.runs_ahead and self.next is None

    def take(self, message: StepMessage, claim: Claim) -> None:
        """See :meth:`Ahead.take`."""
        self.next = message, claim

    def may_deliver(self, _: RunMessage) -> bool:
        """See :meth:`Ahead.may_deliver`."""
        return self.world.runs_ahead

    def deliver(self, ending: Ending) -> None:
        """See :meth:`Ahead.deliver`."""
        self.ended = ending

    def beat(self, *gone: str) -> None:
        """Renew, sweep, and do what waited for the store: the heart of the worker's main process."""
        with mortal(self):
            self.engine.store.renew([self.name], gone)
            if gone:
                self.engine.store.hasten(oldest=3, newest=1)
            self.engine.sweep()
            self.engine.patience.work_off()

    def crash(self) -> NoReturn:
        """End this process where it stands; to be called by whatever runs in it."""
        self.is_alive = False
        raise Crash

    def _turn(self, workflow_id: str) -> None:
        ending = self.engine.take_turn(workflow_id)
        if ending is not None:
            self._end(ending)

    def _end(self, ending: Ending) -> None:
        self.world.on_delivery(self, ending)
        self.world.deliveries.append((ending.run.workflow_id, ending.event))
        self.engine.delivered(ending)

    def _step(self, message: StepMessage) -> None:
        claim = self.engine.begin_step(message.key, go_on=self.world.go_on)
        if isinstance(claim, Claim):
            self._execute(message, claim)

    def _execute(self, message: StepMessage, claim: Claim) -> None:
        world, self.claim = self.world, claim
        world.executions[str(message.key)] += 1
        kind, key = "override" if message.override else "call", message.key
        place = key.place(kind)
        args, kwargs = world.codec.decode(message.override or message.scheduled.payload, place)
        world.running = self
        try:
            result = world.tasks[message.scheduled.task](*args, **kwargs)
        except CompleteLater:
            self.engine.postpone_step(claim, delay=None, error="")
        except StepCancelled:
            pass  # its heartbeat found the claim gone
        except Exception as error:  # noqa: BLE001 - as the worker does
            self.engine.fail_step(claim, error, go_on=world.go_on)
        else:
            self.engine.complete_step(claim, result, go_on=world.go_on)


class mortal:  # noqa: N801 - reads as a statement
    """Ends the process at a crash; an engine's verb that gave up is a failed Celery task, and no more."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def __enter__(self) -> None:
        self.process.world.running = self.process

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        if kind is Crash:
            self.process.is_alive = False
        return kind in {Crash, StoreUnavailableError}


class World:
    """All of it. A test makes tasks and flows, starts runs, and lets the system run; or moves each part itself."""

    #: What the worker processes are.
    process_type: type[Process] = Process

    def __init__(
        self,
        *,
        processes: int = 2,
        cache_size: int = 100,
        lost_attempts: int = 3,
        patience: float = 30.0,
        go_on: bool = True,
        timing: Timing | None = None,
        make_store: Callable[[Timing, Clock], OpenStore] = MemoryStore,
        codec: Codec | None = None,
    ) -> None:
        """Set up an idle system.

        Args:
            processes: how many worker processes there are.
            cache_size: how many suspended executions each keeps.
            lost_attempts: after how many lost processes a step without a retry policy fails.
            patience: how many seconds the engine repeats a verb of a store that is away.
            go_on: whether the process that finished a step goes on with its run.
            timing: the waits of the store.
            make_store: makes the store, under the clock of this world.
            codec: writes and reads payloads; a process has the one that the world had when it was born.
        """
        self.clock, self.watch, self.codec = Clock(), Watch(), codec or Codec()
        self.store: OpenStore = make_store(timing or Timing(), self.clock)
        self.cache_size, self.lost_attempts, self.patience, self.go_on = cache_size, lost_attempts, patience, go_on
        #: Whether a process executes the only step that its turn has scheduled itself, without a message.
        self.runs_ahead = False
        self.tasks: dict[str, Task] = {}
        self.flows: dict[tuple[str, int], Task] = {}
        self.broker: deque[Message] = deque()
        #: How often each step's function was entered, by its key.
        self.executions: Counter[str] = Counter()
        self.deliveries: list[tuple[str, TerminalEvent]] = []
        #: Runs whose start was acknowledged, and signals that were: (workflow id, name, value).
        self.acknowledged: list[str] = []
        self.signals: list[tuple[str, str, Any]] = []
        #: What is called with (process, ending) where Celery would store the result and fire callbacks.
        self.on_delivery: Callable[[Process, Ending], object] = lambda _process, _ending: None
        #: The process whose code runs now.
        self.running: Process
        self._actions: list[tuple[int, Callable[[], object]]] = []
        self._lives = Counter[int]()
        self._signal_keys: set[tuple[str, str]] = set()
        self.is_alive, self.name = True, CLIENT
        self.client = cast("Store", WatchedStore(self.store, self.watch, self))
        self.processes = [self._born(slot) for slot in range(processes)]

    # -- code --------------------------------------------------------------------------------------------------------

    def task(self, function: Callable[..., Any], name: str | None = None) -> Task:
        """Register a function as a Celery task."""
        return self._register(Task(name or function.__name__, function))

    def flow(
        self,
        function: Callable[..., Any],
        name: str | None = None,
        *,
        version: int = 1,
        handlers: Handlers | None = None,
    ) -> Task:
        """Register a function as a durable task; again under the same name and version, it is a new deploy."""
        task = Task(name or function.__name__, function, is_durable=True, version=version, handlers=handlers)
        self.flows[task.name, version] = task
        return self._register(task)

    def _register(self, task: Task) -> Task:
        self.tasks[task.name] = task
        return task

    def definition(self, name: str, version: int = 1) -> Definition:
        """Return the code of a version of a durable task.

        Raises:
            WorkflowCodeError: it is not registered.
        """
        if name not in self.tasks:
            raise WorkflowCodeError(f"{name} is not registered")
        if (name, version) not in self.flows:
            raise WorkflowCodeError(f"version {version} of {name} is not registered")
        task = self.flows[name, version]
        return Definition(name=name, function=task.function, version=version, handlers=task.handlers)

    # -- what clients do ---------------------------------------------------------------------------------------------

    def start(self, flow: Task, *args: Any, id: str = "w", **waits: Any) -> Started:  # noqa: A002 - Celery's word
        """Start a run, as ``apply_async`` does; a client that gets no answer repeats it."""
        place = Place(id, "start")
        text = self.codec.dumps([list(args), {}], "arguments")
        payload = self.codec.seal(text, place)
        new = NewRun(workflow_id=id, name=flow.name, version=flow.version, payload=payload, digest="", **waits)
        started = self._insist(lambda: start_run(self.client, new, self.codec.digests(text, place)))
        self.acknowledged.append(id)
        self._publish(started.message)
        return started

    def signal(self, name: str, value: Any = None, *, id: str = "w", key: str | None = None) -> None:  # noqa: A002
        """Send a signal; a client that gets no answer repeats it with the same key."""
        place = Place(id, "signal", run=0, name=name)
        event = SignalReceived(name=name, payload=self.codec.encode(value, "signal", place))
        chosen = f"signal:{key or len(self.signals)}"
        answer = self._insist(lambda: self.client.append(id, event, key=chosen))
        if (id, chosen) not in self._signal_keys:
            self._signal_keys.add((id, chosen))
            self.signals.append((id, name, value))
        self._publish(answer.message)

    def complete(self, key: StepKey, result: Any) -> None:
        """Tell a step's result from outside; whether it is still wanted is up to the store."""
        payload = self.codec.encode(result, "result", key.place("outcome"))
        outcome = StepCompleted(number=key.number, attempt=0, payload=payload)
        self._publish(self._insist(lambda: self.client.finish(key, outcome, token=None)).message)

    def cancel(self, id: str = "w") -> None:  # noqa: A002
        """Ask a run to stop."""
        try:
            answer = self._insist(lambda: self.client.append(id, CancelRequested(reason="asked"), key="cancel:test"))
        except WorkflowClosedError:
            return
        self._publish(answer.message)

    def at(self, seconds: float, action: Callable[[], object]) -> None:
        """Do something when the clock has gone on by ``seconds``, while the system runs by itself."""
        self._actions.append((self.clock.now + round(seconds * 1000), action))
        self._actions.sort(key=lambda item: item[0])

    def hurry(self) -> None:
        """Do the next thing that was planned for later now."""
        if self._actions:
            self._actions.pop(0)[1]()

    def _insist(self, verb: Callable[[], T]) -> T:
        while True:
            try:
                return verb()
            except (StoreUnavailableError, Crash):
                self.is_alive = True

    def _publish(self, message: RunMessage | None) -> None:
        if message is not None:
            self.broker.append(message)

    # -- looking -----------------------------------------------------------------------------------------------------

    def record(self, id: str = "w") -> RunRecord:  # noqa: A002
        """Return the record of a run."""
        record = self.store.get(id)
        if record is None:
            raise WorkflowNotFoundError(id)
        return record

    def history(self, id: str = "w", run: int | None = None) -> list[Recorded]:  # noqa: A002
        """Return all events of a run: the newest, or the one with this number."""
        return self.store.history(id, run=run, limit=1_000_000)

    def histories(self, id: str = "w") -> dict[int, list[Recorded]]:  # noqa: A002
        """Return the events of each run whose log is there, by their numbers."""
        runs = {run: self.history(id, run) for run in range(1, self.record(id).run + 1)}
        return {run: history for run, history in runs.items() if history}

    def kinds(self, id: str = "w", run: int | None = None) -> list[str]:  # noqa: A002
        """Return the names of the events of a run."""
        return [type(item.event).__name__ for item in self.history(id, run)]

    def outcome(self, id: str = "w") -> tuple[RunStatus, Any]:  # noqa: A002
        """Return a run's status, and its result, or what it failed with as text."""
        record, last = self.record(id), self.history(id)[-1].event
        if isinstance(last, RunCompleted):
            return record.status, self.codec.decode(last.payload, place_of(last, id))
        if not record.status.is_closed:
            return record.status, None
        return record.status, self.codec.decode(last.payload, place_of(last, id))["message"]

    @property
    def pending(self) -> Mapping[tuple[str, str, int], int]:
        """What the agenda holds besides the lives of processes and retention."""
        return {entry: due for entry, due in self.store.agenda.items() if entry[0] not in {"owner", "retention"}}

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing will ever happen again by itself."""
        is_still = all(process.is_alive and process.engine.patience.is_idle for process in self.processes)
        return is_still and not (self.broker or self.pending or self.store.held or self._actions)

    # -- the system by itself ----------------------------------------------------------------------------------------

    def deliver(self, slot: int = 0) -> None:
        """Let a process handle the oldest message."""
        self.processes[slot].handle(self.broker.popleft())

    def drain(self, slot: int = 0) -> None:
        """Let one process handle all messages, without time passing."""
        while self.broker:
            self.deliver(slot)

    def run(self, *, until: Callable[[], bool] | None = None, seconds: float = 1200.0) -> None:
        """Let everything happen that happens by itself, until nothing is left, or until a condition holds."""
        end = self.clock.now + round(seconds * 1000)
        turn = 0
        while not (until() if until else self.is_at_rest):
            if self.clock.now >= end:
                raise DurableError(f"after {seconds:g} s the system is not at rest\n{self.story()}")
            self.revive()
            if self.broker:
                turn += 1
                self.deliver(turn % len(self.processes))
            else:
                self.pass_time()

    def pass_time(self) -> None:
        """Let hearts beat and the clock go to what is due next, by a tick at most."""
        for process in self.processes:
            process.beat()
        dues = [*self.pending.values(), *(due for due, _ in self._actions[:1])]
        wait = (min(dues) - self.clock.now) / 1000 if dues else TICK
        if not self.broker:
            self.clock.advance(min(TICK, max(0.0, wait)))
        while self._actions and self._actions[0][0] <= self.clock.now:
            self._actions.pop(0)[1]()

    def revive(self) -> None:
        """Put a new process in the place of each dead one."""
        for slot, process in enumerate(self.processes):
            if not process.is_alive:
                process.engine.cache.clear()
                self.processes[slot] = self._born(slot)

    def kill(self, slot: int) -> None:
        """Let a process die between two messages."""
        self.processes[slot].is_alive = False

    def _born(self, slot: int) -> Process:
        self._lives[slot] += 1
        return self.process_type(self, f"p{slot}.{self._lives[slot]}")

    def story(self) -> str:
        """Say what there is, for a test that fails."""
        lines = [f"clock +{(self.clock.now - EPOCH) / 1000:g} s, agenda {self.pending}, held {self.store.held}"]
        for name in self.store.run_table:
            lines.append(str(self.record(name)))
            lines += [f"  {run} {item}" for run, history in self.histories(name).items() for item in history]
        return "\n".join([*lines, *map(str, self.broker), *self.watch.tail()])


def crash_in(world: World) -> Callable[[], NoReturn]:
    """Return a function that ends the process in which it is called."""

    def crash() -> NoReturn:
        world.running.crash()

    return crash
