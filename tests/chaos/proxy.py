"""A TCP proxy in front of a server, for faults of the network: delay, silence, resets, lost replies, refusal.

It runs in a thread of its own and knows no protocol. What it can match on is the text of one chunk, which for the small
messages of Redis and RabbitMQ on one machine is a whole request or reply.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

from tests.servers import free_port

T = TypeVar("T")

_CHUNK = 1 << 16
#: Seconds in which the proxy's own thread has to do what it is told.
_COMMAND_TIMEOUT = 30.0


@dataclass(eq=False, kw_only=True)
class _Cut:
    """What is to happen to one reply."""

    #: Text of the request, and of the reply, that it is about; empty for any.
    request: bytes
    reply: bytes
    #: How much of the reply still gets through: 0 for none, 0.5 for the first half.
    part: float
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False, kw_only=True)
class _Link:
    """One connection: its two ends, and what was asked last."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    request: bytes = b""

    def reset(self) -> None:
        """Close both ends with a reset instead of a goodbye."""
        for end in (self.client, self.server):
            _reset(end)


class TcpProxy:
    """Forwards a free port of this machine to a server, and misbehaves when told to.

    All methods may be called from any thread. Faults stay until `heal`, but for those of one reply.

    Args:
        url: A URL with the host and port of the server.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None, url
        assert parts.port is not None, url
        self._target = (parts.hostname, parts.port)
        self.port = free_port()
        #: How many connections were accepted so far.
        self.accepted = 0
        self._latency = 0.0
        self._links: set[_Link] = set()
        self._cuts: list[_Cut] = []
        self._loop = asyncio.new_event_loop()
        self._passes = asyncio.Event()
        self._passes.set()
        self._listener: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{self.port}", daemon=True)

    def url(self, url: str) -> str:
        """Return a URL of the server with this proxy's host and port in their place."""
        parts = urlsplit(url)
        login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        return urlunsplit(parts._replace(netloc=f"{login}127.0.0.1:{self.port}"))

    @property
    def open_links(self) -> int:
        """How many connections are open now."""
        return len(self._links)

    # -- faults ------------------------------------------------------------------------------------------------------

    def delay(self, seconds: float) -> None:
        """Hold each chunk back for so long, in each direction; 0 ends it."""
        self._call(lambda: setattr(self, "_latency", seconds))

    def hang(self) -> None:
        """Forward nothing, and keep all connections open; new ones are accepted. `heal` forwards what was held."""
        self._call(self._passes.clear)

    def reset(self) -> None:
        """Reset all open connections now; new ones work."""
        self._call(self._reset_links)

    def refuse(self) -> None:
        """Reset all open connections and refuse new ones."""
        self._call(self._stop_listening)

    def cut_reply(self, *, request: bytes = b"", reply: bytes = b"", part: float = 0.0) -> threading.Event:
        """Lose the next reply that fits, and reset its connection; return an event that is set when it has happened.

        Args:
            request: Text of the request that the reply is for; empty for any.
            reply: Text in the reply; empty for any.
            part: How much of the reply gets through before the reset.
        """
        cut = _Cut(request=request, reply=reply, part=part)
        self._call(lambda: self._cuts.append(cut))
        return cut.done

    def heal(self) -> None:
        """End all faults; connections that are open stay open."""

        def end_faults() -> None:
            self._latency = 0.0
            self._cuts.clear()
            self._passes.set()

        self._call(end_faults)
        self._run(self._listen())

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Begin to forward."""
        self._thread.start()
        self._run(self._listen())
        return self

    def stop(self) -> None:
        """Reset all connections and end the thread. May be repeated."""
        if not self._thread.is_alive():
            return
        self._call(self._stop_listening)
        self._run(self._end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_COMMAND_TIMEOUT)
        self._loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    # -- in the proxy's thread ---------------------------------------------------------------------------------------

    def _call(self, action: Callable[[], object]) -> None:
        async def act() -> None:
            action()

        self._run(act())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_COMMAND_TIMEOUT)

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._reset_links()

    def _reset_links(self) -> None:
        for link in list(self._links):
            link.reset()

    async def _end_tasks(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            await self._passes.wait()
            answers, server = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(client)
            return
        link = _Link(client=client, server=server)
        self._links.add(link)
        ways = [
            asyncio.ensure_future(self._forward_requests(reader, link)),
            asyncio.ensure_future(self._forward_replies(answers, link)),
        ]
        # The end of the proxy; asyncio's streams would print it as an error.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        self._links.discard(link)
        for way in ways:
            way.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*ways, return_exceptions=True)
        for end in (client, server):
            end.close()

    async def _forward_requests(self, reader: asyncio.StreamReader, link: _Link) -> None:
        while chunk := await reader.read(_CHUNK):
            link.request = chunk
            await self._pass(chunk, link.server)

    async def _forward_replies(self, reader: asyncio.StreamReader, link: _Link) -> None:
        while chunk := await reader.read(_CHUNK):
            cut = next((cut for cut in self._cuts if cut.request in link.request and cut.reply in chunk), None)
            if cut is not None:
                self._cuts.remove(cut)
                await self._pass(chunk[: int(len(chunk) * cut.part)], link.client)
                link.reset()
                cut.done.set()
                return
            await self._pass(chunk, link.client)

    async def _pass(self, chunk: bytes, end: asyncio.StreamWriter) -> None:
        await self._passes.wait()
        if self._latency:
            await asyncio.sleep(self._latency)
        end.write(chunk)
        await end.drain()


def _reset(end: asyncio.StreamWriter) -> None:
    connection = end.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        # Lingering for no time at all is how a socket says RST.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.transport.abort()
