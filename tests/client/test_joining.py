"""Calls of one turn of the event loop: they travel as one request, and each keeps its own outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from flowfabric.client.endpoint import parse_endpoint
from flowfabric.client.facade import Client
from flowfabric.client.http import HttpStores
from flowfabric.client.joining import Joiner
from flowfabric.client.transport import Answer, Request, Transport
from flowfabric.contract import limits
from flowfabric.contract.errors import (
    ExecutionNotFound,
    FlowFabricError,
    InvalidInput,
    InvalidJson,
    OutcomeUnknown,
    PayloadTooLarge,
    Unauthorized,
    Unavailable,
)
from flowfabric.contract.execution import (
    ExecutionCancel,
    ExecutionComplete,
    ExecutionCreate,
    ExecutionCreated,
    ExecutionDescribe,
    ExecutionDuplicate,
    ExecutionReadResult,
    ExecutionReplay,
    ResultCompleted,
)
from flowfabric.contract.ids import ExecutionId, Kind
from flowfabric.contract.lease import LeaseRenew, LeaseRenewed
from flowfabric.contract.operations import OPERATIONS
from flowfabric.contract.payloads import Payload
from tests.client.conftest import Served
from tests.client.cutting import Cut, CuttingProxy, cutting
from tests.client.working import claim

UNKNOWN_ID = ExecutionId("{fp:7}:00000000-0000-4000-8000-000000000000")
CREATE = ExecutionCreate(kind=Kind("k"))
BATCH = "POST /v1/batch"
ALONE = "POST /v1/executions"


@pytest.fixture
async def proxy(served: Served) -> AsyncGenerator[CuttingProxy]:
    """A proxy in front of the server."""
    async with cutting(served.port) as running:
        yield running


@pytest.fixture
async def stores(proxy: CuttingProxy) -> AsyncGenerator[HttpStores]:
    """A client through the proxy, which has talked to the server before."""
    stores = HttpStores(proxy.url)
    await stores.capabilities()
    yield stores
    await stores.close()


async def count(stores: HttpStores) -> int:
    """Count the executions there are."""
    return len([info async for info in Client(stores).list()])


async def test_calls_of_one_turn_are_one_request(proxy: CuttingProxy, stores: HttpStores) -> None:
    """What is called at the same time costs one request; every caller gets its own answer or refusal.

    Acceptance: concurrent-calls-share-a-request
    """
    results = await asyncio.gather(
        *(stores.execution.create(CREATE) for _ in range(5)),
        stores.execution.cancel(ExecutionCancel(execution_id=UNKNOWN_ID)),
        stores.execution.create(ExecutionCreate(kind=Kind("a{b}"))),
        return_exceptions=True,
    )
    assert proxy.count(BATCH) == 1 and proxy.count(ALONE) == 0
    created = [reply.execution_id for reply in results[:5] if isinstance(reply, ExecutionCreated)]
    assert len(set(created)) == 5
    assert isinstance(results[5], ExecutionNotFound)
    assert isinstance(results[6], InvalidInput)
    assert await count(stores) == 5


async def test_a_lone_call_goes_by_its_own_route(proxy: CuttingProxy, stores: HttpStores) -> None:
    """Calls one after the other wait for no company; reads never travel together."""
    one = (await stores.execution.create(CREATE)).execution_id
    other = (await stores.execution.create(CREATE)).execution_id
    describe = [stores.execution.describe(ExecutionDescribe(execution_id=each)) for each in (one, other)]
    assert {info.execution_id for info in await asyncio.gather(*describe)} == {one, other}
    assert proxy.count(BATCH) == 0 and proxy.count(ALONE) == 2


async def test_results_go_out_together(proxy: CuttingProxy, stores: HttpStores) -> None:
    """Results of several tasks, of whatever bytes, are one request and are stored as they are."""
    payloads = [Payload(b'{"n" : 1}'), Payload(b"\xff\x00", "application/x-bytes"), None]
    await asyncio.gather(*(stores.execution.create(CREATE) for _ in payloads))
    leases = await claim(stores, tasks=3)
    await asyncio.gather(
        *(
            stores.execution.complete(
                ExecutionComplete(execution_id=lease.execution_id, fence=lease.fence, result=payload)
            )
            for lease, payload in zip(leases, payloads, strict=True)
        )
    )
    assert proxy.count(BATCH) == 2
    for lease, payload in zip(leases, payloads, strict=True):
        read = await stores.execution.read_result(ExecutionReadResult(execution_id=lease.execution_id))
        assert isinstance(read, ResultCompleted) and read.result == payload


@pytest.mark.parametrize("cut", [Cut.REQUEST, Cut.REPLY, Cut.MIDDLE])
async def test_a_lost_batch_is_sent_again(proxy: CuttingProxy, stores: HttpStores, cut: Cut) -> None:
    """When a batch or its answer is lost, what is safe to repeat is repeated and happens once."""
    proxy.cut(BATCH, cut)
    replies = await asyncio.gather(*(stores.execution.create(CREATE) for _ in range(4)))
    assert all(
        isinstance(reply, ExecutionCreated if cut is Cut.REQUEST else ExecutionDuplicate) for reply in replies
    )
    assert await count(stores) == 4


async def test_what_cannot_be_repeated_is_unknown(proxy: CuttingProxy) -> None:
    """In a batch whose answer is lost, a call that is not safe to repeat is reported as unknown; others go on."""
    stores = HttpStores(proxy.url, timeout_s=10.0)
    await stores.capabilities()
    proxy.cut(BATCH, Cut.REPLY)
    replayed, created = await asyncio.gather(
        stores.execution.replay(ExecutionReplay(execution_id=UNKNOWN_ID)),
        stores.execution.create(CREATE),
        return_exceptions=True,
    )
    assert isinstance(replayed, OutcomeUnknown)
    assert isinstance(created, ExecutionDuplicate)
    await stores.close()


async def test_a_caller_that_leaves_takes_nobody_along(proxy: CuttingProxy, stores: HttpStores) -> None:
    """A cancelled call leaves the others of its batch alone, before and after it is sent."""
    early = asyncio.create_task(_create(stores))
    late = asyncio.create_task(_create(stores))
    rest = [asyncio.create_task(_create(stores)) for _ in range(2)]
    await asyncio.sleep(0)
    early.cancel()
    await proxy.arrival(BATCH)
    late.cancel()
    assert all(isinstance(reply, ExecutionCreated) for reply in await asyncio.gather(*rest))
    assert early.cancelled() and late.cancelled()
    assert 2 <= await count(stores) <= 3


async def _create(stores: HttpStores) -> ExecutionCreated | ExecutionDuplicate:
    return await stores.execution.create(CREATE)


async def test_large_calls_go_alone(proxy: CuttingProxy, stores: HttpStores) -> None:
    """Calls that are large travel by themselves; one that is too large is refused before anything is sent."""
    large = ExecutionCreate(kind=Kind("k"), input=Payload(b'"' + b"x" * 100_000 + b'"'))
    reason = "x" * (limits.BODY_CONTROL_MAX + 2_000)
    refused, *created = await asyncio.gather(
        stores.execution.cancel(ExecutionCancel(execution_id=UNKNOWN_ID, reason=reason)),
        stores.execution.create(large),
        stores.execution.create(large),
        stores.execution.create(CREATE),
        return_exceptions=True,
    )
    assert isinstance(refused, InvalidInput | PayloadTooLarge)
    assert all(isinstance(reply, ExecutionCreated) for reply in created)
    assert (proxy.count(BATCH), proxy.count(ALONE)) == (0, 3)


async def test_many_calls_are_several_batches(proxy: CuttingProxy, stores: HttpStores) -> None:
    """However many call at once: as many batches as their number and their size ask for."""
    many = 2 * limits.BATCH_CALLS_MAX + 1
    await asyncio.gather(*(stores.execution.create(CREATE) for _ in range(many)))
    assert (proxy.count(BATCH), proxy.count(ALONE)) == (2, 1)
    middling = ExecutionCreate(kind=Kind("k"), input=Payload(b'"' + b"x" * 60_000 + b'"'))
    await asyncio.gather(*(stores.execution.create(middling) for _ in range(10)))
    assert (proxy.count(BATCH), proxy.count(ALONE)) == (4, 1)
    assert await count(stores) == many + 10


async def test_batches_are_refused_as_calls_are(guarded: Served) -> None:
    """Who is not let in is told so for every call; a server that is away is away for each."""
    stores = HttpStores(guarded.url, token="n" * 40)
    ids = ["{fp:1}:00000000-0000-4000-8000-00000000000" + digit for digit in "123"]
    calls = [ExecutionCreate(kind=Kind("k"), execution_id=ExecutionId(each)) for each in ids]
    results = await asyncio.gather(*map(stores.execution.create, calls), return_exceptions=True)
    assert all(isinstance(result, Unauthorized) for result in results)
    await stores.close()
    away = HttpStores("http://127.0.0.1:1", timeout_s=1.0)
    results = await asyncio.gather(*map(away.execution.create, calls), return_exceptions=True)
    assert all(
        isinstance(result, Unavailable) and not isinstance(result, OutcomeUnknown) for result in results
    )
    assert len({id(result) for result in results}) == 3
    await away.close()


async def test_a_batch_that_is_not_answered(proxy: CuttingProxy) -> None:
    """Every call of a batch that stays without an answer ends at its deadline, as unknown."""
    stores = HttpStores(proxy.url, timeout_s=0.5)
    await stores.capabilities()
    proxy.cut(BATCH, Cut.SILENCE, times=100)
    results = await asyncio.gather(
        *(stores.execution.create(CREATE) for _ in range(3)), return_exceptions=True
    )
    assert all(isinstance(result, OutcomeUnknown) for result in results)
    await stores.close()


async def test_deadlines_of_their_own(served: Served) -> None:
    """Calls whose deadlines are far apart do not travel together: none waits for less or more than its own."""
    transport = Transport(parse_endpoint(served.url), token=None, user_agent="test")
    joiner = Joiner(transport)
    operation = OPERATIONS["execution.create"]
    commands = [
        ExecutionCreate(
            kind=Kind("k"), execution_id=ExecutionId(f"{{fp:1}}:00000000-0000-4000-8000-00000000000{number}")
        )
        for number in range(4)
    ]
    timeouts = [5.0, 5.1, 9.0, 5.2]
    sent: list[tuple[str, float]] = []
    exchange = transport.exchange

    async def noted(request: Request, timeout_s: float) -> Answer:
        sent.append((request.path, round(timeout_s, 1)))
        return await exchange(request, timeout_s)

    transport.exchange = noted
    answers = await asyncio.gather(
        *(
            joiner.exchange(operation, command, timeout_s, long=False)
            for command, timeout_s in zip(commands, timeouts, strict=True)
        )
    )
    assert [answer.status for answer in answers] == [201] * 4
    assert sorted(sent) == [("/v1/batch", 5.0), ("/v1/executions", 9.0)]
    await transport.close()


async def test_a_closed_client(proxy: CuttingProxy, stores: HttpStores) -> None:
    """Closing the client ends the calls of a batch that is under way."""
    proxy.cut(BATCH, Cut.SILENCE)
    calls = [asyncio.create_task(_create(stores)) for _ in range(3)]
    await proxy.arrival(BATCH)
    await stores.close()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, FlowFabricError) for result in results)


async def test_renewals_wait_for_nobody(served: Served, stores: HttpStores) -> None:
    """Leases are renewed each by itself: one that takes long keeps nobody from knowing that another is safe."""
    await asyncio.gather(*(stores.execution.create(CREATE) for _ in range(3)))
    leases = await claim(stores, tasks=3)
    renew, goes_on = served.backend.lease.renew, asyncio.Event()

    async def stuck(command: LeaseRenew) -> LeaseRenewed:
        if command.execution_id == leases[0].execution_id:
            await goes_on.wait()
        return await renew(command)

    served.backend.lease.renew = stuck
    first, *others = (
        asyncio.create_task(
            stores.lease.renew(LeaseRenew(execution_id=lease.execution_id, fence=lease.fence))
        )
        for lease in leases
    )
    async with asyncio.timeout(10):
        await asyncio.gather(*others)
    assert not first.done()
    goes_on.set()
    await first


async def test_what_no_server_can_read_costs_the_others_nothing(served: Served) -> None:
    """When one input is nested so deeply that the server refuses its whole batch, what went along is created."""
    stores = HttpStores(served.url)
    await stores.capabilities()
    for depth in range(900, 1_000):
        deep = ExecutionCreate(kind=Kind("k"), input=Payload(b"[" * depth + b"]" * depth))
        nested, plain = await asyncio.gather(
            stores.execution.create(deep), stores.execution.create(CREATE), return_exceptions=True
        )
        assert isinstance(nested, InvalidJson | ExecutionCreated)
        assert isinstance(plain, ExecutionCreated), depth
    await stores.close()


@pytest.mark.parametrize(
    ("status", "batches"), [("404 Not Found", 1), ("403 Forbidden", 2), ("413 Too Large", 2)]
)
async def test_who_takes_no_batches(served: Served, status: str, batches: int) -> None:
    """Where a server of before batches, or a proxy, refuses them, calls of one turn are sent one by one."""
    asked: list[bytes] = []

    async def older(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Refuse a batch; pass everything else on to the real server."""
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", served.port)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (
                        int(line[15:])
                        for line in head.lower().split(b"\r\n")
                        if line.startswith(b"content-length:")
                    ),
                    0,
                )
                body = await reader.readexactly(length)
                asked.append(head.split(b" ")[1])
                if asked[-1] == b"/v1/batch":
                    writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode())
                    continue
                up_writer.write(head + body)
                answer = await up_reader.readuntil(b"\r\n\r\n")
                size = next(
                    int(line[15:])
                    for line in answer.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                )
                writer.write(answer + await up_reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            up_writer.close()

    server = await asyncio.start_server(older, "127.0.0.1", 0)
    stores = HttpStores(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await stores.capabilities()
    for _ in range(2):
        await asyncio.gather(*(stores.execution.create(CREATE) for _ in range(3)))
    assert asked.count(b"/v1/batch") == batches and asked.count(b"/v1/executions") == 6
    await stores.close()
    server.close()
    await server.wait_closed()
