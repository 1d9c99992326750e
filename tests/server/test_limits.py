"""Limits of single requests: bodies, headers, queries, media types."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest

from flowfabric.contract.operations import OPERATIONS
from tests.server.talking import Site, ask, connected

BOUNDED = [
    pytest.param(operation.routes[0], operation.body_max, id=operation.name)
    for operation in OPERATIONS.values()
    if operation.routes[0].method != "GET"
]
CHUNKED = b"host: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n"
EXECUTION = quote("{fp:7}:550e8400-e29b-41d4-a716-446655440000", safe="")


def _path(route: Any) -> str:
    path = route.path.replace("{execution_id}", EXECUTION).replace("{attempt_index}", "0")
    for name in route.fields:
        path = path.replace(f"{{{name}}}", "name")
    return path


@pytest.mark.parametrize(("route", "body_max"), BOUNDED)
async def test_body_bound(site: Site, route: Any, body_max: int) -> None:
    """A body of exactly the operation's bound is read; one byte more is 413 with the bound.

    Acceptance: body-over-its-limit-is-413
    """
    fits = await site.send(route.method, _path(route), data=b"{}" + b" " * (body_max - 2))
    assert fits.status != 413
    over = await site.send(route.method, _path(route), data=b"{}" + b" " * (body_max - 1))
    assert (over.status, over.code) == (413, "payload_too_large")
    assert over.details["limit_bytes"] == body_max


async def test_body_bound_without_length(site: Site) -> None:
    """A chunked body is cut off as soon as it passes the bound, however much would follow.

    Acceptance: chunked-body-over-the-limit-is-413
    """
    async with connected(site) as socket:
        socket.write(b"PUT /v1/lanes/a/state HTTP/1.1\r\n%b\r\n" % CHUNKED)
        chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
        for _ in range(3):
            socket.write(chunk)
        reply = await socket.reply()
        assert (reply.status, reply.code) == (413, "payload_too_large")
        await socket.closed()


async def test_chunked_body_within_bound(site: Site) -> None:
    """A chunked body in many pieces is read whole."""
    body = json.dumps({"kind": "k", "input": "x" * 1_000}).encode()
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:1], body[1:500], body[500:]))
    head = b"POST /v1/executions HTTP/1.1\r\n%b\r\n" % CHUNKED
    assert (await ask(site, head + pieces + b"0\r\n\r\n")).status == 201


async def test_declared_length_over_bound(site: Site) -> None:
    """A declared length over the bound is refused before a byte of the body arrives.

    Acceptance: declared-length-over-the-limit-is-413
    """
    head = b"POST /v1/executions HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999\r\n\r\n"
    reply = await ask(site, head)
    assert (reply.status, reply.code) == (413, "payload_too_large")


@pytest.mark.parametrize("length", [b"-1", b"abc", b"1e3", b"99999999999999999999999", b"+5", b"0x10"])
async def test_malformed_length(site: Site, length: bytes) -> None:
    """A length that is no number is a client's error."""
    head = b"POST /v1/executions HTTP/1.1\r\nhost: a\r\ncontent-length: " + length + b"\r\n\r\n{}"
    assert 400 <= (await ask(site, head)).status < 500


async def test_length_and_chunks_together(site: Site) -> None:
    """A request with both a length and chunks, as in request smuggling, is refused."""
    head = (
        b"POST /v1/executions HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n"
        b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    assert (await ask(site, head)).status == 400


@pytest.mark.parametrize(
    ("count", "size", "status"), [(50, 10, 200), (80, 10, 431), (10, 1_000, 200), (10, 2_000, 431)]
)
async def test_headers(site: Site, count: int, size: int, status: int) -> None:
    """Headers are at most 64 and 16 KiB in all."""
    lines = b"".join(b"x-%d: %b\r\n" % (index, b"v" * size) for index in range(count))
    reply = await ask(site, b"GET /v1/lanes HTTP/1.1\r\nhost: a\r\n" + lines + b"\r\n")
    assert reply.status == status
    if status == 431:
        assert reply.code == "headers_too_large"


async def test_endless_headers(site: Site) -> None:
    """Headers that never end are cut off at the bound, not collected."""
    async with connected(site) as socket:
        socket.write(b"GET /v1/lanes HTTP/1.1\r\nhost: a\r\n")
        for index in range(40):
            socket.write(b"x-%d: %b\r\n" % (index, b"v" * 1_000))
        reply = await socket.reply()
        assert (reply.status, reply.code) == (431, "headers_too_large")
        await socket.closed()


async def test_endless_header_line(site: Site) -> None:
    """A single header line that never ends is cut off too, and so is a request line."""
    for start in (b"GET /v1/lanes HTTP/1.1\r\nx-long: ", b"GET /"):
        async with connected(site) as socket:
            socket.write(start + b"v" * 60_000)
            assert (await socket.reply()).status in (400, 414, 431)
            await socket.closed()


async def test_query_bounds(site: Site) -> None:
    """A query that is too long, has too many fields or is malformed is refused."""
    for query in (
        "cursor=" + "a" * 9_000,
        "&".join(f"a{index}=1" for index in range(100)),
        "limit",
        "limit=%ff",
    ):
        reply = await site.get(f"/v1/executions?{query}")
        assert reply.status in (400, 431), query
        assert reply.code in ("invalid_input", "headers_too_large")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
async def test_other_media_types(site: Site, content_type: str) -> None:
    """A body that says it is not JSON is 415: a browser form cannot reach an operation."""
    reply = await site.send(
        "POST", "/v1/executions", data=b'{"kind":"k"}', headers={"content-type": content_type}
    )
    assert (reply.status, reply.code) == (415, "unsupported_content_type")


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON"]
)
async def test_json_media_types(site: Site, content_type: str) -> None:
    """JSON may be declared with parameters and in any case."""
    reply = await site.send(
        "POST", "/v1/executions", data=b'{"kind":"k"}', headers={"content-type": content_type}
    )
    assert reply.status == 201


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/lanes HTTP/1.1\r\nhost a\r\n\r\n",
        b"GET /v1/lanes HTTP/1.1\r\n\x00: a\r\n\r\n",
        b"POST /v1/executions HTTP/1.1\r\n%b\r\nzz\r\n" % CHUNKED,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_no_http(site: Site, data: bytes) -> None:
    """Bytes that are no HTTP request are answered 4xx or with a closed connection, and the server goes on."""
    async with connected(site) as socket:
        socket.write(data)
        socket.writer.write_eof()
        answer = await socket.closed()
    assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 505"))
    assert (await site.get("/healthz")).status == 200


async def test_several_requests_at_once(site: Site) -> None:
    """Requests sent without waiting for the answers are answered in order on one connection."""
    async with connected(site) as socket:
        socket.write(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\nGET /nope HTTP/1.1\r\nhost: a\r\n\r\n" * 5)
        assert [(await socket.reply()).status for _ in range(10)] == [200, 404] * 5


async def test_large_page_of_large_payloads(site: Site) -> None:
    """A claim of many executions with large inputs is answered whole."""
    value = "x" * 200_000
    for _ in range(5):
        await site.create(value)
    body = {"worker_instance": "w-1", "lanes": ["default"], "max_tasks": 5}
    reply = await site.post("/v1/workers/w/claim", body)
    assert [lease["input"] for lease in reply.json["leases"]] == [value] * 5
