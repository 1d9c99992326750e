"""Routes: every one the manifest declares, and the server's own."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import quote

import pytest

from flowfabric.contract.operations import OPERATIONS
from flowfabric.contract.payloads import Payload
from tests.server.talking import Site, ask

EXECUTION = "{fp:7}:550e8400-e29b-41d4-a716-446655440000"

ROUTES = [
    pytest.param(operation, route, id=f"{operation.name} {route.method} {route.path}")
    for operation in OPERATIONS.values()
    for route in operation.routes
]


@pytest.mark.parametrize(("operation", "route"), ROUTES)
async def test_every_route_is_there(site: Site, operation: Any, route: Any) -> None:
    """Every declared route leads to its operation: it answers it, or refuses it with a code of its own.

    Acceptance: every-route-leads-to-its-operation
    """
    path = route.path.replace("{execution_id}", quote(EXECUTION, safe="")).replace("{attempt_index}", "0")
    for name in route.fields:
        path = path.replace(f"{{{name}}}", "name")
    reply = await site.send(route.method, path, {} if route.method != "GET" else None)
    if reply.status < 300:
        assert reply.json is not None
    else:
        own = {refusal.code for refusal in operation.refuses} | {"invalid_body"}
        assert reply.code in own, reply.body


async def test_life_of_an_execution(site: Site) -> None:
    """An execution can be created, claimed, worked on and read over HTTP alone.

    Acceptance: whole-life-over-http
    """
    created = await site.post("/v1/executions", {"kind": "k", "input": {"n": 1}, "idempotency_key": "a"})
    assert (created.status, created.json["status"]) == (201, "created")
    again = await site.post("/v1/executions", {"kind": "k", "input": {"n": 1}, "idempotency_key": "a"})
    assert (again.status, again.json["status"]) == (200, "duplicate")
    execution_id = created.json["execution_id"]
    path = f"/v1/executions/{quote(execution_id, safe='')}"
    claimed = await site.post("/v1/workers/w/claim", {"worker_instance": "w-1", "lanes": ["default"]})
    (lease,) = claimed.json["leases"]
    assert (lease["execution_id"], lease["input"]) == (execution_id, {"n": 1})
    fence = {name: lease[name] for name in ("lease_id", "lease_epoch", "attempt_id", "lane", "route")}
    assert (await site.post(f"{path}/renew", {"fence": fence})).status == 200
    frames = [{"sequence": 1, "payload": "hi"}]
    assert (await site.post(f"{path}/attempts/0/stream", {"fence": fence, "frames": frames})).status == 200
    done = await site.post(f"{path}/complete", {"fence": fence, "result": [1, 2]})
    assert done.json["public_state"] == "completed"
    assert (await site.get(f"{path}/state")).json["public_state"] == "completed"
    result = (await site.get(f"{path}/result")).json
    assert (result["status"], result["result"]) == ("completed", [1, 2])
    page = (await site.get(f"{path}/stream")).json
    assert [frame["payload"] for frame in page["frames"] if frame["sequence"]] == ["hi"]
    listed = (await site.get("/v1/executions?state=completed&limit=5")).json
    assert [info["execution_id"] for info in listed["executions"]] == [execution_id]


async def test_braces_need_no_encoding(site: Site) -> None:
    """Ids work in paths as they are and percent-encoded; an encoded slash stays in its segment.

    Acceptance: ids-in-paths-encoded-or-not
    """
    execution_id = await site.create()
    plain = await ask(site, f"GET /v1/executions/{execution_id} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
    encoded = await site.get(f"/v1/executions/{quote(execution_id, safe='')}")
    assert plain.status == encoded.status == 200
    slash = await ask(
        site,
        b"POST /v1/workers/a%2Fb/heartbeat HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    )
    assert slash.code == "worker_not_registered"


async def test_payload_bytes_survive(site: Site) -> None:
    """Bytes that are no JSON go in and come out by base64; JSON comes out as the bytes that went in.

    Acceptance: payload-bytes-survive-http
    """
    data = bytes(range(256))
    body = {"kind": "k", "input_base64": base64.b64encode(data).decode(), "content_type": "image/png"}
    created = await site.post("/v1/executions", body)
    path = f"/v1/executions/{quote(created.json['execution_id'], safe='')}/context"
    context = (await site.get(path)).json
    assert base64.b64decode(context["input_base64"]) == data
    assert context["content_type"] == "image/png"
    odd = b'{"kind":"k","input":{"b" : 1.50,"a":"\\u0041"}}'
    created = await site.send("POST", "/v1/executions", data=odd)
    path = f"/v1/executions/{quote(created.json['execution_id'], safe='')}/context"
    assert b'{"b" : 1.50,"a":"\\u0041"}' in (await site.get(path)).body


@pytest.mark.parametrize(
    "payload",
    [Payload(b'{"a" : 1}'), Payload(b"\x00\xff", "image/png"), Payload("<script>ö".encode(), "text/html")],
)
async def test_raw_result(site: Site, payload: Payload) -> None:
    """The raw route answers the result's bytes with their own media type, which no browser runs as a page."""
    execution_id = await site.create()
    await site.complete(await site.claim(), payload)
    reply = await site.get(f"/v1/executions/{quote(execution_id, safe='')}/result/raw")
    assert (reply.status, reply.body) == (200, payload.data)
    assert reply.headers["content-type"] == payload.content_type
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in reply.headers["content-security-policy"]


async def test_raw_result_absent(site: Site) -> None:
    """The raw route answers 204 without a result, 409 before the end, 409 naming any other outcome, 404 for none."""
    execution_id = await site.create()
    path = f"/v1/executions/{quote(execution_id, safe='')}"
    assert (await site.get(f"{path}/result/raw")).code == "execution_not_terminal"
    await site.complete(await site.claim())
    empty = await site.get(f"{path}/result/raw")
    assert (empty.status, empty.body) == (204, b"")
    other = f"/v1/executions/{quote(await site.create(), safe='')}"
    cancelled = await site.post(f"{other}/cancel", {"source": "operator_override"})
    assert cancelled.status == 200
    refused = await site.get(f"{other}/result/raw")
    assert (refused.status, refused.code) == (409, "execution_not_active")
    assert refused.details["terminal_outcome"] == "cancelled"
    absent = await site.get(f"/v1/executions/{quote(EXECUTION, safe='')}/result/raw")
    assert (absent.status, absent.code) == (404, "execution_not_found")


@pytest.mark.parametrize(
    "path",
    [
        "/nope", "/v1", "/v1/", "/v1/executions/", "/v1//executions", "/v1/executions/x/nope", "/V1/executions",
        "/healthz/", "/docs/nope.js", "/docs/..%2f..%2fsettings.py", "/docs/%00", "/" + "a/" * 200, "/%",
        "/v1/lanes/raw", "/openapi.json/raw",
    ],
)  # fmt: skip
async def test_unknown_route(site: Site, path: str) -> None:
    """A path that is no route is 404 with a problem body."""
    reply = await ask(site, f"GET {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
    assert (reply.status, reply.code) == (404, "route_not_found")


async def test_path_that_is_no_text(site: Site) -> None:
    """A path that is not UTF-8 once decoded is refused."""
    reply = await ask(site, b"GET /v1/executions/%ff%fe HTTP/1.1\r\nhost: a\r\n\r\n")
    assert (reply.status, reply.code) == (400, "invalid_input")


@pytest.mark.parametrize("method", ["DELETE", "PATCH", "PUT", "TRACE", "PROPFIND"])
async def test_wrong_method(site: Site, method: str) -> None:
    """A route with another method is 405 and says which there are."""
    reply = await ask(site, f"{method} /v1/executions HTTP/1.1\r\nhost: a\r\n\r\n".encode())
    assert (reply.status, reply.code) == (405, "method_not_allowed")
    assert reply.headers["allow"] == "GET, HEAD, OPTIONS, POST"


async def test_head(site: Site) -> None:
    """HEAD answers what GET would, without the body."""
    read, head = await site.get("/v1/lanes"), await site.send("HEAD", "/v1/lanes")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == read.headers["content-length"]
    assert (await site.send("HEAD", "/nope")).status == 404


async def test_options(site: Site) -> None:
    """OPTIONS says which methods a path takes."""
    reply = await site.send("OPTIONS", "/v1/executions")
    assert (reply.status, reply.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")
    assert (await site.send("OPTIONS", "/nope")).status == 404


async def test_capabilities(site: Site) -> None:
    """The capabilities are those of the store, with the bounds a client needs."""
    told = (await site.get("/v1/capabilities")).json
    assert told["family"] == "sqlite"
    assert told["partitions"] == {"flow": 256, "budget": 32, "quota": 32}
    assert told["limits"]["create_many"] == 1_000


async def test_request_id(site: Site) -> None:
    """A request id is echoed if it is well-formed, and made otherwise; errors have it too."""
    assert (await site.get("/healthz", {"x-request-id": "my.id:7"})).headers["x-request-id"] == "my.id:7"
    for bad in ("a b", "x" * 100, "ä"):
        made = (await site.get("/nope", {"x-request-id": bad})).headers["x-request-id"]
        assert made != bad
        assert made.isalnum()


async def test_root(site: Site) -> None:
    """The root leads to the docs, which need no other host."""
    reply = await site.get("/")
    assert (reply.status, reply.headers["location"]) == (307, "/docs")
    page = await site.get("/docs")
    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert b"http://" not in page.body.replace(b"http://www.w3.org", b"")
    assert b"https://" not in page.body


async def test_health(site: Site) -> None:
    """A server whose store answers is healthy and ready; one whose store is gone is neither."""
    assert (await site.get("/healthz")).json == {"status": "ok"}
    assert (await site.get("/readyz")).json == {"status": "ready"}
    await site.backend.close()
    for path in ("/healthz", "/readyz"):
        reply = await site.get(path)
        assert (reply.status, reply.code) == (503, "unavailable")
