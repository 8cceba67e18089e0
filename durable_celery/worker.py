"""The bootstep: what runs in each worker's main process besides Celery.

Daemon threads (greenlets under gevent), alike in every pool. The *heart* renews the leases of this worker's
processes and says which processes of this host are gone; the *sweeper* settles the agenda and publishes what is due;
the *watchdog* sees to it that the worker consumes. They are apart, so that a broker that hangs while something is
published cannot stop the heart. All end only with the process: a worker that shuts down warm still finishes its tasks
under its lease.
"""

from __future__ import annotations

import functools
import logging
import random
import threading
import time
from typing import TYPE_CHECKING, Any

from celery import bootsteps, signals
from celery.exceptions import CeleryCommandException, TaskRevokedError
from celery.platforms import EX_FAILURE
from celery.worker.control import Panel
from kombu.utils.functional import maybe_list

from durable_celery import guards
from durable_celery.ahead import OURS, RunAhead
from durable_celery.app import EAGER, binding_of, timing_of
from durable_celery.dispatch import header_of
from durable_celery.errors import (
    ConfigurationError,
    DurableError,
    StoreUnavailableError,
    WorkflowClosedError,
    WorkflowNotFoundError,
)
from durable_celery.identity import is_child, is_gone, is_mine, process_name
from durable_celery.lags import Lags
from durable_celery.pace import Pace
from durable_celery.steps import wrap_tasks
from durable_celery.store.protocol import StepKey
from durable_celery.waits import spare_tracebacks
from durable_celery.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from durable_celery.app import Binding
    from durable_celery.store.protocol import Finding

__all__ = ["DurableStep", "Heart"]

_log = logging.getLogger(__name__)
#: Seconds until the next try to publish to a broker that is away.
_BROKER_AWAY = 1.0
#: Up to so many processes each worker sweeps at its own pace. With more of them each sweeps the more rarely, so that
#: all together look at the agenda about as often as these few would.
_FEW = 64
#: The longest wait between two sweeps of a worker, however many there are, in seconds.
_RAREST_SWEEP = 5.0
#: How many messages are sent again at once when a worker died that may have fetched any number.
_MOST_HASTENED = 500
#: Commands of the remote control after which a pool process does not know any more what limits and queues there are.
_CHANGES = ("rate_limit", "time_limit", "cancel_consumer")


class DurableStep(bootsteps.StartStopStep):
    """Checks the set-up, wraps the tasks and starts the heart."""

    requires = ("celery.worker.components:Pool",)
    #: What the settings ask for besides: each is done again and again, after the seconds that it returns.
    duties: Sequence[Callable[[], float]] = ()

    def create(self, parent: Any) -> None:
        """Check and wrap before the pool forks its processes.

        Raises:
            CeleryCommandException: a setting or the store's server would lose work, or no store answers. The worker
                does not start; of all exceptions this is the one that Celery prints as a line.
        """
        try:
            binding = binding_of(parent.app)
            check(binding)
            self.duties = list(_duties_of(binding))
        except (ConfigurationError, StoreUnavailableError) as error:
            refusal = f"this worker does not start. {error}"
            raise CeleryCommandException(refusal, EX_FAILURE) from error
        binding.sends_events = bool(parent.task_events)
        guards.guard_redis_transport()
        guards.keep_redis_clients()
        guards.guard_sql_transport()
        guards.guard_blocking_pool(parent.pool)
        wrap_tasks(binding)
        _measure_lags(binding)
        _run_ahead(binding, parent)
        spare_tracebacks()
        _cancel_on_revoke(binding)

    def start(self, parent: Any) -> None:
        """Start heart, sweeper and watchdog, before the worker consumes."""
        binding = binding_of(parent.app)
        heart = Heart(binding, parent.concurrency, parent.prefetch_multiplier)
        heart.renew()
        works = [heart.renew, heart.sweep, *self.duties]
        if binding.settings.watchdog:
            works.append(Watchdog(parent, binding.settings.watchdog).look)
        for work in works:
            threading.Thread(target=heart.run, args=(work,), name=f"durable-{work.__name__}", daemon=True).start()
        signals.worker_shutdown.connect(heart.stop, weak=False)


def _duties_of(binding: Binding) -> Iterator[Callable[[], float]]:
    """Yield what the settings ask for besides. It brings SQLAlchemy along, which not every worker needs.

    Raises:
        ConfigurationError: a database has not the tables.
    """
    if binding.settings.outbox:
        from durable_celery.relay import Relay

        relay = Relay(binding)
        _look(relay.check)
        yield relay.relay
    if binding.archive is not None:
        from durable_celery.archive.archiver import Archiver

        _look(binding.archive.check)
        yield Archiver(binding.store, binding.archive, binding.settings.retention).archive_runs


def _measure_lags(binding: Binding) -> None:
    """Note of each message that arrives how long it has waited: those that wait as well are not sent again."""
    lags = binding.dispatcher.lags = Lags(timing_of(binding.settings))

    def on_received(request: Any = None, **_: Any) -> None:
        if not (header := header_of(request.request_dict)):
            return
        sent, queue = header.get("sent"), (request.delivery_info or {}).get("routing_key")
        if isinstance(sent, int) and isinstance(queue, str):
            lags.note(queue, time.time() - sent / 1000)

    setattr(on_received, OURS, True)
    signals.task_received.connect(on_received, weak=False)


def _run_ahead(binding: Binding, worker: Any) -> None:
    """Let ends be delivered where they come about, and steps run ahead if the settings say so.

    Neither where a time limit is on all that the pool does; no steps where a process is replaced after some messages.
    """
    is_limited, is_counted = bool(worker.time_limit or worker.soft_time_limit), bool(worker.max_tasks_per_child)
    if binding.settings.run_ahead and (is_limited or is_counted):
        limits = "time limits" if is_limited else "a number of tasks for each process"
        _log.info("durable_run_ahead has no effect in this worker: it has %s, which are for messages", limits)
    if is_limited:
        return
    pace = binding.pace = Pace(0.0 if is_counted else binding.settings.run_ahead)
    ahead = RunAhead(binding, pace)
    binding.engine.ahead = ahead
    signals.task_postrun.connect(ahead.work, weak=False)
    for name in _CHANGES:
        _after_command(name, functools.partial(_halt, pace, name))


def _halt(pace: Pace, command: str, *_: Any, **__: Any) -> None:
    if pace.halt():
        _log.info("durable_run_ahead has no effect in this worker any more, after the remote control's %s", command)


def _look(check: Callable[[], None]) -> None:
    """Check a database that is asked again all the time, so that it need not answer now.

    Raises:
        ConfigurationError: it has not the tables.
    """
    try:
        check()
    except StoreUnavailableError as error:
        _log.warning("%s; it is asked again", error)


class Heart:
    """Renews owners and sweeps the agenda, for ever."""

    def __init__(self, binding: Binding, concurrency: int = 1, prefetch_multiplier: int = 4) -> None:
        """Serve the processes of a worker that does so much at a time, and has fetched so many times that (0: any)."""
        self.engine, self.store = binding.engine, binding.store
        self.interval = binding.settings.sweep_interval
        #: A third of the lease lets two renewals fail; at most a second, so that a dead pool child is noticed soon.
        self.renew_every = min(binding.settings.owner_ttl / 3, 1.0)
        self.concurrency = concurrency
        self.prefetch = concurrency * prefetch_multiplier or _MOST_HASTENED
        self.known: tuple[str, ...] = ()
        self._buried: set[str] = set()
        self._stopped = threading.Event()
        self._renewing = threading.Lock()

    def run(self, work: Callable[[], float]) -> None:
        """Do one work again and again, each time after the seconds that it returned, until the process ends."""
        while not self._stopped.is_set():
            try:
                wait = work()
            except StoreUnavailableError as error:
                _log.warning("the store does not answer, runs wait for it: %s", error)
                wait = 1.0
            except Exception:  # noqa: BLE001 - see below
                # The loop must not die: without it no timer fires and nothing lost is found again.
                _log.exception("%s of durable_celery failed; it goes on", work.__name__)
                wait = 1.0
            self._stopped.wait(wait)

    def renew(self) -> float:
        """Renew this worker's processes, expire those of this host that are gone; return the seconds until the next."""
        with self._renewing:
            if self._stopped.is_set():
                return self.renew_every
            mine = {process_name(), *filter(is_mine, self.known)}
            gone = [name for name in self.known if is_gone(name)]
            self.known = self.store.renew(sorted(mine), gone)
            self._bury(set(gone))
        return self.renew_every

    def _bury(self, gone: set[str]) -> None:
        """See to what lies with processes of this host that were not known to be gone."""
        new, self._buried = gone - self._buried, gone
        if not new:
            return
        _log.info("%s processes of this host have ended; what they may have held is taken over", len(new))
        if not all(is_child(name, set(self.known) - gone) for name in new):
            # A worker died, and messages that it had fetched lie with it: on Redis for an hour. And its processes may
            # have committed what they did not publish any more. Workers are alike, so it was as much as here.
            self.store.hasten(self.prefetch, self.concurrency)

    def sweep(self) -> float:
        """Settle what is due and return the seconds until the next look."""
        sweep = self.engine.sweep()
        if self.engine.unsent:
            # The broker is away: what else is due could not be told either, and would only be counted as sent.
            return _BROKER_AWAY
        if sweep.more:
            return 0.0
        if sweep.processes > _FEW:
            # At random times, and nobody at the moment when the next thing falls due: all workers would.
            pace = self.interval * sweep.processes / _FEW
            return min(pace, _RAREST_SWEEP) * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
        return self.interval if sweep.next_in is None else min(self.interval, sweep.next_in)

    def stop(self, **_: Any) -> None:
        """Leave at the end of a shutdown, so that nobody waits for this worker's lease to run out."""
        self._stopped.set()
        try:
            with self._renewing:
                self.store.renew([], [name for name in self.known if is_mine(name) or is_gone(name)])
        except StoreUnavailableError as error:
            _log.warning("the store could not be told of the shutdown: %s", error)


def check(binding: Binding) -> None:
    """Refuse a set-up that would lose work, and warn of one that might.

    Raises:
        ConfigurationError: with the setting, what follows from it, and the cure.
        StoreUnavailableError: the store does not answer.
    """
    app, allowed = binding.app, binding.settings.allow
    errors = []
    if app.conf.task_always_eager:
        errors.append(("eager", EAGER))
    if any("pickle" in str(content) for content in app.conf.accept_content or ()):
        errors.append(("pickle", PICKLE))
    findings: list[Finding] = getattr(binding.store, "findings", list)()
    errors += [(finding.check, finding.message) for finding in findings if finding.level == "error"]
    for finding in findings:
        if finding.level != "error":
            _log.log(logging.WARNING if finding.level == "warning" else logging.INFO, "%s", finding.message)
    for name, message in errors:
        if name not in allowed:
            text = f"{message} (to accept it all the same: durable_allow = [{name!r}])"
            raise ConfigurationError(text)
        _log.warning("accepted by durable_allow: %s", message)


PICKLE = (
    "accept_content allows pickle: whoever can write to the broker can then run code in this worker. "
    "Set accept_content = ['json']"
)


def _after_command(name: str, follow: Callable[..., object]) -> None:
    """Do something after each remote control command of a name, with its arguments."""
    plain = Panel.data[name]
    if hasattr(plain, "durable_plain"):
        plain = plain.durable_plain

    def command(state: Any, *args: Any, **kwargs: Any) -> Any:
        answer = plain(state, *args, **kwargs)
        follow(*args, **kwargs)
        return answer

    command.durable_plain = plain  # type: ignore[attr-defined] # so that a second worker in this process wraps once
    Panel.data[name] = command


def _cancel_on_revoke(binding: Binding) -> None:
    """Make the remote control command ``revoke`` cancel runs and fail steps through their log."""

    def follow(task_id: Any, *_: Any, **__: Any) -> None:
        for name in maybe_list(task_id) or []:
            _revoke(binding, str(name))

    _after_command("revoke", follow)


def _revoke(binding: Binding, name: str) -> None:
    try:
        # The id of a child run is that of its parent's step, which hears of the child's end from the child.
        key = StepKey.parse(name)
        if key is not None and binding.store.get(name) is None:
            binding.engine.revoke_step(key, TaskRevokedError(f"step {key} was revoked"))
        else:
            binding.client.cancel(name, "revoked")
    except (WorkflowNotFoundError, WorkflowClosedError):
        pass  # the id of a plain task, or of a run that has ended: nothing of ours to stop
    except DurableError:
        _log.exception("the revocation of %s could not be recorded", name)
