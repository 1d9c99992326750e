"""Whatever a request holds, the answer is a reply or a problem with a 4xx code: never a 500, never a partial write."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from flowfabric import backends
from flowfabric.contract.errors import BY_CODE
from flowfabric.contract.operations import OPERATIONS
from flowfabric.server.app import create_app
from flowfabric.server.settings import ServerSettings
from tests.server.conftest import MEMORY

EXECUTION = "{fp:7}:550e8400-e29b-41d4-a716-446655440000"
UUID = "550e8400-e29b-41d4-a716-446655440000"
FENCE = {"lease_id": UUID, "lease_epoch": 1, "attempt_id": UUID}
SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large)

Ask = Callable[[str, bytes, bytes, list[tuple[bytes, bytes]], list[bytes]], Awaitable[tuple[int, bytes]]]

HEADERS = [
    b"accept",
    b"last-event-id",
    b"x-request-id",
    b"origin",
    b"authorization",
    b"host",
    b"content-length",
    b"content-type",
    b"traceparent",
    b"expect",
    b"cookie",
]
GOOD: dict[str, Any] = {
    "fence": FENCE,
    "kind": "k",
    "input": {"a": [1, 2]},
    "worker_id": "w",
    "worker_instance": "w-1",
    "lanes": ["default"],
    "tags": {"app.tier": "gold"},
    "priority": 1,
    "state": "active",
    "frames": [{"sequence": 1, "payload": 1}],
    "executions": [{"kind": "k"}],
    "policy": {"retry_policy": {"backoff": {"type": "fixed"}}},
    "delay_until_ms": 1,
    "reason": "attempt_timeout",
}
"""A value that some operation takes for each field."""

texts = st.text(max_size=12)
hard = st.sampled_from(
    [
        "",
        "\x00",
        "\r\n",
        "'; drop table execution; --",
        "{fp:0}:x",
        "../..",
        "a" * 3_000,
        "\u2028",
        "\ud7ff",
        "٣",
    ]
)
numbers = st.sampled_from([-1, 0, 2**31, 2**53, 2**63, 2**64, -(2**63) - 1, 10**30, 0.5, 1e308])
leaves = st.none() | st.booleans() | numbers | texts | hard | st.integers()
names = texts | st.sampled_from(sorted(GOOD))
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
header_values = st.binary(max_size=60).filter(lambda value: not {0, 10, 13} & set(value))


@pytest.fixture
async def ask() -> AsyncGenerator[Ask]:
    """Ask the application in this process, without a network; afterwards the store must be sound and untouched."""
    backend = await backends.connect(MEMORY)
    application = create_app(backend, ServerSettings.load({}))

    async def asked(
        method: str, raw_path: bytes, query: bytes, headers: list[tuple[bytes, bytes]], pieces: list[bytes]
    ) -> tuple[int, bytes]:
        waiting = list(pieces)
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            if not waiting:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": method, "path": raw_path.decode("latin-1"), "raw_path": raw_path,
            "query_string": query, "headers": headers, "http_version": "1.1", "scheme": "http",
        }  # fmt: skip
        await application(scope, receive, send)
        assert sent[0]["type"] == "http.response.start"
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])

    try:
        yield asked
        report = await backend.maintenance.fsck()
        assert not report.findings
    finally:
        await backend.close()


def judge(status: int, body: bytes) -> None:
    """Check that an answer is a reply or a problem that blames the request."""
    if status < 400:
        return
    assert status < 500, body
    error = json.loads(body)["error"]
    assert set(error) == {"code", "message", "retryable", "details"}
    assert BY_CODE[error["code"]].http_status == status
    assert len(error["message"]) < 2_000
    for leak in ("Traceback", ".py", "sqlite", "SELECT", "INSERT"):
        assert leak not in error["message"], error


def path_of(route: Any, draw: Callable[[Any], Any]) -> bytes:
    """Fill a route's path with good and bad parameters."""
    good = {"execution_id": EXECUTION, "attempt_index": "0"}
    parts: list[bytes] = []
    for part in route.path.split("/"):
        if not part.startswith("{"):
            parts.append(part.encode())
        elif draw(st.integers(0, 3)):
            parts.append(good.get(part[1:-1], "name").encode())
        else:
            wild = st.text(min_size=1, max_size=12).map(lambda text: quote(text, safe="").encode())
            parts.append(draw(wild | st.sampled_from([b"%ff", b"%00", b"%2F", b"%", b"%zz", b"{}", b"-1"])))
    return b"/".join(parts)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
@given(st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=(*SLOW, HealthCheck.function_scoped_fixture))
async def test_any_request(ask: Ask, operation: Any, data: st.DataObject) -> None:
    """Every operation refuses whatever it cannot take, with a code."""
    draw: Callable[[Any], Any] = data.draw
    route = draw(st.sampled_from(operation.routes))
    fields = st.sampled_from(operation.command.__struct_fields__)
    document: dict[str, Any] = {
        name: GOOD[name] for name in operation.command.__struct_fields__ if name in GOOD
    }
    for name in route.fields + tuple(name for name, _ in route.fixed):
        document.pop(name, None)
    document.update(draw(st.dictionaries(fields | texts, values, max_size=2)))
    query, pieces = b"", [b""]
    if route.method == "GET":
        chosen = draw(st.lists(st.tuples(fields | texts, texts | hard | numbers.map(str)), max_size=3))
        query = draw(st.just(urlencode(chosen).encode()) | st.binary(max_size=20))
        query = b"&".join(part for part in query.split(b"&") if not part.startswith(b"wait_ms"))
    else:
        body = draw(
            st.just(json.dumps(document).encode())
            | values.map(lambda value: json.dumps(value).encode())
            | st.binary(max_size=60)
        )
        if draw(st.integers(0, 4)) == 0 and body:
            at = draw(st.integers(0, len(body) - 1))
            body = body[:at] + draw(st.binary(max_size=3)) + body[at + 1 :]
        cut = draw(st.integers(0, len(body)))
        pieces = [body[:cut], body[cut:]] if cut else [body]
    document.pop("wait_ms", None)
    headers = [(b"content-type", b"application/json")]
    headers += draw(st.lists(st.tuples(st.sampled_from(HEADERS), header_values), max_size=3))
    judge(*await ask(route.method, path_of(route, draw), query, headers, pieces))


@given(
    st.binary(max_size=40),
    st.binary(max_size=40),
    st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=1, max_size=8),
)
@settings(max_examples=300, deadline=None, suppress_health_check=(*SLOW, HealthCheck.function_scoped_fixture))
async def test_any_path(ask: Ask, path: bytes, query: bytes, method: str) -> None:
    """Every path is a route or none."""
    status, body = await ask(method, b"/" + path, query, [], [b""])
    if method == "HEAD":
        assert (status < 500, body) == (True, b"")
    else:
        judge(status, body)


REFUSED_CREATES = [
    {"kind": "k", "tags": {"a.b": "x", "nodots": "y"}},
    {"kind": "k", "policy": {"retry_policy": {"max_retries": -1}}},
    {"kind": "k", "lane": "bad lane"},
    {"kind": "k", "execution_id": "{fp:1}:550e8400-e29b-41d4-a716-446655440000", "idempotency_key": "a"},
    {"kind": "k", "input": 1, "input_base64": "AA=="},
]


@pytest.mark.parametrize("body", REFUSED_CREATES)
async def test_refused_creates_leave_nothing(ask: Ask, body: dict[str, Any]) -> None:
    """A refused create leaves no execution, no lane and no trace of its key."""
    headers = [(b"content-type", b"application/json")]
    status, answer = await ask("POST", b"/v1/executions", b"", headers, [json.dumps(body).encode()])
    assert 400 <= status < 500, answer
    for path in (b"/v1/executions", b"/v1/lanes"):
        status, answer = await ask("GET", path, b"", [], [b""])
        (entries,) = (value for value in json.loads(answer).values() if isinstance(value, list))
        assert [entry for entry in entries if entry.get("lane") != "default"] == []
        assert path == b"/v1/lanes" or entries == []


async def test_client_that_leaves_in_the_body(ask: Ask) -> None:
    """A client that leaves before its body is complete has created nothing."""
    backend_headers = [(b"content-type", b"application/json"), (b"content-length", b"100")]
    with pytest.raises(IndexError):
        await ask("POST", b"/v1/executions", b"", backend_headers, [])
    _, answer = await ask("GET", b"/v1/executions", b"", [], [b""])
    assert json.loads(answer)["executions"] == []
