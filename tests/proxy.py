"""A proxy between a client and a server on loopback that misbehaves on command."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final


class Proxy:
    """Passes bytes between a listening port and a server, and stalls or cuts them when told to.

    `pass_requests` and `pass_replies` are gates: while one is closed the bytes of that direction wait.
    `reads_requests` decides whether the client's bytes are read at all, so that its writes stall. `reply_budget`
    cuts all connections once so many more bytes of replies were passed on. `on_request` sees what clients send.
    """

    def __init__(self, port: int) -> None:
        self.pass_requests: Final = asyncio.Event()
        self.pass_replies: Final = asyncio.Event()
        self.reads_requests: Final = asyncio.Event()
        for gate in (self.pass_requests, self.pass_replies, self.reads_requests):
            gate.set()
        self.reply_budget: int | None = None
        self.on_request: Callable[[bytes], None] | None = None
        self.accepted: int = 0
        self.requested: int = 0
        self._target: Final = port
        self._server: asyncio.Server | None = None
        self._port: int = 0
        self._links: Final[set[asyncio.Task[None]]] = set()
        self._writers: Final[set[asyncio.StreamWriter]] = set()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    async def open(self) -> None:
        """Listen, at the same port as before if there was one."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port, limit=4096)
        self._port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        """Refuse new connections and cut the present ones."""
        if self._server is not None:
            await settled()
            self._server.close()
            self.cut()
            await self._server.wait_closed()

    def cut(self) -> None:
        """Drop every connection at once, in both directions."""
        for writer in tuple(self._writers):
            writer.transport.abort()
        for link in tuple(self._links):
            link.cancel()

    async def close(self) -> None:
        await self.shut()
        if self._links:
            await asyncio.wait(self._links)
        await settled()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.update((writer, up_writer))
            try:
                await asyncio.gather(self._requests(reader, up_writer), self._replies(up_reader, writer))
            finally:
                self._writers.difference_update((writer, up_writer))
                up_writer.transport.abort()
        except (asyncio.CancelledError, OSError):
            pass
        finally:
            writer.transport.abort()
            self._links.discard(link)

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await self.reads_requests.wait()
            data = await reader.read(65_536)
            if not data:
                raise ConnectionResetError
            self.requested += len(data)
            if self.on_request is not None:
                self.on_request(data)
            await self.pass_requests.wait()
            writer.write(data)
            await writer.drain()

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self.pass_replies.wait()
            if self.reply_budget is not None:
                data = data[: self.reply_budget]
                self.reply_budget -= len(data)
                writer.write(data)
                with contextlib.suppress(OSError):
                    await writer.drain()
                if self.reply_budget == 0:
                    self.reply_budget = None
                    self.cut()
                    return
                continue
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError


async def settled() -> None:
    """Let connections that were just made, or just dropped, reach the code that owns them.

    A server that is closed while it accepts leaves a transport nobody closes (Python 3.11).
    """
    for _ in range(5):
        await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def proxied(port: int) -> AsyncIterator[Proxy]:
    """Open a proxy before the server at `port`."""
    proxy = Proxy(port)
    await proxy.open()
    try:
        yield proxy
    finally:
        await proxy.close()


async def until(holds: Callable[[], bool], what: str, *, within_s: float = 10) -> None:
    """Wait until something holds, with the event loop running."""
    deadline = asyncio.get_running_loop().time() + within_s
    while not holds():
        assert asyncio.get_running_loop().time() < deadline, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.003)
