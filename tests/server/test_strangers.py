"""Pages of other sites in a browser on this machine: a server without a token does not take their calls.

Such a page can reach a loopback address, under a name of its own too, and send what a form could send.
"""

from __future__ import annotations

import pytest

from tests.server.conftest import TOKEN, Start
from tests.server.talking import Reply, Site, ask

BODY = b'{"kind":"k"}'


async def create(site: Site, *headers: bytes, content_type: bytes = b"application/json") -> Reply:
    """Ask to create an execution with these headers."""
    lines = b"".join(line + b"\r\n" for line in headers)
    typed = b"content-type: " + content_type + b"\r\n" if content_type else b""
    head = b"POST /v1/executions HTTP/1.1\r\n" + lines + typed
    return await ask(site, head + b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY))


@pytest.mark.parametrize(
    "host",
    [
        b"127.0.0.1:9090",
        b"127.0.0.1",
        b"localhost:1",
        b"LocalHost",
        b"app.localhost",
        b"[::1]:80",
        b"10.1.2.3",
        b"box",
    ],
)
async def test_names_of_this_machine(site: Site, host: bytes) -> None:
    """Addresses, and names without a dot, cannot be pointed here by somebody else."""
    assert (await create(site, b"host: " + host)).status == 201


@pytest.mark.parametrize("host", [b"evil.example", b"evil.example:9090", b"127.0.0.1.evil.example", b"1.2.3"])
async def test_names_of_others(site: Site, host: bytes) -> None:
    """A name that anybody may have pointed here is refused with what to do."""
    reply = await create(site, b"host: " + host)
    assert (reply.status, reply.code) == (401, "unauthorized")
    assert "FF_API_TOKEN" in reply.json["error"]["message"]
    assert (await site.get("/v1/executions")).json["executions"] == []


@pytest.mark.parametrize("origin", [b"https://evil.example", b"null", b"http://127.0.0.1:1"])
async def test_other_origins(site: Site, origin: bytes) -> None:
    """A page of another origin is refused, also where it could not read the answer anyway."""
    reply = await create(site, b"host: 127.0.0.1:9090", b"origin: " + origin)
    assert (reply.status, reply.code) == (401, "unauthorized")
    assert (await site.get("/v1/executions")).json["executions"] == []


async def test_own_origin(site: Site) -> None:
    """The server's own pages may call it."""
    assert (await create(site, b"host: 127.0.0.1:9090", b"origin: http://127.0.0.1:9090")).status == 201


async def test_listed_origin(start: Start) -> None:
    """A page whose origin is listed may call."""
    site = await start({"FF_CORS_ORIGINS": "https://a.example"})
    assert (await create(site, b"host: localhost", b"origin: https://a.example")).status == 201
    assert (await create(site, b"host: localhost", b"origin: https://b.example")).status == 401


@pytest.mark.parametrize("content_type", [b"", b"text/plain", b"application/x-www-form-urlencoded"])
async def test_what_a_form_could_send(site: Site, content_type: bytes) -> None:
    """A body that does not say it is JSON is refused: pages may send such bodies without asking first."""
    reply = await create(site, b"host: localhost", content_type=content_type)
    assert (reply.status, reply.code) == (415, "unsupported_content_type")


async def test_token_lets_any_name_in(start: Start) -> None:
    """With a token it does not matter by which name a server is called or from which page."""
    site = await start({"FF_API_TOKEN": TOKEN})
    token = b"authorization: Bearer " + TOKEN.encode()
    assert (await create(site, b"host: ff.example", b"origin: https://b.example", token)).status == 201


async def test_health_by_any_name(site: Site) -> None:
    """Probes call by whatever name they like."""
    assert (await ask(site, b"GET /healthz HTTP/1.1\r\nhost: probe.example\r\n\r\n")).status == 200
