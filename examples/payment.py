"""Payment: an outside system is given a token, and answers by it when it is done.

The provider gets the order and a token. Minutes or days later it calls a web hook, or a person types a command; the
token says which workflow is meant, and nobody but who was given it can answer. A provider that works for long shows
signs of life; one that falls silent is given up.

    python examples/payment.py
"""

import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from celery import Celery

from durable_celery import (
    CallbackFailedError,
    DurableError,
    HeartbeatTimeoutError,
    WorkflowClosedError,
    WorkflowContext,
    complete_callback,
    durable_task,
    fail_callback,
    heartbeat_callback,
)

app = Celery("payment", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))
app.conf.task_default_queue = "payment"
app.conf.durable_store = os.environ.get("DURABLE_STORE_URL", "")

DAY, HOUR = 86400, 3600


@app.task
def submit(token: str, order: str, amount: int) -> None:
    """Ask the provider for the money. Here it has a folder, in which it finds what it is to do."""
    folder = Path(os.environ["PROVIDER"])
    (folder / "new").write_text(f"{token} {amount}")
    (folder / "new").rename(folder / order)


@durable_task
def pay(ctx: WorkflowContext, order: str, amount: int, silence: float = HOUR) -> str:
    try:
        receipt = ctx.wait_callback(submit, order, amount, timeout=DAY, heartbeat=silence)
    except CallbackFailedError as error:
        return f"{order} is not paid: {error}"
    except HeartbeatTimeoutError:
        return f"{order} is looked into by a person: the provider fell silent"
    return f"{order} is paid, receipt {receipt}"


class WebHook(BaseHTTPRequestHandler):
    """What your web framework does for you; of this library it needs three functions."""

    def do_POST(self) -> None:
        report = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            match report:
                case {"token": token, "receipt": receipt}:
                    status = 200 if complete_callback(token, receipt) else 208
                case {"token": token, "problem": problem}:
                    status = 200 if fail_callback(token, problem) else 208
                case {"token": token}:
                    heartbeat_callback(token)
                    status = 202
        except WorkflowClosedError:
            status = 410
        except DurableError:
            status = 400
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Provider:
    """The outside system. It knows the address of the web hook, and the tokens that it was given."""

    def __init__(self, folder: str, port: int) -> None:
        self.folder, self.port = Path(folder), port

    def token(self, order: str) -> str:
        from stage import wait_until

        wait_until((self.folder / order).exists, f"{order} to be submitted")
        return (self.folder / order).read_text().split()[0]

    def call(self, order: str, **report: str) -> int:
        hook = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        hook.request("POST", "/", json.dumps({"token": self.token(order), **report}))
        return hook.getresponse().status


def main() -> None:
    from stage import Stage

    with tempfile.TemporaryDirectory() as folder, Stage(app, "payment") as stage:
        os.environ["PROVIDER"] = folder
        stage.start_worker()
        hook = ThreadingHTTPServer(("127.0.0.1", 0), WebHook)
        threading.Thread(target=hook.serve_forever, daemon=True).start()
        provider = Provider(folder, hook.server_address[1])

        first = pay.delay("order-1", 120)
        print("the provider calls:", provider.call("order-1", receipt="r-1"))
        print(first.get(timeout=60))
        print("it calls again:", provider.call("order-1", receipt="r-1"))

        second = pay.delay("order-2", 80)
        words = ["callback", "fail", provider.token("order-2"), "the card has expired"]
        command = [sys.executable, "-m", "celery", "-A", "payment", "durable", *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parent)
        print(second.get(timeout=60))

        third = pay.delay("order-3", 990, silence=3)
        print("a sign of life:", provider.call("order-3"))
        print(third.get(timeout=60))
        print("too late:", provider.call("order-3", receipt="r-3"))
        (Path(folder) / "forged").write_text("dcb1.AAAA 1")
        print("a forged token:", provider.call("forged", receipt="r-4"))
        hook.shutdown()


if __name__ == "__main__":
    main()
