"""A real TCP proxy in front of a real server that loses requests and replies where a test says so.

It understands just enough HTTP to know where a request and its reply end. `Cut.REQUEST` takes a request and never
passes it on; `Cut.REPLY` lets the server answer and drops the answer; `Cut.MIDDLE` passes on half the reply's body;
`Cut.SILENCE` lets the server answer and keeps the connection open without a word; `Cut.EVENTS` passes on a streaming
reply up to somewhere after a number of its events; `Cut.BUSY` answers for the server that it is unavailable.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto

_BUSY_BODY = b'{"error":{"code":"unavailable","message":"busy","retryable":true,"details":{}}}'
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_BUSY_BODY), _BUSY_BODY)
)


class Cut(Enum):
    """Where to cut."""

    REQUEST = auto()
    REPLY = auto()
    MIDDLE = auto()
    SILENCE = auto()
    EVENTS = auto()
    BUSY = auto()


@dataclass
class _Plan:
    path: str
    cut: Cut
    times: int
    events: int


@dataclass
class CuttingProxy:
    """The proxy: what it did, and what it is to do."""

    host: str
    port: int
    upstream: int
    seen: list[str] = field(default_factory=list)
    """Request lines in the order they arrived, `METHOD /path`."""
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _plans: list[_Plan] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The proxy's URL."""
        return f"http://{self.host}:{self.port}"

    def cut(self, path: str, cut: Cut, *, times: int = 1, events: int = 1) -> None:
        """Cut the next `times` requests whose path contains `path`."""
        self._plans.append(_Plan(path, cut, times, events))

    def heal(self) -> None:
        """Cut nothing any more."""
        self._plans.clear()

    def count(self, path: str) -> int:
        """Return how many requests arrived whose line contains `path`."""
        return sum(path in line for line in self.seen)

    async def arrival(self, path: str) -> None:
        """Wait until a request whose line contains `path` has arrived."""
        while not self.count(path):
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), 10)

    def _plan_for(self, line: str) -> _Plan | None:
        for plan in self._plans:
            if plan.times > 0 and plan.path in line:
                plan.times -= 1
                return plan
        return None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        up_writer: asyncio.StreamWriter | None = None
        try:
            up_reader, up_writer = await asyncio.open_connection(self.host, self.upstream)
            while True:
                head, body = await _message(reader)
                line = head.split(b" HTTP/", 1)[0].decode()
                self.seen.append(line)
                self._news.set()
                plan = self._plan_for(line)
                if plan is not None and plan.cut is Cut.REQUEST:
                    return
                if plan is not None and plan.cut is Cut.BUSY:
                    writer.write(BUSY)
                    await writer.drain()
                    continue
                up_writer.write(head + body)
                await up_writer.drain()
                if not await self._reply(plan, up_reader, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            ends = [each for each in (writer, up_writer) if each is not None]
            for each in ends:
                each.close()
            for each in ends:
                with suppress(ConnectionError):
                    await each.wait_closed()

    async def _reply(
        self, plan: _Plan | None, up_reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        head = await up_reader.readuntil(b"\r\n\r\n")
        if b"transfer-encoding: chunked" in head.lower():
            writer.write(head)
            left = plan.events if plan is not None else -1
            while True:
                size_line = await up_reader.readline()
                chunk = await up_reader.readexactly(int(size_line, 16) + 2)
                left -= chunk.count(b"event: ")
                cut_now = plan is not None and left <= 0
                writer.write(size_line + (chunk[: len(chunk) // 2] if cut_now else chunk))
                await writer.drain()
                if cut_now or len(chunk) == 2:
                    return not cut_now
        body = await up_reader.readexactly(_length(head))
        if plan is None:
            writer.write(head + body)
            await writer.drain()
            return True
        if plan.cut is Cut.MIDDLE:
            writer.write(head + body[: len(body) // 2])
            await writer.drain()
        if plan.cut is Cut.SILENCE:
            # Until the other side has had enough.
            await up_reader.read()
        return False


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    return head, await reader.readexactly(_length(head))


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0


@asynccontextmanager
async def cutting(upstream: int, port: int = 0) -> AsyncGenerator[CuttingProxy]:
    """Run a proxy on `port` (0: any free one) in front of the server on port `upstream` of 127.0.0.1."""
    proxy = CuttingProxy("127.0.0.1", 0, upstream)
    connections: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(proxy.serve(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", port)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await server.wait_closed()
