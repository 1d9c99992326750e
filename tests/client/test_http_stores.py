"""The HTTP client against a real server, and against things that are none."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from flowfabric.client.facade import Client
from flowfabric.client.http import HttpStores
from flowfabric.contract.errors import (
    FlowFabricError,
    InvalidInput,
    Misuse,
    OutcomeUnknown,
    PayloadTooLarge,
    Unauthorized,
    Unavailable,
)
from flowfabric.contract.execution import (
    ExecutionById,
    ExecutionCreate,
    ExecutionDescribe,
    ExecutionReadContext,
)
from flowfabric.contract.ids import ExecutionId, Kind, Lane
from flowfabric.contract.lane import LaneList, LaneSetState
from flowfabric.contract.operations import OPERATIONS, STORES, Operation
from flowfabric.contract.payloads import Payload
from flowfabric.contract.states import LaneState
from tests.client.conftest import Served

UNKNOWN_ID = ExecutionId("{fp:7}:00000000-0000-4000-8000-000000000000")
SAMPLES: dict[str, Any] = {
    "execution_id": UNKNOWN_ID,
    "kind": "k",
    "lane": "l",
    "lanes": ["l"],
    "worker_id": "w",
    "worker_instance": "w-1",
    "state": "active",
    "reason": "attempt_timeout",
    "attempt_index": 0,
    "tags": {"a.b": "c"},
    "priority": 1,
    "delay_until_ms": 1,
    "frames": [{"sequence": 1}],
    "executions": [],
    "fence": {"lease_id": UNKNOWN_ID[-36:], "lease_epoch": 1, "attempt_id": UNKNOWN_ID[-36:]},
}


def sample(operation: Operation) -> msgspec.Struct:
    """Make a well-formed command of an operation."""
    needed = [field.name for field in msgspec.structs.fields(operation.command) if field.required]
    if "fence" in operation.command.__struct_fields__:
        needed.append("fence")
    if operation.name == "execution.create_many":
        command = ExecutionCreate(kind=Kind("k"))
        return operation.command(executions=(command,))
    values = {name: SAMPLES[name] for name in needed}
    if operation.name == "lease.grant":
        values["lanes"] = ["l"]
    return msgspec.convert(values, operation.command)


@pytest.mark.parametrize("concept", STORES)
def test_every_store_is_there(concept: str) -> None:
    """The client has the store of each concept, with a coroutine for each operation and nothing else."""
    store = getattr(HttpStores("http://127.0.0.1:1"), concept)
    verbs = {operation.verb for operation in OPERATIONS.values() if operation.concept == concept}
    assert {name for name in dir(store) if not name.startswith("_")} == verbs
    for verb in verbs:
        method = getattr(store, verb)
        assert inspect.iscoroutinefunction(method)
        assert method.__doc__ and method.__doc__.startswith(OPERATIONS[f"{concept}.{verb}"].summary)


@pytest.mark.parametrize("name", OPERATIONS)
async def test_every_operation_is_answered(name: str, served: Served) -> None:
    """Each operation reaches its route: the answer is its reply or a refusal it declares."""
    operation = OPERATIONS[name]
    stores = HttpStores(served.url)
    method = getattr(getattr(stores, operation.concept), operation.verb)
    try:
        reply = await method(sample(operation))
    except FlowFabricError as error:
        assert isinstance(error, operation.refuses), error
    else:
        assert isinstance(reply, operation.replies)
    finally:
        await stores.close()


async def test_a_command_of_another_operation_is_refused(served: Served) -> None:
    """Giving an operation the wrong command is the caller's bug and named as such."""
    stores = HttpStores(served.url)
    with pytest.raises(Misuse, match="ExecutionDescribe"):
        await stores.execution.describe(ExecutionById(execution_id=UNKNOWN_ID))  # pyright: ignore[reportArgumentType]
    await stores.close()


async def test_malformed_commands_do_not_travel(served: Served) -> None:
    """A malformed id is refused by the client exactly as by a store, without a request."""
    stores = HttpStores("http://127.0.0.1:1")
    with pytest.raises(InvalidInput):
        await stores.execution.describe(ExecutionDescribe(execution_id=ExecutionId("../../x")))
    large = Payload(b'"' + b"x" * (1024 * 1024 - 2) + b'"')
    reached = HttpStores(served.url)
    with pytest.raises(PayloadTooLarge):
        await reached.execution.create(ExecutionCreate(kind=Kind("k"), input=large))
    await reached.close()


@pytest.mark.parametrize(
    "payload",
    [
        Payload(b'{"b": 1,  "a": [1.0, 1e2, "\\u00fc"]}'),
        Payload(b"null"),
        Payload(bytes(range(256)), "application/octet-stream"),
        Payload(b"", "text/plain; charset=utf-8"),
        Payload(b'"' + b"x" * 700_000 + b'"'),
    ],
)
async def test_payloads_come_back_identical(served: Served, payload: Payload) -> None:
    """The bytes and the content type of an input are those that were sent."""
    stores = HttpStores(served.url)
    created = await stores.execution.create(ExecutionCreate(kind=Kind("k"), input=payload))
    read = await stores.execution.read_context(ExecutionReadContext(execution_id=created.execution_id))
    assert read.input == payload
    await stores.close()


async def test_capabilities_are_the_stores(served: Served) -> None:
    """The server answers with the capabilities of the store behind it."""
    stores = HttpStores(served.url)
    capabilities = await stores.capabilities()
    assert (capabilities.family, capabilities.partitions) == (
        (await served.backend.capabilities()).family,
        (await served.backend.capabilities()).partitions,
    )
    await stores.ping()
    await stores.close()


async def test_the_clock_is_the_servers(served: Served) -> None:
    """The client knows the server's clock to within a couple of seconds."""
    import time

    stores = HttpStores(served.url)
    assert abs(await stores.now_ms() - time.time() * 1_000) < 3_000
    await stores.close()


async def test_one_client_serves_many_calls(served: Served) -> None:
    """Hundreds of calls at once share the client's connections and are all answered."""
    stores = HttpStores(served.url)
    client = Client(stores)
    runs = await asyncio.gather(*(client.submit("count", n=n) for n in range(300)))
    assert len({run.id for run in runs}) == 300
    await stores.close()


async def test_a_client_stays_on_its_loop(served: Served) -> None:
    """Using one client from two event loops is refused with what to do instead."""
    stores = HttpStores(served.url)
    await stores.ping()

    def elsewhere() -> None:
        with pytest.raises(Misuse, match="one client per loop"):
            asyncio.run(stores.ping())

    await asyncio.to_thread(elsewhere)
    await stores.close()


async def test_proxies_of_the_environment_are_ignored(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy in the environment does not get the client's requests unless it was asked for."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    stores = HttpStores(served.url)
    await stores.ping()
    await stores.close()
    asked = HttpStores(served.url, trust_environment=True)
    with pytest.raises(Unavailable):
        await asked.ping()
    await asked.close()


# Tokens -----------------------------------------------------------------------------------------------------------


async def test_a_token_is_asked_for(guarded: Served) -> None:
    """Without a token, and with a wrong one, the error says which and how to give it; the token is not in it."""
    bare, wrong = HttpStores(guarded.url), HttpStores(guarded.url, token="not-this-one")
    right = HttpStores(guarded.url, token=guarded.token)
    with pytest.raises(Unauthorized, match="FLOWFABRIC_TOKEN"):
        await bare.lane.list(LaneList())
    with pytest.raises(Unauthorized, match="does not accept") as caught:
        await wrong.lane.list(LaneList())
    assert "not-this-one" not in str(caught.value)
    await right.lane.list(LaneList())
    for stores in (bare, wrong, right):
        await stores.close()


@pytest.mark.parametrize("token", ["", "a\nb", "ä"])
def test_odd_tokens_are_refused(token: str) -> None:
    """A token that could not be sent as a header is refused before anything is sent.

    Acceptance: odd-tokens-are-refused
    """
    with pytest.raises(Misuse, match="printable ASCII"):
        HttpStores("http://127.0.0.1:1", token=token)


# Things that are no FlowFabric server -----------------------------------------------------------------------------


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncGenerator[str]:
    """Run a server that gives these answers, whatever it is asked, one a connection; the last again and again."""
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(left.pop(0) if len(left) > 1 else left[0])
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def answer(status: str, body: bytes, *headers: str, kind: str = "application/json") -> bytes:
    """Write an HTTP answer."""
    lines = [
        f"HTTP/1.1 {status}",
        f"content-type: {kind}",
        f"content-length: {len(body)}",
        "connection: close",
    ]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


@pytest.mark.parametrize(
    ("reply", "kind", "text"),
    [
        (answer("302 Found", b"", "location: http://127.0.0.1:1/"), Misuse, "redirects"),
        (answer("404 Not Found", b"<h1>nginx</h1>", kind="text/html"), Misuse, "status 404"),
        (answer("502 Bad Gateway", b"<h1>bad</h1>", kind="text/html"), OutcomeUnknown, "status 502"),
        (answer("503 Busy", b"<h1>busy</h1>", kind="text/html"), Unavailable, "status 503"),
        (answer("200 OK", b"<h1>welcome</h1>", kind="text/html"), Misuse, "cannot be understood"),
        (answer("200 OK", b'{"lane": 7}'), Misuse, "cannot be understood"),
        (answer("200 OK", b" " * 2_000), Misuse, "larger than 1000 bytes"),
        (b"220 smtp.example.org ready\r\n", Unavailable, "not answered"),
    ],
)
async def test_odd_answers_are_named(reply: bytes, kind: type[FlowFabricError], text: str) -> None:
    """An answer that no FlowFabric server gives is an error that says what came instead."""
    async with answering(reply) as url:
        stores = HttpStores(url, timeout_s=0.5, reply_bytes_max=1_000)
        try:
            with pytest.raises(kind, match=text):
                await stores.lane.set_state(LaneSetState(lane=Lane("l"), state=LaneState.PAUSED))
        finally:
            await stores.close()


async def test_unknown_fields_and_codes_are_taken() -> None:
    """Replies of newer servers may have more fields, and refuse with codes this client does not know."""
    body = b'{"lane":"l","state":"paused","previous":"active","since":{"newer":true}}'
    async with answering(answer("200 OK", body)) as url:
        stores = HttpStores(url)
        reply = await stores.lane.set_state(LaneSetState(lane=Lane("l"), state=LaneState.PAUSED))
        assert reply.previous is LaneState.ACTIVE
        await stores.close()
    body = b'{"error":{"code":"moon_phase","message":"not tonight","retryable":false,"details":{}}}'
    async with answering(answer("409 Conflict", body)) as url:
        stores = HttpStores(url)
        with pytest.raises(FlowFabricError, match="not tonight"):
            await stores.lane.list(LaneList())
        await stores.close()
