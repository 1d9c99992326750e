"""Problems: each kind of failure has its status and its code, in the one form there is, and gives nothing away."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from flowfabric import backends
from flowfabric.server.run import listening
from flowfabric.server.settings import ServerSettings
from tests.server.talking import Reply, Site

UNKNOWN = "{fp:7}:550e8400-e29b-41d4-a716-446655440000"
CREATE = "/v1/executions"

MALFORMED: list[tuple[bytes, int, str]] = [
    (b"", 422, "invalid_body"),
    (b"{", 400, "invalid_json"),
    (b"\xff\xfe", 400, "invalid_json"),
    (b'{"kind":"k"} x', 400, "invalid_json"),
    (b'{"kind":"k","priority":NaN}', 400, "invalid_json"),
    (b'{"kind":"\xff"}', 400, "invalid_json"),
    (b'{"kind":"k","input":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "invalid_json"),
    (b"[]", 422, "invalid_body"),
    (b"null", 422, "invalid_body"),
    (b'{"kind":"k","nope":1}', 422, "invalid_body"),
    (b'{"kind":1}', 422, "invalid_body"),
    (b'{"kind":"k","kind":"k"}', 422, "invalid_body"),
    (b'{"kind":"k","tags":{"a.b":"c","a.b":"d"}}', 422, "invalid_body"),
    (b'{"kind":"k","priority":1e400}', 422, "invalid_body"),
    (b'{"kind":"k","priority":1.5}', 422, "invalid_body"),
    (b'{"kind":"a{b}"}', 400, "invalid_input"),
    (b'{"kind":"k","tags":{"NoDots":"x"}}', 400, "invalid_tag_key"),
    (b'{"kind":"k","policy":{"nope":1}}', 400, "invalid_policy_json"),
    (b'{"kind":"k","policy":{"quota_policy_id":"q"}}', 400, "invalid_policy_json"),
    (b'{"kind":"k","input_base64":"?"}', 422, "invalid_body"),
]


def problem(reply: Reply, status: int, code: str) -> dict[str, Any]:
    """Check a problem and return its error."""
    assert (reply.status, reply.code) == (status, code), reply.body
    assert reply.headers["cache-control"] == "no-store"
    error: dict[str, Any] = reply.json["error"]
    assert error["message"]
    return error


@pytest.mark.parametrize(("body", "status", "code"), MALFORMED)
async def test_malformed_bodies(site: Site, body: bytes, status: int, code: str) -> None:
    """What is no JSON is 400, JSON of another shape 422, a value out of its range 400; nothing is created."""
    problem(await site.send("POST", CREATE, data=body), status, code)
    assert (await site.get(CREATE)).json["executions"] == []


async def test_deep_input_is_the_users(site: Site) -> None:
    """Inside a payload JSON may be nested and repeat keys as its owner likes."""
    deep = b"[" * 100 + b"]" * 100
    for value in (deep, b'{"a":1,"a":2}', b'{"a":' + deep + b"}"):
        reply = await site.send("POST", CREATE, data=b'{"kind":"k","input":' + value + b"}")
        assert reply.status == 201, reply.body
        path = f"{CREATE}/{quote(reply.json['execution_id'], safe='')}/context"
        assert value in (await site.get(path)).body


async def test_unknown_things(site: Site) -> None:
    """What is not there is 404 with the code of what was looked for.

    Acceptance: unknown-things-are-404
    """
    path = f"{CREATE}/{quote(UNKNOWN, safe='')}"
    problem(await site.get(path), 404, "execution_not_found")
    found = f"{CREATE}/{quote(await site.create(), safe='')}"
    problem(await site.get(f"{found}/attempts/5"), 404, "attempt_not_found")
    problem(await site.post("/v1/workers/nobody/heartbeat", {}), 404, "worker_not_registered")


async def test_conflicts(site: Site) -> None:
    """What the state forbids is 409 with a code of its own, and says whether trying again may help."""
    created = await site.post(CREATE, {"kind": "k", "idempotency_key": "a", "input": 1})
    again = await site.post(CREATE, {"kind": "k", "idempotency_key": "a", "input": 2})
    assert problem(again, 409, "idempotency_conflict")["retryable"] is False
    path = f"{CREATE}/{quote(created.json['execution_id'], safe='')}"
    assert problem(await site.get(f"{path}/result"), 409, "execution_not_terminal")["retryable"] is True
    fence = {"lease_id": UNKNOWN[-36:], "lease_epoch": 1, "attempt_id": UNKNOWN[-36:]}
    problem(await site.post(f"{path}/complete", {"fence": fence}), 409, "execution_not_active")
    problem(await site.post(f"{path}/complete", {}), 400, "fence_required")
    problem(await site.post(f"{path}/complete", {"fence": {"lease_epoch": 1}}), 400, "partial_fence_triple")


async def test_limits_of_workers(site: Site) -> None:
    """A lane that takes no creates says so, and that it may later."""
    await site.send("PUT", "/v1/lanes/closed/state", {"state": "disabled"})
    reply = await site.post(CREATE, {"kind": "k", "lane": "closed"})
    assert problem(reply, 409, "lane_not_accepting")["retryable"] is True


async def test_query_fields(site: Site) -> None:
    """A query takes the fields of its operation, once each, in their types."""
    for query in ("nope=1", "limit=1&limit=2", "limit=x", "limit=0", "limit=1e3", "state=nope", "cursor=%00"):
        reply = await site.get(f"{CREATE}?{query}")
        assert reply.status == 400, (query, reply.body)
        assert reply.code in ("invalid_input", "invalid_offset"), reply.body
    problem(await site.send("GET", CREATE, data=b"{}"), 422, "invalid_body")
    problem(await site.post(f"{CREATE}?kind=k", {"kind": "k"}), 400, "invalid_input")


async def test_damage_gives_nothing_away(tmp_path: Path) -> None:
    """A damaged record is a 500 with a code and a request id, without a stack or what was stored; the rest goes on.

    Acceptance: damage-is-reported-never-defaulted
    """
    file = tmp_path / "store.db"
    backend = await backends.connect(f"sqlite:///{file}")
    settings = ServerSettings.load({}, listen="127.0.0.1:0")
    try:
        async with listening(backend, settings) as (server, _), aiohttp.ClientSession() as session:
            site = Site(server.url, backend, session, server.application)
            damaged = await site.create()
            sound = await site.create()
            with contextlib.closing(sqlite3.connect(file)) as editor, editor:
                editor.execute("update execution set record = '{secret' where seq = 1")
            reply = await site.get(f"{CREATE}/{quote(damaged, safe='')}", {"x-request-id": "mine"})
            assert reply.status == 500
            assert reply.code in ("internal", "corrupt")
            for leak in (b"secret", b"Traceback", b".py", b"select", str(tmp_path).encode()):
                assert leak not in reply.body
            assert (await site.get(f"{CREATE}/{quote(sound, safe='')}")).status == 200
    finally:
        await backend.close()
