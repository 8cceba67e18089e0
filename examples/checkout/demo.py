"""The demo: a card is charged, the worker is killed, the confirmation still goes out, and the card was charged once.

    make demo                                                   both stories: with @durable_task, and without
    python examples/checkout/demo.py --without-durability       the second one only
    python examples/checkout/demo.py --plain                    lines instead of a board that is redrawn

It needs no server: without BROKER_URL it starts one of its own (see examples/stage.py). With BROKER_URL the first story
is told on your broker. The exit code says whether the stories went as told.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from stage import Stage, Worker
from tasks import app, checkout, plain_checkout
from view import Row, View

from durable_celery import WorkflowHandle
from durable_celery.events import StepCompleted, StepScheduled
from durable_celery.store.protocol import PendingStep
from durable_celery.timeline import timeline

#: Seconds that the Redis broker waits for the dead worker of the second story.
VISIBILITY_TIMEOUT = "3"


class Story:
    """What both stories have in common: an order, workers A and B, and the books that say what really happened."""

    def __init__(self, view: View, stage: Stage, order: str, **env: str) -> None:
        self.view, self.stage, self.order = view, stage, order
        self.books = stage.folder / order
        self.books.mkdir()
        self.env = {"SHOP_BOOKS": str(self.books), **env}
        self.workers: dict[str, Worker | None] = {}
        self.handle: WorkflowHandle[str] | None = None

    def count(self, book: str) -> int:
        path = self.books / book
        return len(path.read_text().splitlines()) if path.exists() else 0

    @property
    def charges(self) -> int:
        return self.count("charges.txt")

    @property
    def mails(self) -> int:
        return self.count("mails.txt")

    def start_worker(self, name: str) -> Worker:
        self.workers[name] = None
        self.view.say(f"worker {name} starts")
        worker = self.stage.launch_worker(name, **self.env)
        self.view.wait(lambda: worker.is_ready or not worker.is_running, f"worker {name}")
        if not worker.is_running:
            raise SystemExit(worker.log)
        self.workers[name] = worker
        return worker

    def kill(self, worker: Worker) -> None:
        worker.kill()
        self.view.say(f"worker {worker.name} is killed: SIGKILL, in the middle of sending the confirmation", "red")

    def rows(self) -> Iterator[Row]:
        """Tell what the board shows. Without one, the log says enough of the workers and the books."""
        if self.handle is not None:
            yield from self._run_rows(self.handle)
        if self.view.is_live:
            yield from self._world_rows()

    def _world_rows(self) -> Iterator[Row]:
        for name, worker in self.workers.items():
            if worker is None:
                yield f"worker {name}", "waiting  to be up"
            else:
                yield f"worker {name}", f"up       pid {worker.pid}" if worker.is_running else "killed"
        yield "the bank's book", f"{self.charges}        charged"
        yield "the mail server's book", f"{self.mails}        sent"

    def _run_rows(self, handle: WorkflowHandle[str]) -> Iterator[Row]:
        """Tell the run and its steps from the store: what a history has, and who works on what it does not have."""
        run, history = handle.describe(), [item.event for item in handle.history()]
        yield f"workflow {run.name}", _word(run.status, is_done=True) if run.status.is_closed else run.status.value
        outcomes = {event.number: event for event in history if isinstance(event, StepCompleted)}
        opened = {step.number: step for step in run.steps}
        for event in history:
            if not isinstance(event, StepScheduled):
                continue
            label = f"  step {event.number} {event.task.removeprefix('tasks.')}"
            if outcome := outcomes.get(event.number):
                yield label, _word(f"recorded, attempt {outcome.attempt}", is_done=True)
            elif (step := opened.get(event.number)) and step.attempt:
                yield label, self._attempt(step)
            else:
                yield label, "waiting  for a worker"

    def _attempt(self, step: PendingStep) -> str:
        """Tell which worker has a step: its owner is named after the host, the worker's pid and the pool process."""
        parent = (step.owner or "::").split(":")[1]
        names = [w.name for w in self.workers.values() if w and w.is_running and str(w.pid) == parent]
        if names:
            return _word(f"attempt {step.attempt} on worker {names[0]}")
        return f"lost     attempt {step.attempt} ended with its worker"


def _word(text: str, *, is_done: bool = False) -> str:
    return f"{'done' if is_done else 'running':<8} {text}"


def with_durability(view: View, stage: Stage) -> bool:
    view.title("With durability: @durable_task, two steps")
    story = Story(view, stage, "order-1")
    view.board(lambda: list(story.rows()))
    worker = story.start_worker("A")

    view.say('an order comes in: checkout.delay("order-1", 1200)')
    handle = story.handle = checkout.delay("order-1", 1200)
    view.wait(lambda: story.charges and "send_confirmation" in handle.describe().waiting, "the card to be charged")
    view.say("the card is charged, and the store has it on record")
    view.wait(lambda: _works_on(handle, 2), "the confirmation to be begun")
    story.kill(worker)

    story.start_worker("B")
    view.say("worker B reads the history, and goes on where it ends")
    view.wait(lambda: story.mails, "the confirmation")
    view.say("the confirmation is sent")
    view.wait(lambda: handle.describe().delivered, "the workflow to complete")
    view.say(f"the workflow is complete: {handle.get()}", "green")
    view.end_board()

    view.text("The history of workflow " + timeline(handle.id, handle.history()), "")
    holds = (story.charges, story.mails, handle.state) == (1, 1, "SUCCESS")
    view.verdict(f"charged {_times(story.charges)}, confirmed {_times(story.mails)}", holds=holds)
    return holds


def without_durability(view: View, stage: Stage) -> bool:
    view.title("Without durability: the same in one plain Celery task with acks_late")
    if not stage.has_own_broker:
        # Its visibility timeout would be that of every app on the broker, and repeat what others are doing.
        view.text("Shown on a broker of its own only. Run it again without BROKER_URL.")
        return True
    story = Story(view, stage, "order-2", VISIBILITY_TIMEOUT=VISIBILITY_TIMEOUT)
    view.board(lambda: list(story.rows()))
    worker = story.start_worker("A")

    view.say('an order comes in: plain_checkout.delay("order-2", 1200)')
    plain_checkout.delay("order-2", 1200)
    view.wait(lambda: story.charges, "the card to be charged")
    view.say("the card is charged; that is written down nowhere but at the bank")
    story.kill(worker)

    story.start_worker("B")
    view.say(f"the broker waits for worker A; {VISIBILITY_TIMEOUT} s here, an hour by default")
    view.wait(lambda: story.charges > 1, "the message to come back")
    view.say("the message comes back, and the task starts over: the card is charged again", "red")
    view.wait(lambda: story.mails, "the confirmation")
    view.say("the confirmation is sent")
    view.end_board()

    as_expected = (story.charges, story.mails) == (2, 1)
    view.verdict(f"charged {_times(story.charges)}, confirmed {_times(story.mails)}", holds=story.charges == 1)
    return as_expected


def _works_on(handle: WorkflowHandle[str], number: int) -> bool:
    return any(step.number == number and step.attempt for step in handle.describe().steps)


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without-durability", action="store_true", help="show only how it goes without the library")
    parser.add_argument("--plain", action="store_true", help="print lines, also on a terminal")
    options = parser.parse_args()
    view = View(is_live=False if options.plain else None)

    view.text("", "A shop charges a card, then sends a confirmation. Its worker is killed in between.")
    stories = [without_durability] if options.without_durability else [with_durability, without_durability]
    with Stage(app, "tasks") as stage:
        outcomes = []
        for story in stories:
            outcomes.append(story(view, stage))
            stage.stop_workers()

    went_as_told = all(outcomes)
    view.text("")
    if not went_as_told:
        view.text("The story did not go as told. Please report it, with what you see above.")
    elif not options.without_durability:
        view.text(
            "Had the worker died between the charge and its record, the step would have run again: steps run at",
            "least once. The second attempt has the same idempotency key, by which a real bank can tell.",
            "docs/concepts.md says what is promised, and what is not.",
        )
    return 0 if went_as_told else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
