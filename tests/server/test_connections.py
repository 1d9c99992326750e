"""Connections: how many there may be, what counts, and that all of them are given back."""

from __future__ import annotations

from contextlib import AsyncExitStack
from urllib.parse import quote

import pytest

from tests.server.conftest import Start
from tests.server.talking import Site, Socket, ask, connected, until

MOST = 8
PING = b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n"
CLAIM = b'{"worker_instance":"w-1","lanes":["default"],"wait_ms":30000}'
WAITING_CLAIM = (
    b"POST /v1/workers/w/claim HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(CLAIM), CLAIM)
)


async def is_served(site: Site) -> bool:
    """Say whether a new connection is served rather than turned away."""
    async with connected(site) as bare:
        bare.write(PING)
        return (await bare.reply()).status == 200


async def all_ended(site: Site) -> None:
    """Wait until the server has let go of every connection."""
    await until(lambda: site.application.load.connections == 0)


async def established(stack: AsyncExitStack, site: Site, count: int) -> list[Socket]:
    """Open connections that the server has taken."""
    found = [await stack.enter_async_context(connected(site)) for _ in range(count)]
    for bare in found:
        bare.write(PING)
        assert (await bare.reply()).status == 200
    return found


async def test_one_too_many(start: Start) -> None:
    """A connection beyond the limit is told to come back, the others go on, and its place is free again later."""
    site = await start(connections=MOST)
    async with AsyncExitStack() as stack:
        held = await established(stack, site, MOST)
        reply = await ask(site, PING)
        assert (reply.status, reply.code) == (429, "resource_exhausted")
        assert reply.headers["connection"] == "close"
        assert int(reply.headers["retry-after"]) >= 1
        for bare in held:
            bare.write(PING)
            assert (await bare.reply()).status == 200
    await all_ended(site)
    assert await is_served(site)


async def test_long_waits_are_counted_apart(start: Start) -> None:
    """Requests that wait long take no place of those that do not, however many wait."""
    site = await start(connections=MOST)
    async with AsyncExitStack() as stack:
        for number in range(1, 4 * MOST + 1):
            waiting = await stack.enter_async_context(connected(site))
            waiting.write(WAITING_CLAIM)
            await until(lambda number=number: site.application.load.waits == number)
        await established(stack, site, MOST - 1)
        assert await is_served(site)


async def test_followers_are_counted_apart(start: Start) -> None:
    """Connections that follow a stream are waits too, and end with their clients."""
    site = await start(connections=2)
    path = f"/v1/executions/{quote(await site.create(), safe='')}/stream/tail"
    async with AsyncExitStack() as stack:
        for number in range(1, 11):
            following = await stack.enter_async_context(connected(site))
            following.write(f"GET {path} HTTP/1.1\r\nhost: a\r\naccept: text/event-stream\r\n\r\n".encode())
            await until(lambda number=number: site.application.load.waits == number)
        assert await is_served(site)
    await until(lambda: site.application.load.waits == 0)
    await all_ended(site)
    assert await is_served(site)


@pytest.mark.parametrize("part", [b"", b"GET /heal", WAITING_CLAIM[:-5], WAITING_CLAIM, PING * 3])
async def test_clients_that_vanish(start: Start, part: bytes) -> None:
    """Connections that break off at any point give their place back."""
    site = await start(connections=MOST)
    for _ in range(3 * MOST):
        async with connected(site) as bare:
            bare.write(part)
            await bare.writer.drain()
            bare.writer.transport.abort()
    await ask(site, PING)  # the server takes connections in their order, so it has taken all the others too
    await all_ended(site)
    assert site.application.load.waits == 0
    async with AsyncExitStack() as stack:
        await established(stack, site, MOST)


async def test_http_1_0(site: Site) -> None:
    """A client of the older protocol gets its answer and the end of the connection."""
    async with connected(site) as bare:
        bare.write(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert (await bare.reply()).status == 200
        assert await bare.closed() == b""


async def test_upgrades_are_declined(site: Site) -> None:
    """A request to change the protocol is answered in the one there is."""
    for wanted in (b"websocket", b"h2c", b"TLS/1.0"):
        head = b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: " + wanted
        assert (await ask(site, head + b"\r\n\r\n")).status == 200


async def test_expectations(site: Site) -> None:
    """A client that asks first is told to go on, or gets the refusal in place of it."""
    head = b"POST /v1/executions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nexpect: 100-continue\r\n"
    async with connected(site) as bare:
        bare.write(head + b"content-length: 12\r\n\r\n")
        assert await bare.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        bare.write(b'{"kind":"k"}')
        assert (await bare.reply()).status == 201
    reply = await ask(site, head + b"content-length: 99999999\r\n\r\n")
    assert (reply.status, reply.code) == (413, "payload_too_large")
