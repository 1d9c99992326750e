"""Stopping: not ready, no new connections, long waits end at once, requests in flight finish."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import pytest

from flowfabric import backends
from flowfabric.contract.execution import ExecutionCreate
from flowfabric.contract.ids import Kind
from flowfabric.server.run import GRACE_S, listening
from flowfabric.server.settings import ServerSettings
from tests.server.conftest import MEMORY
from tests.server.talking import PATIENCE_S, Site, connected, until

TAILS = 16


async def _tails(site: Site, count: int) -> list[asyncio.Task[Any]]:
    path = f"/v1/executions/{quote(await site.create(), safe='')}/stream/tail?wait_ms=30000"
    held: list[asyncio.Task[Any]] = []
    for number in range(1, count + 1):
        held.append(asyncio.create_task(site.get(f"{path}&after=0:0-0")))
        await until(lambda number=number: site.application.load.waits == number)
    return held


async def test_readiness(site: Site) -> None:
    """A server that is stopping is not ready, but still alive and still answers."""
    site.application.drain()
    reply = await site.get("/readyz")
    assert (reply.status, reply.code) == (503, "unavailable")
    assert (await site.get("/healthz")).status == 200
    assert (await site.post("/v1/executions", {"kind": "k"})).status == 201


async def test_waits_end_when_stopping(site: Site) -> None:
    """Waits end at once: they answer what they have, or that the caller should come again.

    Acceptance: waits-end-when-stopping
    """
    tails = await _tails(site, TAILS)
    body = {"worker_instance": "w-1", "lanes": ["empty"], "wait_ms": 30_000}
    claim = asyncio.create_task(site.post("/v1/workers/w/claim", body))
    await until(lambda: site.application.load.waits == TAILS + 1)
    site.application.drain()
    replies = await asyncio.wait_for(asyncio.gather(*tails, claim), PATIENCE_S)
    for reply in replies:
        assert reply.status == 200 or (reply.status, reply.code) == (503, "unavailable")
    assert site.application.load.waits == 0


async def test_no_wait_begins_when_stopping(site: Site) -> None:
    """A server that is stopping lets no wait begin."""
    site.application.drain()
    body = {"worker_instance": "w-1", "lanes": ["empty"], "wait_ms": 30_000}
    reply = await asyncio.wait_for(site.post("/v1/workers/w/claim", body), PATIENCE_S)
    assert reply.status == 200 or (reply.status, reply.code) == (503, "unavailable")


async def test_events_end_when_stopping(site: Site) -> None:
    """A followed stream ends without its last event, so that the follower comes back and resumes."""
    path = f"/v1/executions/{quote(await site.create(), safe='')}/stream/tail"
    async with connected(site) as socket:
        socket.write(f"GET {path} HTTP/1.1\r\nhost: a\r\naccept: text/event-stream\r\n\r\n".encode())
        await until(lambda: site.application.load.waits == 1)
        site.application.drain()
        await until(lambda: site.application.load.waits == 0)
        answer = await asyncio.wait_for(socket.reader.readuntil(b"0\r\n\r\n"), PATIENCE_S)
        assert b"event: closed" not in answer


@pytest.mark.parametrize("waiting", [0, TAILS])
async def test_stop_is_prompt(waiting: int) -> None:
    """A server stops long before its grace is over, also with 16 tails and as many followers waiting.

    Acceptance: shutdown-under-tails-is-prompt
    """
    backend = await backends.connect(MEMORY)
    loop = asyncio.get_running_loop()
    try:
        created = await backend.execution.create(ExecutionCreate(kind=Kind("k")))
        path = f"/v1/executions/{quote(created.execution_id, safe='')}/stream/tail"
        settings = ServerSettings.load({}, listen="127.0.0.1:0")
        sockets: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        async with listening(backend, settings) as (server, _):
            host, port = server.url.removeprefix("http://").split(":")
            for number in range(waiting):
                for request in (f"{path}?wait_ms=30000&after=9:0-0", path):
                    reader, writer = await asyncio.open_connection(host, int(port))
                    accept = "*/*" if "wait_ms" in request else "text/event-stream"
                    writer.write(f"GET {request} HTTP/1.1\r\nhost: a\r\naccept: {accept}\r\n\r\n".encode())
                    sockets.append((reader, writer))
                wanted = 2 * number + 2
                await until(lambda wanted=wanted: server.application.load.waits == wanted)
            started = loop.time()
        assert loop.time() - started < GRACE_S / 3
        for reader, writer in sockets:
            answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
            assert answer.startswith(b"HTTP/1.1 ")
            writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, int(port))
    finally:
        await backend.close()


async def test_request_in_flight_is_answered() -> None:
    """A request whose body is still on its way when the server stops is read and answered."""
    backend = await backends.connect(MEMORY)
    body = b'{"kind":"k"}'
    try:
        settings = ServerSettings.load({}, listen="127.0.0.1:0")
        async with listening(backend, settings) as (server, _):
            host, port = server.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(
                b"POST /v1/executions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\nexpect: 100-continue\r\n\r\n" % len(body)
            )
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            writer.write(body[:5])

            async def finish() -> None:
                await server.application.load.draining.wait()
                writer.write(body[5:])

            finishing = asyncio.create_task(finish())
        answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
        await finishing
        assert answer.startswith(b"HTTP/1.1 201 ")
        writer.close()
    finally:
        await backend.close()
