"""A request and its answer, byte by byte: what holds whatever the application does, and whoever the client is."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from flowfabric.server.exchange import BODY_APART_BYTES, WHOLE
from flowfabric.server.protocol import Connections, protocol_for
from flowfabric.server.run import _config
from flowfabric.server.waiting import Load
from tests.server.talking import PATIENCE_S, Site, Socket, ask, connected, until

GET = b"GET %b HTTP/1.1\r\nhost: a\r\n\r\n"
PING = GET % b"/healthz"
CREATE = b"POST /v1/executions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"


# Through the application ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [b"/healthz", b"/openapi.json", b"/docs", b"/v1/lanes", b"/nope"])
async def test_head_has_the_head_of_get(site: Site, path: bytes) -> None:
    """HEAD is answered with what GET has, its length among it, and no body; the connection goes on."""
    async with connected(site) as bare:
        bare.write(GET % path)
        whole = await bare.reply()
        bare.write(b"HEAD %b HTTP/1.1\r\nhost: a\r\n\r\n" % path)
        head = (await asyncio.wait_for(bare.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)).decode()
        assert head.split(" ")[1] == str(whole.status)
        assert f"content-length: {len(whole.body)}\r\n" in head
        bare.write(PING)
        assert (await bare.reply()).status == 200


async def test_the_end_of_a_connection_is_asked_for(site: Site) -> None:
    """A client that says so gets its answer and the end of the connection, and is told that it comes."""
    async with connected(site) as bare:
        bare.write(b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert (await bare.reply()).headers["connection"] == "close"
        assert await bare.closed() == b""


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"/healthz?a=b", 200),
        (b"http://a/healthz", 200),
        (b"/%68ealthz", 200),
        (b"/healthz#there", 200),
        (b"//healthz", 404),
        (b"/healthz/%00", 404),
        (b"/v1/executions/%7Bfp%3A1%7D%3Anone", 400),
    ],
)
async def test_targets(site: Site, target: bytes, status: int) -> None:
    """What is asked for may be written in every way that HTTP has."""
    assert (await ask(site, GET % target)).status == status


async def test_a_body_in_many_pieces(site: Site) -> None:
    """A body that comes piece by piece is taken whole, with the next request close behind."""
    body = b'{"kind":"k","input":"%b"}' % (b"x" * 600_000)
    async with connected(site) as bare:
        bare.write(CREATE + b"content-length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 7_001):
            bare.write(body[start : start + 7_001])
            await bare.writer.drain()
        bare.write(PING)
        assert [(await bare.reply()).status for _ in range(2)] == [201, 200]


async def test_what_is_sent_behind_a_long_wait(site: Site) -> None:
    """Requests sent behind one that waits are answered after it, in their order."""
    body = b'{"worker_instance":"w-1","lanes":["default"],"wait_ms":30000}'
    async with connected(site) as bare:
        bare.write(
            b"POST /v1/workers/w/claim HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        bare.write(PING + GET % b"/nope")
        await until(lambda: site.application.load.waits == 1)
        created = await site.create()
        claimed = await bare.reply()
        assert claimed.json["leases"][0]["execution_id"] == created
        assert [(await bare.reply()).status for _ in range(2)] == [200, 404]


# Applications that misbehave --------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(application: Any) -> AsyncGenerator[Socket]:
    """Serve an application as the server serves its own; return a connection to it."""
    bound = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(_config(application, protocol_for(Connections(Load(8), 8))))
    task = asyncio.create_task(server.serve(sockets=[bound]))
    await until(lambda: server.started)
    reader, writer = await asyncio.open_connection(*bound.getsockname()[:2])
    try:
        yield Socket(reader, writer)
    finally:
        writer.close()
        server.should_exit = True
        await asyncio.wait_for(task, PATIENCE_S)
        bound.close()


def start(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    """The start of an answer."""
    return {"type": "http.response.start", "status": 200, "headers": list(headers)}


def part(body: bytes, *, more: bool = False) -> dict[str, Any]:
    """A part of an answer's body."""
    return {"type": "http.response.body", "body": body, "more_body": more}


async def _fails(scope: Any, receive: Any, send: Any) -> None:
    raise ValueError("before it answers")


async def _says_nothing(scope: Any, receive: Any, send: Any) -> None:
    pass


async def _is_no_header(scope: Any, receive: Any, send: Any) -> None:
    await send(start((b"x-a", b"1\r\nx-b: 2")))


async def _is_no_header_of_a_whole(scope: Any, receive: Any, send: Any) -> None:
    await scope["extensions"][WHOLE](200, ((b"x a", b"1"),), b"", b"body")


@pytest.mark.parametrize("application", [_fails, _says_nothing, _is_no_header, _is_no_header_of_a_whole])
async def test_an_application_that_cannot_answer(application: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The client is told that the server failed, on a connection that ends, and the log says why."""
    async with serving(application) as bare:
        bare.write(PING)
        reply = await bare.reply()
        assert (reply.status, reply.headers["connection"]) == (500, "close")
        assert await bare.closed() == b""
    assert caplog.records


async def _breaks_off(scope: Any, receive: Any, send: Any) -> None:
    await send(start((b"content-length", b"10")))
    await send(part(b"12345", more=True))
    raise ValueError("in the middle of it")


async def _is_too_short(scope: Any, receive: Any, send: Any) -> None:
    await send(start((b"content-length", b"10")))
    await send(part(b"12345"))


async def _is_too_long(scope: Any, receive: Any, send: Any) -> None:
    await send(start((b"content-length", b"5")))
    await send(part(b"12345", more=True))
    await send(part(b"67890"))


@pytest.mark.parametrize("application", [_breaks_off, _is_too_short, _is_too_long])
async def test_an_answer_of_another_length(application: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What is not as long as it says ends with the connection; nobody takes it for the next answer."""
    async with serving(application) as bare:
        bare.write(PING * 2)
        answer = await bare.closed()
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\r\n\r\n12345")
    assert caplog.records


async def test_parts_without_a_length() -> None:
    """An answer whose length is not known goes in chunks, and the connection goes on."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send(start((b"content-type", b"text/plain")))
        for body in (b"one", b"", b"two"):
            await send(part(body, more=True))
        await send(part(b""))

    async with serving(application) as bare:
        for _ in range(2):
            bare.write(PING)
            head = await asyncio.wait_for(bare.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
            assert b"transfer-encoding: chunked\r\n" in head
            body = await asyncio.wait_for(bare.reader.readuntil(b"0\r\n\r\n"), PATIENCE_S)
            assert body == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"


@pytest.mark.parametrize("size", [0, 1, BODY_APART_BYTES, BODY_APART_BYTES + 1, 3_000_000])
async def test_whole_answers(size: int) -> None:
    """An answer given whole arrives as it was given, also at a client that reads late, and is given once."""
    twice: list[BaseException] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        answer = scope["extensions"][WHOLE]
        await answer(200, ((b"x-a", b"1"),), b"x-b: 2\r\n", b"b" * size)
        try:
            await answer(200, (), b"", b"again")
        except RuntimeError as error:
            twice.append(error)

    async with serving(application) as bare:
        bare.write(PING * 2)
        for _ in range(2):
            reply = await bare.reply()
            assert (reply.status, reply.headers["x-a"], reply.headers["x-b"]) == (200, "1", "2")
            assert reply.body == b"b" * size
    assert len(twice) == 2


async def test_an_answer_without_a_body() -> None:
    """Statuses that have no body are answered without one, and without a length."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await scope["extensions"][WHOLE](204, (), b"", b"dropped")

    async with serving(application) as bare:
        bare.write(PING)
        head = await asyncio.wait_for(bare.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        assert head.startswith(b"HTTP/1.1 204 ") and b"content-length" not in head
        bare.write(PING)
        assert (await bare.reply()).status == 204
