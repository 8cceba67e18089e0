"""One app as a whole system in one thread: its tasks, a store, a broker and a worker, under a clock that a test moves.

Engine, client, durable tasks, step wrapping and dispatching are the real ones. Only what stands outside of a process
is replaced: the store is the one in memory, messages stay in a list, and nothing happens unless a verb lets it.

Invariant: the clock goes on only when nothing can happen at its present time.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from durable_celery.app import Binding
from durable_celery.client import Client
from durable_celery.codec import check_id
from durable_celery.engine import Engine, Patience
from durable_celery.errors import DurableError, InvalidRequestError, NonDeterminismError
from durable_celery.store.memory import MemoryStore
from durable_celery.store.protocol import Timing
from durable_celery.testing.broker import Broker
from durable_celery.testing.calls import Calls
from durable_celery.testing.loan import Loan
from durable_celery.testing.results import LocalBackend
from durable_celery.testing.watch import Crash, WatchedStore
from durable_celery.testing.world import Clock
from durable_celery.timeline import timeline
from durable_celery.workflow import Definition
from durable_celery.workflow.execution import replay
from durable_celery.workflow.foreign import OUTCOME
from durable_celery.workflow.named_events import EVENT, WAIT

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

    from durable_celery.engine.turn import TurnDriver
    from durable_celery.events import Recorded
    from durable_celery.offsets import Offset
    from durable_celery.relay import Relay
    from durable_celery.store.protocol import RunRecord, StepKey, Store
    from durable_celery.testing.watch import Watch
    from durable_celery.workflow import WorkflowContext

__all__ = ["NothingLeftError", "System", "plain_app"]

#: After how many messages without an end a run is taken for one that never ends.
_ENDLESS = 10_000
#: Up to how many events a history is replayed from its start at each turn. Longer ones would cost their square.
_SHORT = 200
_WARM = 500
#: How many histories of waiting runs a story has.
_TOLD = 3
_FOR_EVER = 1000 * 365 * 86400.0
_SAME_CODE = """\
In this test it is the same code that did two different things: each turn is replayed from the start of the history.
Look for what is not the same twice (random, the wall clock, uuid4, the order of a set, a global that changes), and use
ctx.random, ctx.now(), ctx.uuid4() or a step in its place."""
#: Entries of the agenda that nobody waits for.
_BACKGROUND = frozenset({"owner", "retention"})
#: Steps that look again and again for what somebody else has to do, and after how many looks nobody will.
_LOOKS, _PATIENT = frozenset({WAIT, OUTCOME}), 10


class NothingLeftError(DurableError, AssertionError):
    """A run waits for something that will never happen by itself."""


class System:
    """The parts of one environment, and the loop that lets them go on."""

    def __init__(
        self, app: Celery, *, now: datetime | None = None, cold: bool = True, watch: Watch | None = None
    ) -> None:
        """Borrow an app; :meth:`close` gives it back.

        Args:
            app: the user's app.
            now: where the clock begins; default is the present, in whole seconds.
            cold: replay each turn from the start of the history, and the whole history at the end.
            watch: sees all calls of the worker's engine to the store.
        """
        self.cold, self.watch = cold, watch
        self.clock = Clock()
        self.clock.now = _milliseconds(now or datetime.now(UTC).replace(microsecond=0))
        # A lost message comes again soon, so that a fault costs the workflow's timeouts little. Nothing is forgotten.
        self.store = MemoryStore(Timing(resend_after=1.0, retention=_FOR_EVER), self.clock)
        self.calls = Calls(self.store)
        self.binding = LocalBinding(app, self)
        self.broker = Broker(self.clock, self.is_durable)
        self.errors: list[Exception] = []
        #: What tells this system from others in what its steps leave in a database.
        self.id = uuid4().hex[:12]
        self._relay: Relay | None = None
        #: The worker's name changes with each of its lives.
        self.name, self.lives = "worker-1", 1
        self.is_busy = False
        self.engine = self._engine()
        self._loan = Loan(
            self.binding,
            backend=LocalBackend(app, self.run_until),
            calls=self.calls,
            now=lambda: self.now,
        )
        self._loan.begin(self.broker)

    def close(self) -> None:
        """Give the app back. Runs that have not ended are forgotten."""
        self.engine.cache.clear()
        self._loan.end()

    @property
    def now(self) -> datetime:
        """The time of the test."""
        return datetime.fromtimestamp(self.clock.now / 1000, UTC)

    def is_durable(self, name: str) -> bool:
        """Tell whether a name is that of a durable task."""
        return bool(getattr(self.binding.app.tasks.get(name), "is_durable", False))

    def definition(self, name: str, version: int) -> Definition:
        """Return the code of a workflow, or what stands in its place."""
        if name not in self.calls.scripts:
            return Binding.definition(self.binding, name, version)

        def overridden(ctx: WorkflowContext, /, *args: Any, **kwargs: Any) -> Any:
            return ctx.options(name=f"in the place of {name}").run(self._stand_in(name), *args, **kwargs)

        return Definition(name=name, function=overridden)

    def _stand_in(self, name: str) -> Callable[..., Any]:
        def act(*args: Any, **kwargs: Any) -> Any:
            return self.calls.perform(name, _no_code, args, kwargs)

        return act

    # -- letting things happen ---------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Let everything happen that can happen at the present time.

        Raises:
            NonDeterminismError, SideEffectError, WorkflowCodeError: a run is blocked.
        """
        __tracebackhide__ = True
        if self.is_busy:
            raise DurableError("the environment is at work: a step or a workflow cannot let the system run")
        self.is_busy = True
        try:
            for _ in range(_ENDLESS):
                if not self._do_next():
                    return
        finally:
            self.is_busy = False
        raise NothingLeftError(f"{_ENDLESS} messages without any time passing: something never ends\n{self.standing()}")

    def run_until(self, is_done: Callable[[], bool], seconds: float | None = None) -> bool:
        """Let the system run, time included, until ``is_done()``; give up after ``seconds`` of the test's clock.

        Raises:
            NothingLeftError: without a limit, and nothing will ever happen again.
        """
        __tracebackhide__ = True
        end = None if seconds is None else self.clock.now + round(seconds * 1000)
        for _ in range(_ENDLESS):
            self.settle()
            if is_done():
                return True
            if not self.pass_time(end):
                if end is None:
                    raise NothingLeftError(self.what_waits())
                self.clock.now = max(self.clock.now, end)
                return False
        raise NothingLeftError(f"the clock was moved {_ENDLESS} times, and it goes on for ever\n{self.standing()}")

    def pass_time(self, end: int | None = None) -> bool:
        """Move the clock to what is due next; tell whether there was such a thing up to ``end``."""
        agenda = {entry: due for entry, due in self.store.agenda.items() if entry[0] not in _BACKGROUND}
        dues = list(agenda.values())
        if self.broker.next_at is not None:
            dues.append(self.broker.next_at)
        elif end is None and all(map(self._is_idle_look, agenda)):
            return False
        if not dues or (end is not None and min(dues) > end):
            return False
        self.clock.now = max(self.clock.now, min(dues))
        return True

    def _is_idle_look(self, entry: tuple[str, str, int]) -> bool:
        """Whether a step of the library's own is due there that has looked in vain, and might for ever."""
        kind, workflow_id, place = entry
        step = self.store.run_table[workflow_id].steps.get(place) if kind == "step" else None
        return step is not None and step.scheduled.task in _LOOKS and step.attempt >= _PATIENT

    def _do_next(self) -> bool:
        """Do one thing; tell whether there was one."""
        __tracebackhide__ = True
        message = self.broker.take()
        try:
            if message is not None:
                self._warm_or_cold(message.id)
                self._loan.execute(message)
            else:
                self.store.renew([self.name])
                self.engine.patience.work_off()
                if not (self.engine.sweep().counts or self._relayed()):
                    return False
        except Crash:
            self.restart()
        if self.errors:
            error = self.errors.pop(0)
            self.errors.clear()
            if isinstance(error, NonDeterminismError):
                error.add_note(_SAME_CODE)
            # Where it was found is inside of the library; its message says what the user's code did.
            raise error.with_traceback(None)
        return True

    def _relayed(self) -> bool:
        """Relay what is in the outbox, if this process has put something there; tell whether that did anything."""
        if not self.binding.client.post.count:
            return False
        if self._relay is None:
            from durable_celery.relay import Relay

            self._relay = Relay(self.binding)
        return self._relay.look() > 0

    def restart(self) -> None:
        """Put a new worker in the place of one that died; what the old one had in hand is free at once."""
        old, self.name = self.name, f"worker-{self.lives + 1}"
        self.lives += 1
        self.engine.cache.clear()
        self.engine = self._engine()
        self.store.renew([self.name], [old])

    def _engine(self) -> Engine:
        store: Any = self.store if self.watch is None else WatchedStore(self.store, self.watch, _Life(self.name))
        self.binding.join(_CheckedEngine(cast("Store", store), self))
        return self.binding.engine

    def _warm_or_cold(self, message_id: str) -> None:
        run = self.store.run_table.get(message_id.rpartition("/")[0]) or self.store.run_table.get(message_id)
        is_short = run is None or len(run.log) < _SHORT
        self.engine.cache.size = 0 if self.cold and is_short else _WARM

    # -- for people --------------------------------------------------------------------------------------------------

    def history(self, workflow_id: str, run: int | None = None) -> list[Recorded]:
        """Return all events of a run: the newest, or the one with this number."""
        return self.store.history(workflow_id, run=run, limit=1_000_000_000)

    def histories(self, workflow_id: str) -> list[list[Recorded]]:
        """Return the events of each run of a workflow whose log is there."""
        record = self.store.get(workflow_id)
        runs = range(1, record.run + 1) if record is not None else ()
        return [history for run in runs if (history := self.history(workflow_id, run))]

    def story(self, workflow_id: str) -> str:
        """Return the history of a workflow's newest run as text."""
        record = self.store.get(workflow_id)
        run = record.run if record is not None else 1
        return timeline(workflow_id, self.history(workflow_id, run), run=run, codec=self.binding.codec)

    def open_runs(self) -> list[RunRecord]:
        """Return the runs that have not ended."""
        return [run.record for run in self.store.run_table.values() if not run.record.status.is_closed]

    def standing(self) -> str:
        """Say what each open run waits for."""
        return "\n".join(f"  {run.workflow_id} ({run.name}) {_waits(run)}" for run in self.open_runs())

    def is_open(self, workflow_id: str) -> bool:
        """Tell whether there is such a run that has not ended."""
        run = self.store.run_table.get(workflow_id)
        return run is not None and not run.record.status.is_closed

    def what_waits(self) -> str:
        """Say what the open runs wait for, with their histories."""
        runs = self.open_runs()
        if not runs:
            return "nothing can happen any more, and no run is open"
        lines = ["nothing can happen any more, and this is what the open runs wait for:", self.standing()]
        if any("signal " in run.waiting and run.name != EVENT for run in runs):
            lines.append(
                "A signal is sent by the test: handle = durable.start(...); durable.signal(handle, name, value); "
                "handle.get().\nA wait with a timeout would end by itself."
            )
        if any(run.name == EVENT for run in runs):
            lines.append(
                "An event is published by the test, durable.publish_event(name, value), or by another workflow."
            )
        lines += [f"\n{self.story(run.workflow_id)}" for run in runs[:_TOLD]]
        return "\n".join(lines)


def plain_app(task: Any) -> Celery:
    """Return the app of a Celery task, itself and not a proxy.

    Raises:
        InvalidRequestError: it is no Celery task.
    """
    app: Any = getattr(task, "app", None)
    if app is None:
        raise InvalidRequestError(f"{task!r} is no Celery task")
    plain: Celery = app._get_current_object() if hasattr(app, "_get_current_object") else app  # noqa: SLF001 - Celery's proxy
    return plain


def _waits(run: RunRecord) -> str:
    return f"waits for {run.waiting}" if run.waiting else f"is {run.status}"


def _milliseconds(instant: datetime) -> int:
    return round(instant.timestamp() * 1000)


def _no_code(*_: object, **__: object) -> Any:
    raise DurableError("the code of a workflow that is overridden cannot be run as a function; say what it returns")


class LocalBinding(Binding):
    """The binding of a borrowed app: the memory store, and an engine and a client of the test."""

    def __init__(self, app: Celery, system: System) -> None:
        """Bind an app to a system."""
        self.system = system
        super().__init__(app, store=system.store)

    def join(self, engine: Engine) -> None:
        """Go on with another engine: a new worker's."""
        self.engine = engine
        plain: dict[str, Any] = {field.name: getattr(self.client, field.name) for field in fields(Client)}
        plain["engine"] = engine
        self.client = LocalClient(**plain, system=self.system)

    def definition(self, name: str, version: int) -> Definition:
        """See :meth:`System.definition`."""
        return self.system.definition(name, version)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalClient(Client):
    """A client that lets the system run where another one waits."""

    system: System

    def wait(
        self, workflow_id: str, timeout: float | None, *, hopeless: Callable[[], bool] = lambda: False
    ) -> Recorded | None:
        """Let the system run until the end of a run; see :meth:`Client.wait`."""
        __tracebackhide__ = True

        def is_done() -> bool:
            record = self.store.get(check_id(workflow_id))
            return hopeless() if record is None else record.status.is_closed

        if self.store.get(check_id(workflow_id)) is None:
            self.system.settle()
        if self.store.get(workflow_id) is not None or hopeless():
            self.system.run_until(is_done, timeout)
        return self.ending(workflow_id)

    def news(self, workflow_id: str, after: Offset, timeout: float | None) -> list[Recorded] | None:
        """Let the system run until there are events after a place; see :meth:`Client.news`."""
        __tracebackhide__ = True

        def is_there() -> bool:
            run = self.describe(workflow_id)
            return run.run > after.run or run.length > after.seq or run.status.is_closed

        if not is_there() and not self.system.run_until(is_there, timeout):
            return None
        return self.store.history(workflow_id, run=after.run, after=after.seq)

    def clock(self) -> float:
        """Return the time of the test."""
        return self.system.clock.now / 1000


class _CheckedEngine(Engine):
    """An engine whose runs are replayed from the start when they end, and that tells the test what blocks a run."""

    def __init__(self, store: Store, system: System) -> None:
        binding = system.binding
        super().__init__(
            store,
            binding.dispatcher,
            binding.definition,
            process=lambda: system.name,
            codec=binding.codec,
            cache_size=0 if system.cold else _WARM,
            lost_attempts=binding.settings.lost_attempts,
            patience=Patience(30.0, system.clock.advance, system.clock.seconds, background=False),
        )
        self._system = system

    def incarnation(self, key: StepKey) -> str:
        """See :meth:`Engine.incarnation`; another environment may have the same id at the same time."""
        return f"{super().incarnation(key)}-{self._system.id}"

    def _drive_to_rest(self, driver: TurnDriver, *, deliver: bool) -> None:
        super()._drive_to_rest(driver, deliver=deliver)
        if driver.is_over and self._system.cold:
            run = driver.turn.run
            try:
                history = self._system.history(run.workflow_id, run.run)
                replay(driver.execution.definition, run.workflow_id, history, self.codec, run=run.run).evict()
            except NonDeterminismError as error:
                self._system.errors.append(error)

    def _block(self, run: RunRecord, lease: Any, error: Exception) -> None:
        self._system.errors.append(error)
        super()._block(run, lease, error)


class _Life:
    """One life of the worker, as the store's watch knows it."""

    def __init__(self, name: str) -> None:
        self.name, self.is_alive = name, True
