"""Slow and silent clients: each part of a request has its deadline, and whoever misses it harms nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from contextlib import AsyncExitStack

import pytest

from flowfabric.server.protocol import Deadlines
from tests.server.conftest import Start
from tests.server.talking import PATIENCE_S, Reply, Socket, connected, until

SLOW_SOCKETS = 500
HEAD = b"POST /v1/executions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"


def soon(**chosen: float) -> Deadlines:
    """Make deadlines of which only the chosen ones pass during a test."""
    far = {"headers_s": 60.0, "body_s": 60.0, "idle_s": 60.0, "write_stall_s": 60.0, "linger_s": 0.05}
    return Deadlines(**{**far, **chosen})


async def timed_out(bare: Socket) -> Reply:
    """Expect the answer of somebody who was too slow, and the end of the connection."""
    reply = await bare.reply()
    assert (reply.status, reply.code) == (408, "request_timeout")
    assert reply.headers["connection"] == "close"
    assert await bare.closed() == b""
    return reply


async def trickle(bare: Socket, data: bytes) -> None:
    """Send bytes one by one until the connection ends."""
    with contextlib.suppress(ConnectionError):
        for index in range(len(data)):
            bare.writer.write(data[index : index + 1])
            await bare.writer.drain()
            await asyncio.sleep(0.01)  # sleeps: the pace of the client that is tested


async def test_silent_from_the_start(start: Start) -> None:
    """A connection on which nothing arrives is answered 408 and closed."""
    site = await start(deadlines=soon(headers_s=0.05))
    async with connected(site) as bare:
        assert (await timed_out(bare)).json["error"]["retryable"] is True


async def test_trickling_headers(start: Start) -> None:
    """Headers that arrive byte by byte do not put the deadline off."""
    site = await start(deadlines=soon(headers_s=0.2))
    async with connected(site) as bare:
        sending = asyncio.create_task(trickle(bare, HEAD + b"x-slow: " + b"v" * 10_000))
        await timed_out(bare)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_trickling_body(start: Start) -> None:
    """A body that arrives byte by byte does not put the deadline off, and nothing of it is carried out."""
    site = await start(deadlines=soon(body_s=0.2))
    async with connected(site) as bare:
        bare.write(HEAD + b"content-length: 10000\r\n\r\n")
        sending = asyncio.create_task(trickle(bare, b'{"kind":"k"}' + b" " * 9_988))
        await timed_out(bare)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    assert (await site.get("/v1/executions")).json["executions"] == []


async def test_body_that_stops(start: Start) -> None:
    """A body of which a part never comes, chunked or not, is answered 408."""
    site = await start(deadlines=soon(body_s=0.1))
    for rest in (b'content-length: 10\r\n\r\n{"kin', b"transfer-encoding: chunked\r\n\r\n5\r\n{}   \r\n"):
        async with connected(site) as bare:
            bare.write(HEAD + rest)
            await timed_out(bare)


async def test_silent_between_requests(start: Start) -> None:
    """A connection that is kept open without a request is closed without a word."""
    site = await start(deadlines=soon(idle_s=0.05))
    async with connected(site) as bare:
        bare.write(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        assert (await bare.reply()).status == 200
        assert await bare.closed() == b""


async def test_second_request_that_stops(start: Start) -> None:
    """The deadlines hold for every request of a connection, not only the first."""
    site = await start(deadlines=soon(headers_s=0.1, idle_s=60.0))
    async with connected(site) as bare:
        bare.write(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\nGET /heal")
        assert (await bare.reply()).status == 200
        await timed_out(bare)


async def test_long_wait_outlives_the_deadlines(start: Start) -> None:
    """The deadlines are the client's: a request that waits for work is not cut off by them."""
    site = await start(deadlines=soon(headers_s=0.05, body_s=0.05, idle_s=0.05))
    body = {"worker_instance": "w-1", "lanes": ["default"], "wait_ms": 300}
    assert (await site.post("/v1/workers/w/claim", body)).json == {"leases": []}


@pytest.mark.parametrize("reads", [True, False])
async def test_client_that_does_not_read(start: Start, *, reads: bool) -> None:
    """An answer that nobody reads does not hold a connection for ever; one that is read slowly is delivered."""
    site = await start(deadlines=soon(write_stall_s=0.5))
    value = "x" * 1_000_000
    for _ in range(8):
        await site.create(value)
    body = b'{"worker_instance":"w-1","lanes":["default"],"max_tasks":8}'
    head = b"POST /v1/workers/w/claim HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    with client:
        await loop.sock_connect(client, site.address)
        await loop.sock_sendall(client, head + b"content-length: %d\r\n\r\n%b" % (len(body), body))
        if not reads:
            await until(lambda: site.application.load.connections == 1)
            await until(lambda: site.application.load.connections == 0)
        got = 0
        try:
            async with asyncio.timeout(PATIENCE_S):
                while data := await loop.sock_recv(client, 65_536):
                    got += len(data)
                    if got > 8_000_000:
                        break
        except ConnectionError:
            pass
    assert (got > 8_000_000) is reads


async def test_slow_sockets_harm_nobody(start: Start) -> None:
    """500 sockets that say nothing or next to nothing do not keep other requests from being served."""
    site = await start(deadlines=soon())
    async with AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(connected(site)) for _ in range(SLOW_SOCKETS)]
        starts = (b"", b"GET /v1/la", HEAD, HEAD + b'content-length: 50\r\n\r\n{"kind"')
        for index, bare in enumerate(slow):
            bare.write(starts[index % len(starts)])
        replies = await asyncio.gather(*(site.post("/v1/executions", {"kind": "k"}) for _ in range(100)))
        assert {reply.status for reply in replies} == {201}
        for bare in slow:
            assert not bare.reader.at_eof()


async def test_answer_reaches_a_client_that_is_still_sending(start: Start) -> None:
    """A refusal that comes before the body was sent can be read: the connection is not reset under it."""
    site = await start(deadlines=soon(linger_s=1.0))
    for _ in range(20):
        async with connected(site) as bare:
            bare.write(HEAD + b"content-length: 90000000\r\n\r\n" + b"x" * 500_000)
            reply = await bare.reply()
            assert (reply.status, reply.code) == (413, "payload_too_large")
            bare.writer.write(b"x" * 500_000)
            assert await bare.closed() == b""


async def test_trailers_without_end(start: Start) -> None:
    """Trailers are not collected: what follows the headers is bounded even if the body is small."""
    site = await start(deadlines=soon())
    async with connected(site) as bare:
        bare.write(HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n")
        reading = asyncio.create_task(bare.closed())
        line = b"x-trailer: " + b"v" * 60_000 + b"\r\n"
        sent = 0
        try:
            while not reading.done() and sent < 64 * 1024 * 1024:
                bare.writer.write(line)
                await bare.writer.drain()
                sent += len(line)
        except ConnectionError:
            pass
        assert sent < 64 * 1024 * 1024
        assert b"payload_too_large" in await reading
