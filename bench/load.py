"""A small HTTP/1.1 load generator: prebuilt requests on keep-alive connections, so the server is what is measured."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from bench.drain import Work, run_slots
from bench.measure import Stopwatch, process_cpu_s, resident_bytes
from bench.processes import serving
from bench.servers import cores, on_core
from bench.stores import SQLITE, place
from flowfabric.client.http import HttpStores


class _Connection(asyncio.Protocol):
    """Sends the same kind of request again as soon as the answer to the last one is complete."""

    def __init__(self, requests: list[bytes], done: asyncio.Future[int]) -> None:
        self._requests = requests
        self._done = done
        self._answered = 0
        self._buffer = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # pyright: ignore[reportAttributeAccessIssue]
        self._send()

    def _send(self) -> None:
        assert self.transport is not None
        self.transport.write(self._requests[self._answered])

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 : head.find(b"\r\n", at) if head.find(b"\r\n", at) > 0 else None])
            if len(self._buffer) < end + 4 + length:
                return
            if not head.startswith((b"http/1.1 201", b"http/1.1 200")):
                self._done.set_exception(RuntimeError(self._buffer[:500].decode("latin-1")))
                return
            self._buffer = self._buffer[end + 4 + length :]
            self._answered += 1
            if self._answered == len(self._requests):
                self._done.set_result(self._answered)
                assert self.transport is not None
                self.transport.close()
                return
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(exc or ConnectionError("closed early"))


def _create_request(size: int) -> bytes:
    body = b'{"kind":"bench","lane":"bench","idempotency_key":"%s","input":"%s"}' % (
        uuid.uuid4().hex.encode(),
        b"x" * (size - 2),
    )
    return (
        b"POST /v1/executions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )


async def fire(url: str, tasks: int, connections: int, size: int) -> Stopwatch:
    """Send `tasks` creates over `connections` connections and time them."""
    host, _, port = url.removeprefix("http://").partition(":")
    loop = asyncio.get_running_loop()
    share = tasks // connections
    batches = [[_create_request(size) for _ in range(share)] for _ in range(connections)]
    watch = Stopwatch().start()
    waiting: list[asyncio.Future[int]] = []
    for requests in batches:
        done: asyncio.Future[int] = loop.create_future()
        waiting.append(done)
        await loop.create_connection(
            lambda requests=requests, done=done: _Connection(requests, done), host, int(port)
        )
    await asyncio.gather(*waiting)
    return watch.stop()


async def http_create(store: str, tasks: int, connections: int, size: int) -> dict[str, Any]:
    """Create over HTTP from one load generator to one server process.

    The server has the first core to itself; the load generator and a store that is a process share the last.
    """
    found = cores()
    first, last = (found[0], found[-1]) if store != SQLITE and len(found) > 1 else (None, None)
    with on_core(last):
        async with place(store, pinned=False) as where, serving(where.url, core=first) as server:
            await fire(server.url, connections * 10, connections, size)
            before, store_before = process_cpu_s(server.pid), where.cpu_s()
            watch = await fire(server.url, tasks, connections, size)
            used, store_used = process_cpu_s(server.pid) - before, where.cpu_s() - store_before
    figures = {
        "per_s": tasks / watch.wall_s,
        "cpu_us": used / tasks * 1e6,
        "load_cpu_us": watch.cpu_s / tasks * 1e6,
    }
    return figures | ({"server_us": store_used / tasks * 1e6} if where.has_server else {})


async def memory(store: str, tasks: int) -> dict[str, Any]:
    """Let executions pass through a server (created, claimed, completed over HTTP) and watch its resident memory."""
    async with place(store, pinned=False) as where, serving(where.url) as server:
        stores = HttpStores(server.url)

        async def passing(count: int) -> None:
            await fire(server.url, count, 50, 256)
            await run_slots(stores, Work(count // 50 * 50), 16, 1, 64)

        await passing(tasks // 10)
        before = resident_bytes(server.pid)
        watch = Stopwatch().start()
        for _ in range(10):
            await passing(tasks // 10)
        watch.stop()
        grown = resident_bytes(server.pid) - before
        await stores.close()
    return {"grown_mb": grown / 2**20, "resident_mb": before / 2**20, "per_s": tasks / watch.wall_s}
