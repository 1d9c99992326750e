"""Who may ask: tokens, and browsers of other origins."""

from __future__ import annotations

import pytest

from tests.server.conftest import TOKEN, Start
from tests.server.talking import Site, ask

OPEN = ["/healthz", "/readyz", "/docs", "/openapi.json", "/"]
CLOSED = ["/v1/executions", "/v1/lanes", "/v1/capabilities", "/metrics"]


@pytest.mark.parametrize("path", OPEN)
async def test_open_without_token(guarded: Site, path: str) -> None:
    """Health, readiness and the pages without data need no token."""
    guarded.headers = {}
    assert (await guarded.get(path)).status < 400


@pytest.mark.parametrize("path", CLOSED)
async def test_closed_without_token(guarded: Site, path: str) -> None:
    """Everything with data, metrics included, needs the token.

    Acceptance: data-and-metrics-need-the-token
    """
    assert (await guarded.get(path)).status == 200
    guarded.headers = {}
    reply = await guarded.get(path)
    assert (reply.status, reply.code) == (401, "unauthorized")
    assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Basic " + TOKEN.encode(),
        TOKEN.encode(),
        b"Bearer " + TOKEN[:-1].encode(),
        b"Bearer " + TOKEN.encode() + b"x",
        b"Bearer " + TOKEN.upper().encode(),
        b"Bearer " + TOKEN.encode() + b"," + TOKEN.encode(),
        b"Bearer \xff\xfe\xfd",
        "Bearer ttt\u0442".encode(),
        b"Bearer " + b"x" * 8_000,
    ],
)
async def test_bad_tokens(guarded: Site, value: bytes) -> None:
    """A missing, wrong, foreign or huge token is 401, whatever bytes it has."""
    reply = await ask(guarded, b"GET /v1/lanes HTTP/1.1\r\nhost: a\r\nauthorization: " + value + b"\r\n\r\n")
    assert (reply.status, reply.code) == (401, "unauthorized")


async def test_refused_before_the_body(guarded: Site) -> None:
    """A request without a token is refused before its body arrives, and the answer quotes nothing of it."""
    head = b"POST /v1/executions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer wrong\r\ncontent-length: 100000\r\n\r\n"
    reply = await ask(guarded, head)
    assert reply.status == 401
    assert b"wrong" not in reply.body


async def test_several_tokens(start: Start) -> None:
    """While a token is rotated the old and the new one are both good."""
    old, new = "old-" + "o" * 40, "new-" + "n" * 40
    site = await start({"FF_API_TOKEN": f"{old}, {new}"})
    for token, status in ((old, 200), (new, 200), ("other" + "x" * 40, 401)):
        assert (await site.get("/v1/lanes", {"authorization": f"Bearer {token}"})).status == status


async def test_scheme_in_any_case(guarded: Site) -> None:
    """The scheme may be written in any case."""
    assert (await guarded.get("/v1/lanes", {"authorization": f"bearer {TOKEN}"})).status == 200


# Other origins ----------------------------------------------------------------------------------------------------


async def test_no_origins(site: Site) -> None:
    """Without configured origins no answer allows any."""
    origin = {"origin": "https://a.example", "access-control-request-method": "POST"}
    for reply in (
        await site.get("/v1/lanes", origin),
        await site.send("OPTIONS", "/v1/lanes", headers=origin),
    ):
        assert not [name for name in reply.headers if name.startswith("access-control")]


async def test_listed_origin(start: Start) -> None:
    """A listed origin is allowed, errors and events included; others are not, and caches are told."""
    site = await start({"FF_CORS_ORIGINS": "https://a.example,https://b.example", "FF_API_TOKEN": TOKEN})
    listed, other = {"origin": "https://b.example"}, {"origin": "https://c.example"}
    for path in ("/v1/lanes", "/nope"):
        reply = await site.get(path, listed)
        assert reply.headers["access-control-allow-origin"] == "https://b.example"
        assert "origin" in reply.headers["vary"].lower()
    reply = await site.get("/v1/lanes", other)
    assert "access-control-allow-origin" not in reply.headers
    assert "origin" in reply.headers["vary"].lower()


async def test_preflight(start: Start) -> None:
    """A preflight needs no token, and names methods and headers.

    Acceptance: cors-preflight-names-methods-and-headers
    """
    site = await start({"FF_CORS_ORIGINS": "https://a.example", "FF_API_TOKEN": TOKEN})
    site.headers = {}
    asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
    reply = await site.send("OPTIONS", "/v1/executions", headers=asked)
    assert reply.status == 204
    assert reply.headers["access-control-allow-origin"] == "https://a.example"
    assert "POST" in reply.headers["access-control-allow-methods"]
    assert "authorization" in reply.headers["access-control-allow-headers"]
    other = await site.send("OPTIONS", "/v1/executions", headers={**asked, "origin": "https://evil.example"})
    assert "access-control-allow-methods" not in other.headers


async def test_every_origin(start: Start) -> None:
    """With `*` every origin is allowed.

    Acceptance: cors-wildcard-allows-every-origin
    """
    site = await start({"FF_CORS_ORIGINS": "*"})
    reply = await site.get("/v1/lanes", {"origin": "https://anything.example"})
    assert reply.headers["access-control-allow-origin"] == "*"
