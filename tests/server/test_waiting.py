"""Long waits: they end when there is something, when the time is over, when the client leaves; they hold no thread."""

from __future__ import annotations

import asyncio
import threading
from typing import Any
from urllib.parse import quote

import pytest

from flowfabric.contract.execution import ExecutionDescribe
from flowfabric.contract.ids import ExecutionId
from flowfabric.contract.states import PublicState
from flowfabric.server import waiting
from tests.server.conftest import Start
from tests.server.talking import PATIENCE_S, Site, connected, until

CLAIM = b'{"worker_instance":"w-1","lanes":["default"],"wait_ms":30000}'
CLAIM_REQUEST = (
    b"POST /v1/workers/w/claim HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(CLAIM), CLAIM)
)


def path_of(execution_id: str) -> str:
    """Return the path of an execution."""
    return f"/v1/executions/{quote(execution_id, safe='')}"


async def waits(site: Site, count: int) -> None:
    """Wait until so many requests are held."""
    await until(lambda: site.application.load.waits == count)


async def state_of(site: Site, execution_id: ExecutionId) -> PublicState:
    """Read where an execution stands, from the store."""
    snapshot = await site.backend.execution.describe(ExecutionDescribe(execution_id=execution_id))
    return snapshot.public_state


async def in_background(site: Site, method: str, path: str, body: Any = None) -> asyncio.Task[Any]:
    """Send a request that waits, and return once the server holds it."""
    task = asyncio.create_task(site.send(method, path, body))
    await waits(site, 1)
    return task


async def test_claim_is_woken(site: Site) -> None:
    """A claim that waits is answered as soon as something can be claimed."""
    body = {"worker_instance": "w-1", "lanes": ["default"], "wait_ms": 30_000}
    waiting_claim = await in_background(site, "POST", "/v1/workers/w/claim", body)
    execution_id = await site.create()
    reply = await asyncio.wait_for(waiting_claim, PATIENCE_S)
    assert [lease["execution_id"] for lease in reply.json["leases"]] == [execution_id]


async def test_claim_that_finds_nothing(site: Site) -> None:
    """A claim whose time is over is answered with no leases."""
    body = {"worker_instance": "w-1", "lanes": ["default"], "wait_ms": 1}
    assert (await site.post("/v1/workers/w/claim", body)).json == {"leases": []}


async def test_gone_client_gets_no_lease(site: Site) -> None:
    """A client that goes away while its claim waits is leased nothing: the next one gets the work."""
    async with connected(site) as socket:
        socket.write(CLAIM_REQUEST)
        await waits(site, 1)
    await waits(site, 0)
    execution_id = await site.create()
    assert await state_of(site, execution_id) is PublicState.WAITING
    assert (await site.claim()).execution_id == execution_id


async def test_clients_that_leave_as_work_arrives(site: Site) -> None:
    """However leaving and work arriving interleave, no execution stays leased to a client that has gone."""
    for _ in range(20):
        async with connected(site) as socket:
            socket.write(CLAIM_REQUEST)
            await waits(site, 1)
            creating = asyncio.create_task(site.create())
            socket.writer.transport.abort()
            execution_id = await creating
        await waits(site, 0)
        lease = await site.claim(wait_ms=20_000)
        assert lease.execution_id == execution_id
        await site.complete(lease)


async def test_result_is_awaited(site: Site) -> None:
    """A read of a result that waits is answered when the execution ends, also on the raw route."""
    execution_id = await site.create()
    for suffix in ("/result", "/result/raw"):
        waiting_read = await in_background(site, "GET", f"{path_of(execution_id)}{suffix}?wait_ms=30000")
        if suffix == "/result":
            await site.complete(await site.claim())
            assert (await asyncio.wait_for(waiting_read, PATIENCE_S)).json["status"] == "completed"
            execution_id = await site.create()
        else:
            await site.complete(await site.claim())
            assert (await asyncio.wait_for(waiting_read, PATIENCE_S)).status == 204


async def test_result_that_does_not_come(site: Site) -> None:
    """A read of a result whose time is over says that the execution has not ended."""
    reply = await site.get(f"{path_of(await site.create())}/result?wait_ms=1")
    assert (reply.status, reply.code) == (409, "execution_not_terminal")


async def test_tail_is_woken(site: Site) -> None:
    """A tail that waits is answered with the frame as it is written."""
    await site.create()
    lease = await site.claim()
    path = f"{path_of(lease.execution_id)}/attempts/0/stream/tail?wait_ms=30000"
    tail = await in_background(site, "GET", path)
    frame_id = await site.append(lease, 1, "hello")
    page = (await asyncio.wait_for(tail, PATIENCE_S)).json
    assert ([frame["payload"] for frame in page["frames"]], page["next_cursor"]) == (["hello"], frame_id)


@pytest.mark.parametrize("wait_ms", [-1, 30_001, "x"])
async def test_wait_bounds(site: Site, wait_ms: Any) -> None:
    """A wait is at most 30 seconds."""
    reply = await site.get(f"{path_of(await site.create())}/result?wait_ms={wait_ms}")
    assert (reply.status, reply.code) == (400, "invalid_input")


async def test_waits_hold_no_thread(site: Site) -> None:
    """A hundred waiting tails need no more threads than one, and hold up nobody.

    Acceptance: waits-hold-no-thread
    """
    execution_id = await site.create()
    path = f"{path_of(execution_id)}/stream/tail?wait_ms=30000"
    first = await in_background(site, "GET", path)
    before = threading.active_count()
    tails: list[asyncio.Task[Any]] = []
    for held in range(2, 101):
        tails.append(asyncio.create_task(site.get(path)))
        await waits(site, held)
    assert threading.active_count() <= before + 1
    assert (await site.get("/v1/lanes")).status == 200
    await site.append(await site.claim(), 1, "x")
    replies = await asyncio.wait_for(asyncio.gather(first, *tails), PATIENCE_S)
    assert {reply.status for reply in replies} == {200}


async def test_bound_on_waits(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """One wait more than the server holds is told to come back, with the time to wait.

    Acceptance: waits-over-the-limit-are-429
    """
    monkeypatch.setattr(waiting, "WAITS_MAX", 2)
    path = f"{path_of(await site.create())}/result?wait_ms=30000"
    held = [asyncio.create_task(site.get(path)) for _ in range(2)]
    await waits(site, 2)
    reply = await site.get(path)
    assert (reply.status, reply.code) == (429, "resource_exhausted")
    assert int(reply.headers["retry-after"]) >= 1
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)
    await waits(site, 0)
    assert (await site.get(path.replace("30000", "1"))).code == "execution_not_terminal"


async def test_bound_on_stream_reads(start: Start) -> None:
    """Stream reads at once are bounded by their setting; tails that wait are not counted among them.

    Acceptance: stream-reads-over-the-limit-are-429
    """
    site = await start({"FF_MAX_CONCURRENT_STREAM_OPS": "1"})
    path = path_of(await site.create())
    async with site.application.load.stream_read():
        for name in ("stream", "stream/tail"):
            reply = await site.get(f"{path}/{name}")
            assert (reply.status, reply.code) == (429, "resource_exhausted")
            assert reply.details["pool"] == "stream_ops"
            assert "retry-after" in reply.headers
        tail = await in_background(site, "GET", f"{path}/stream/tail?wait_ms=30000")
    assert (await site.get(f"{path}/stream")).status == 200
    tail.cancel()
    await asyncio.gather(tail, return_exceptions=True)
    await waits(site, 0)
