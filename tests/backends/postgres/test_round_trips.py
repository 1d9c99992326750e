"""How often an operation goes to the server: hot ones once, many at a time share a few statements, an idle store rests.

What is counted is what ends a statement on the wire, `Sync` messages, seen by a proxy.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import pytest

from flowfabric import backends
from flowfabric.contract.backend import Backend
from flowfabric.contract.execution import (
    ExecutionComplete,
    ExecutionCreate,
    ExecutionCreateMany,
    ExecutionDescribe,
    ExecutionFail,
    ExecutionProgress,
    ExecutionReadResult,
    ExecutionReadState,
)
from flowfabric.contract.ids import Kind, Lane, WorkerId, WorkerInstance
from flowfabric.contract.lease import Lease, LeaseClaim, LeaseRenew
from flowfabric.contract.payloads import Payload
from flowfabric.contract.stream import FrameInput, StreamAppend, StreamRead
from flowfabric.engine.supervisor import Engine
from tests.backends.postgres.work import FEW
from tests.postgres.servers import Node
from tests.proxy import Proxy, proxied

SYNC: Final = b"S\0\0\0\4"
IDLE_S: Final = 3.0
CREATE: Final = ExecutionCreate(kind=Kind("k"), lane=Lane("l"), input=Payload(b"1"))
CLAIM: Final = LeaseClaim(
    worker_id=WorkerId("w"), worker_instance=WorkerInstance("w"), lanes=(Lane("l"),), max_tasks=1
)


class Counted:
    """A store whose statements are counted."""

    def __init__(self, backend: Backend, proxy: Proxy) -> None:
        self.backend: Final = backend
        self._proxy = proxy
        self._count = 0
        proxy.on_request = self._see

    async def count(self, call: Callable[[], Awaitable[Any]]) -> tuple[int, Any]:
        """Return how many statements a call takes, and what it answers."""
        before = self._count
        found = await call()
        return self._count - before, found

    def _see(self, data: bytes) -> None:
        # A payload of these tests does not look like this, and a message this short is not split.
        self._count += data.count(SYNC)


@pytest.fixture
async def counted(node: Node) -> AsyncIterator[Counted]:
    """A store on which everything has been done once, so that nothing is prepared or learned any more."""
    async with proxied(node.port) as proxy:
        # One connection: a statement is prepared once on each.
        url = node.url.replace(f":{node.port}/", f":{proxy.port}/") + "?pool_size=1"
        backend = await backends.connect(url, partitions=FEW)
        found = Counted(backend, proxy)
        try:
            for name in OPERATIONS:
                await OPERATIONS[name](backend, await leased(backend))
            yield found
        finally:
            await backend.close()


async def leased(backend: Backend) -> Lease:
    """Create an execution and claim it."""
    await backend.execution.create(CREATE)
    (lease,) = (await backend.lease.claim(CLAIM)).leases
    return lease


async def _claim(backend: Backend, _: Lease) -> Any:
    return await backend.lease.claim(CLAIM)


def _append(lease: Lease) -> StreamAppend:
    frames = tuple(FrameInput(sequence=sequence) for sequence in range(1, 10))
    return StreamAppend(
        execution_id=lease.execution_id, attempt_index=lease.attempt_index, fence=lease.fence, frames=frames
    )


Operation = Callable[[Backend, Lease], Awaitable[Any]]
OPERATIONS: Final[dict[str, Operation]] = {
    "execution.create": lambda backend, lease: backend.execution.create(CREATE),
    "execution.create_many": lambda backend, lease: backend.execution.create_many(
        ExecutionCreateMany(executions=(CREATE,) * 100)
    ),
    "lease.claim": _claim,
    "lease.renew": lambda backend, lease: backend.lease.renew(
        LeaseRenew(execution_id=lease.execution_id, fence=lease.fence)
    ),
    "execution.progress": lambda backend, lease: backend.execution.progress(
        ExecutionProgress(execution_id=lease.execution_id, fence=lease.fence, percent=1.0)
    ),
    "stream.append": lambda backend, lease: backend.stream.append(_append(lease)),
    "execution.complete": lambda backend, lease: backend.execution.complete(
        ExecutionComplete(execution_id=lease.execution_id, fence=lease.fence, result=Payload(b"1"))
    ),
    "execution.fail": lambda backend, lease: backend.execution.fail(
        ExecutionFail(execution_id=lease.execution_id, fence=lease.fence)
    ),
    "execution.read_state": lambda backend, lease: backend.execution.read_state(
        ExecutionReadState(execution_id=lease.execution_id)
    ),
    "stream.read": lambda backend, lease: backend.stream.read(
        StreamRead(execution_id=lease.execution_id, attempt_index=0)
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
async def test_an_operation_is_one_round_trip(counted: Counted, name: str) -> None:
    """Each of these operations sends one statement, whatever it reads, writes and announces."""
    lease = await leased(counted.backend)
    count, _ = await counted.count(lambda: OPERATIONS[name](counted.backend, lease))
    assert count == 1


async def test_concurrent_calls_share_statements(counted: Counted) -> None:
    """A hundred calls at once are a few statements, creates, claims and completions alike."""
    backend = counted.backend
    creates = [lambda: backend.execution.create(CREATE)] * 100
    count, _ = await counted.count(lambda: asyncio.gather(*(create() for create in creates)))
    assert count <= 5
    count, claimed = await counted.count(
        lambda: asyncio.gather(*(backend.lease.claim(CLAIM) for _ in range(100)))
    )
    leases = [lease for claim in claimed for lease in claim.leases]
    assert count <= 5
    assert len(leases) == 100
    count, _ = await counted.count(
        lambda: asyncio.gather(
            *(
                backend.execution.complete(
                    ExecutionComplete(execution_id=lease.execution_id, fence=lease.fence)
                )
                for lease in leases
            )
        )
    )
    assert count <= 5


async def test_an_idle_store_rests(counted: Counted) -> None:
    """While claims and readers wait for what does not happen, next to nothing is asked of the server."""
    backend = counted.backend
    engine = Engine(backend)
    await engine.start()
    lease = await leased(backend)
    wait = LeaseClaim(
        worker_id=WorkerId("w"), worker_instance=WorkerInstance("w"), lanes=(Lane("other"),), wait_ms=20_000
    )
    read = ExecutionReadResult(execution_id=lease.execution_id, wait_ms=20_000)
    waiting: list[asyncio.Task[Any]] = [asyncio.create_task(backend.lease.claim(wait)) for _ in range(8)]
    waiting += [asyncio.create_task(backend.execution.read_result(read)) for _ in range(8)]
    try:
        await backend.execution.describe(ExecutionDescribe(execution_id=lease.execution_id))
        await asyncio.sleep(1.0)  # sleeps: until everybody is asleep
        count, _ = await counted.count(lambda: asyncio.sleep(IDLE_S))  # sleeps: as long as nothing happens
        assert count < 20 * IDLE_S
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await engine.stop()
