"""A PostgreSQL of one's own, to be killed and started again; only where the server is installed on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from psycopg.errors import DeadlockDetected
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from tests.databases import answers
from tests.servers import START_TIMEOUT, free_port
from tests.waiting import wait_until

#: Where Debian keeps the programs of each version.
_DEBIAN = Path("/usr/lib/postgresql")
#: Who owns the server where we are root, whom it refuses.
_USER = "postgres"


def postgresql_programs() -> Path | None:
    """Return the directory of the server's programs, or None where there is none."""
    on_path = shutil.which("initdb")
    found = [Path(on_path)] if on_path else sorted(_DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


class PostgreSQLServer:
    """One PostgreSQL cluster on a free port, with the durability of its defaults; its data goes when it is stopped."""

    def __init__(self) -> None:
        programs = postgresql_programs()
        if programs is None:
            raise RuntimeError("no PostgreSQL server on this machine")
        self._programs, self._home = programs, Path(tempfile.mkdtemp(prefix="postgresql-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of the default database."""
        return f"postgresql+psycopg://{_USER}@127.0.0.1:{self.port}/postgres"

    @property
    def log(self) -> str:
        """What the server has written, over all its starts."""
        return (self._home / "server.log").read_text(errors="replace")

    def start(self) -> Self:
        """Start the server and wait until it lets us in; after a kill it recovers first.

        Raises:
            RuntimeError: it ended at once.
        """
        if not (self._home / "data").exists():
            self._make()
        words = ["-D", "data", "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self._home)]
        with (self._home / "server.log").open("ab") as log:
            self._process = self._run("postgres", *words, output=log)
        if wait_until(self._news, START_TIMEOUT, lambda: self.log) == "ended":
            raise RuntimeError(f"PostgreSQL ended while it was started:\n{self.log}")
        return self

    def kill(self) -> None:
        """End all its processes at once, without a checkpoint, as a crash does. May be repeated."""
        if self._process is not None and self._process.poll() is None:
            # SIGKILL would leave its children to themselves, and their shared memory in the way of the next start.
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()

    def stop(self) -> None:
        """End the server and forget its data."""
        self.kill()
        shutil.rmtree(self._home)

    def kill_clients(self) -> None:
        """End all connections from the server's side."""
        self._do(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename <> ''"
        )

    def kill_backend(self) -> None:
        """Kill the process of a connection: the server then ends all others as well, and recovers."""
        pids = self._do(
            "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        if pids:
            os.kill(int(pids[0][0]), signal.SIGKILL)

    def pause(self, seconds: float) -> None:
        """Let nobody write or read for some time, as a change of the tables does."""
        tables = [name for (name,) in self._do("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
        while True:
            try:
                self._do(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep({seconds})")
            except OperationalError as error:
                # It takes one lock after the other, in no order that anybody else knows of.
                if not isinstance(error.orig, DeadlockDetected):
                    raise
            else:
                return

    def describe(self) -> Iterable[str]:
        """Give what a person wants to see of a store whose run stands still."""
        for table in ("durable_owners", "durable_commands"):
            rows = self._do(f"TABLE {table} LIMIT 100")
            yield f"{table}: {rows}"

    def _do(self, statements: str) -> list[Any]:
        engine = create_engine(self.url, poolclass=NullPool)
        with engine.begin() as connection:
            found: list[Any] = []
            for statement in statements.split("; "):
                answer = connection.execute(text(statement))
                found = list(answer) if answer.returns_rows else []
        return found

    def _make(self) -> None:
        if os.geteuid() == 0:
            shutil.chown(self._home, _USER, _USER)
        making = self._run("initdb", "--auth=trust", f"--username={_USER}", "-D", "data", output=subprocess.DEVNULL)
        if making.wait() != 0:
            raise RuntimeError("initdb failed")

    def _run(self, program: str, *words: str, output: Any) -> subprocess.Popen[bytes]:
        command = [str(self._programs / program), *words]
        is_root = os.geteuid() == 0
        return subprocess.Popen(
            command,
            cwd=self._home,
            start_new_session=True,
            user=_USER if is_root else None,
            group=_USER if is_root else None,
            extra_groups=[] if is_root else None,
            stdout=output,
            stderr=output,
        )

    def _news(self) -> str:
        if self._process is None or self._process.poll() is not None:
            return "ended"
        return "answers" if answers(self.url) else ""
