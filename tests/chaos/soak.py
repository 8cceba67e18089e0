"""A soak: random programs under all faults, a detector of stuck runs, and the checker at the end.

    python -m tests.chaos.soak --minutes 30 --broker rabbitmq --store postgresql --seed 7

Ends with exit code 1 and a story when a run is stuck, lost or wrong, or an invariant is broken.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from durable_celery.app import binding_of
from durable_celery.errors import StoreUnavailableError, WorkflowClosedError
from durable_celery.store.protocol import RunRecord, RunStatus
from tests.chaos.field import Broker, Crew, Field, FieldRedis
from tests.chaos.nemesis import Doer, Reaper, Weather
from tests.chaos.programs import Author, Tree, form_of, signals_of
from tests.chaos.rabbitmq import rabbitmq_binary
from tests.chaos.report import Report, report_of

_log = logging.getLogger(__name__)

CREWS = (Crew(pool="prefork", concurrency=2), Crew(pool="prefork", concurrency=2), Crew(pool="threads", concurrency=3))


class SoakError(AssertionError):
    """A run is stuck, lost or wrong, or an invariant is broken."""


@dataclass(eq=False, kw_only=True)
class Program:
    """A program that was started, and what is still to be done to it."""

    workflow_id: str
    tree: Tree
    #: Signals that are still to be sent, with the times at which they may be.
    signals: list[tuple[float, str]]
    #: When it is to be cancelled, or None.
    cancel_at: float | None = None
    is_acknowledged: bool = False
    is_cancelled: bool = False
    #: What was last seen of it and its children, and since when.
    mark: object = None
    since: float = field(default_factory=time.monotonic)


class Load(Doer):
    """The client: starts programs, sends signals, cancels; repeats what got no answer."""

    def __init__(self, field: Field, seed: int, *, open_runs: int) -> None:
        """Keep so many programs open."""
        super().__init__("load", seed)
        self.field, self.open_runs = field, open_runs
        self.client = binding_of(field.app).client
        self.programs: dict[str, Program] = {}
        self.open: dict[str, Program] = {}
        #: Whether new programs are started.
        self.is_starting = True

    def act(self) -> None:
        try:
            if self.is_starting and len(self.open) < self.open_runs:
                self.begin(self.new_program())
            for program in list(self.open.values()):
                self.tend(program)
        except StoreUnavailableError as error:
            _log.debug("the client goes on when the store does: %s", error)
        self.hold(0.05)

    def new_program(self) -> Program:
        """Make a program, or return one whose start got no answer."""
        for program in list(self.open.values()):
            if not program.is_acknowledged:
                return program
        tree = Author(self.chance).program()
        now = time.monotonic()
        signals = [(now + self.chance.choice([0.0, 1.0, 5.0]), name) for name in signals_of(tree)]
        cancel_at = now + self.chance.choice([0.0, 0.5, 3.0]) if self.chance.random() < 0.06 else None
        name = f"p-{len(self.programs) + 1}"
        program = Program(workflow_id=name, tree=tree, signals=sorted(signals), cancel_at=cancel_at)
        self.programs[name] = self.open[name] = program
        return program

    def begin(self, program: Program) -> None:
        self.field.app.tasks[form_of(program.tree)].apply_async([program.tree], task_id=program.workflow_id)
        program.is_acknowledged = True
        if self.chance.random() < 0.05:
            # A second start with the same id finds the first one's run.
            self.field.app.tasks[form_of(program.tree)].apply_async([program.tree], task_id=program.workflow_id)

    def tend(self, program: Program) -> None:
        if not program.is_acknowledged:
            self.begin(program)
        now, name = time.monotonic(), program.workflow_id
        try:
            if program.cancel_at is not None and now >= program.cancel_at:
                program.is_cancelled = True
                self.client.cancel(name)
                program.cancel_at = None
            # In their order: the next one only when this one was heard.
            while program.signals and now >= program.signals[0][0]:
                signal = program.signals[0][1]
                self.client.signal(name, signal, f"value of {signal}", key=signal)
                program.signals.pop(0)
        except WorkflowClosedError:
            program.cancel_at, program.signals = None, []


class Watcher:
    """Looks at all runs past the proxies; finds programs that ended, and those that do not go on."""

    def __init__(self, field: Field, load: Load, *, patience: float) -> None:
        """A program is stuck that stands still for ``patience`` seconds."""
        self.field, self.load, self.patience = field, load, patience

    def look(self) -> None:
        """Take note of all open programs.

        Raises:
            SoakError: one is stuck, or blocked.
        """
        try:
            open_runs = {record.workflow_id: record for record in self.open_runs()}
            for record in open_runs.values():
                if record.status is RunStatus.BLOCKED:
                    raise SoakError(
                        f"{record.workflow_id} is blocked: {record.reason}\n{self.story(record.workflow_id)}"
                    )
            records = {name: self.field.store.get(name) for name in list(self.load.open)}
            marks = {name: self.mark(name, open_runs, record) for name, record in records.items()}
        except StoreUnavailableError:
            return
        now = time.monotonic()
        for name, mark in marks.items():
            program, record = self.load.open[name], records[name]
            if record is not None and record.delivered and not program.signals and program.cancel_at is None:
                del self.load.open[name]
            elif mark != program.mark:
                program.mark, program.since = mark, now
            elif now - program.since > self.patience:
                raise SoakError(f"{name} stands still for {self.patience:g} s\n{self.story(name)}")

    def open_runs(self) -> Iterator[RunRecord]:
        for status in (RunStatus.PENDING, RunStatus.RUNNING, RunStatus.BLOCKED):
            cursor: str | None = None
            while True:
                page = self.field.store.runs(status=status, cursor=cursor, limit=200)
                yield from page.runs
                if (cursor := page.cursor) is None:
                    break

    @staticmethod
    def mark(name: str, open_runs: dict[str, RunRecord], record: RunRecord | None) -> object:
        """Return what changes as long as a program or one of its children goes on."""
        family = {
            other: (run.length, run.token, run.failures)
            for other, run in open_runs.items()
            if other == name or other.startswith(f"{name}/")
        }
        steps = tuple((step.number, step.state, step.attempt) for step in record.steps) if record else ()
        return family, steps, record and record.delivered

    def story(self, name: str) -> str:
        """Return all that is known of a program that stands still."""
        lines: list[str] = []
        for other in sorted({name, *(run.workflow_id for run in self.open_runs())}):
            if other == name or other.startswith(f"{name}/"):
                history = self.field.store.history(other, limit=100_000)
                lines += [f"--- {other}: {self.field.store.get(other)!r}", *map(repr, history)]
        lines += self.field.store_server.describe()
        if isinstance(self.field.broker_server, FieldRedis):
            with self.field.broker_server.client() as client:
                lines.append(f"messages waiting: {client.llen(self.field.queue)}, unacked: {client.hlen('unacked')}")
        listing = subprocess.run(
            ["ps", "-eo", "pid,ppid,stat,etimes,args"],  # noqa: S607 - whichever ps this machine has
            capture_output=True,
            text=True,
            check=False,
        )
        lines += [line for line in listing.stdout.splitlines() if "soak_worker" in line]
        return "\n".join([*lines, self.field.logs()])


def soak(
    field: Field,
    *,
    seed: int,
    seconds: float,
    kill_every: float,
    fault_every: float,
    open_runs: int = 12,
    patience: float = 300.0,
    drain: float = 600.0,
) -> Report:
    """Run programs under faults for some time, then without; return what happened and what was found wrong.

    Raises:
        SoakError: a program is stuck, or a thread of the soak failed.
    """
    load = Load(field, seed, open_runs=open_runs)
    reaper, weather = Reaper(field, seed, every=kill_every), Weather(field, seed, every=fault_every)
    watcher = Watcher(field, load, patience=patience)
    doers = (load, reaper, weather)
    for doer in doers:
        doer.start()
    began = time.monotonic()
    try:
        _watch(doers, watcher, lambda: time.monotonic() - began > seconds)
        load.is_starting = False
        for doer in (reaper, weather):
            doer.stop()
        field.supervise()
        _log.info("no more faults; %s programs are open", len(load.open))
        calm = time.monotonic()
        _watch((load,), watcher, lambda: not load.open or time.monotonic() - calm > drain)
    finally:
        for doer in doers:
            doer.stop()
    if load.open:
        name = next(iter(load.open))
        raise SoakError(f"{len(load.open)} programs did not end in {drain:g} s of calm\n{watcher.story(name)}")
    for worker in field.workers:
        worker.stop()
    counts = {**reaper.counts, **weather.counts}
    return report_of(field, list(load.programs.values()), counts, time.monotonic() - began)


def _watch(doers: tuple[Doer, ...], watcher: Watcher, is_over: Any) -> None:
    told = time.monotonic()
    while not is_over():
        for doer in doers:
            if doer.error is not None:
                raise SoakError(f"{doer.name} failed: {doer.error!r}") from doer.error
        watcher.look()
        if time.monotonic() - told > 30:
            told = time.monotonic()
            _log.info(
                "%s programs, %s open; %s",
                len(watcher.load.programs), len(watcher.load.open),
                " ".join(f"{name}={count}" for doer in doers for name, count in sorted(doer.counts.items())),
            )  # fmt: skip
        time.sleep(0.25)


def main() -> int:
    """Soak from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="random programs under all faults, with a checker at the end")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--broker", choices=("redis", "rabbitmq"), default="redis")
    parser.add_argument("--store", choices=("redis", "postgresql"), default="redis")
    parser.add_argument("--kill-every", type=float, default=2.2, help="seconds between two kills, about")
    parser.add_argument("--fault-every", type=float, default=8.0, help="seconds between two other faults, about")
    parser.add_argument("--open-runs", type=int, default=12, help="programs that are open at a time")
    parser.add_argument("--directory", type=Path, help="where data, logs and operations go, and stay")
    given = parser.parse_args()
    # Whoever ends the soak ends its servers and workers as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    directory = given.directory or Path(tempfile.mkdtemp(prefix="soak-"))
    broker: Broker = given.broker
    _log.info("seed %s, everything is in %s", given.seed, directory)
    own_rabbitmq = broker == "rabbitmq" and rabbitmq_binary() is not None
    with Field(directory, broker=broker, store=given.store, crews=CREWS, own_rabbitmq=own_rabbitmq) as field:
        try:
            report = soak(
                field,
                seed=given.seed,
                seconds=given.minutes * 60,
                kill_every=given.kill_every,
                fault_every=given.fault_every,
                open_runs=given.open_runs,
            )
        except SoakError as error:
            (directory / "story.txt").write_text(str(error))
            _log.error("%s\nthe whole story is in %s", str(error).partition("\n")[0], directory / "story.txt")
            return 1
    text = json.dumps({"seed": given.seed, "broker": broker, "store": given.store, **report.figures}, indent=2)
    (directory / "report.json").write_text(text)
    (directory / "violations.txt").write_text("\n".join(report.violations))
    sys.stdout.write(text + "\n" + "".join(f"{line}\n" for line in report.violations[:50]))
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
