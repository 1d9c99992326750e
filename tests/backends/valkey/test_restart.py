"""A server goes and comes back: who waits goes on waiting, functions and layout are back, data as was promised."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from flowfabric import backends
from flowfabric.contract.backend import Backend
from flowfabric.contract.execution import ExecutionComplete, ExecutionCreate, ExecutionReadResult
from flowfabric.contract.ids import Kind, Lane, WorkerId, WorkerInstance
from flowfabric.contract.lease import LeaseClaim
from flowfabric.contract.payloads import Payload
from tests.faults.judging import judge
from tests.faults.load import FEW, PATIENCE_S, loading
from tests.faults.valkey.scenes import kill_and_start
from tests.valkey import servers
from tests.valkey.servers import Node

CLAIM = LeaseClaim(
    worker_id=WorkerId("w"), worker_instance=WorkerInstance("w"), lanes=(Lane("l"),), wait_ms=20_000
)
CREATE = ExecutionCreate(kind=Kind("k"), lane=Lane("l"), idempotency_key="one")


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[Node]:
    """A single server whose acknowledgements are on disk."""
    with servers.single_node(tmp_path / "server", appendfsync="always") as node:
        yield node


@pytest.fixture
async def store(durable: Node) -> AsyncIterator[Backend]:
    backend = await backends.connect(durable.url, partitions=FEW)
    yield backend
    await backend.close()


async def test_a_waiting_claim_outlives_a_restart(durable: Node, store: Backend) -> None:
    """A claim that waits while its server restarts is given the work that is created afterwards."""
    await store.execution.create(CREATE)
    (held,) = (await store.lease.claim(CLAIM)).leases
    claiming = asyncio.create_task(store.lease.claim(CLAIM))
    async with asyncio.timeout(PATIENCE_S):
        while b"blocked_clients:1" not in durable.call("INFO", "clients"):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)  # sleeps: until the claim has looked and waits
    await kill_and_start(durable)
    other = await backends.connect(durable.url)
    try:
        create = ExecutionCreate(kind=Kind("k"), lane=Lane("l"), idempotency_key="two")
        created = await other.execution.create(create)
        async with asyncio.timeout(PATIENCE_S):
            (lease,) = (await claiming).leases
        assert lease.execution_id == created.execution_id
        await store.execution.complete(ExecutionComplete(execution_id=held.execution_id, fence=held.fence))
    finally:
        await other.close()


async def test_a_waiting_reader_outlives_a_restart(durable: Node, store: Backend) -> None:
    """Who waits for a result while the server restarts is told when it is there."""
    created = await store.execution.create(CREATE)
    read = ExecutionReadResult(execution_id=created.execution_id, wait_ms=20_000)
    reading = asyncio.create_task(store.execution.read_result(read))
    (lease,) = (await store.lease.claim(CLAIM)).leases
    await kill_and_start(durable)
    other = await backends.connect(durable.url)
    try:
        complete = ExecutionComplete(
            execution_id=lease.execution_id, fence=lease.fence, result=Payload(b'"done"')
        )
        await other.execution.complete(complete)
        async with asyncio.timeout(PATIENCE_S):
            result = await reading
        assert result == await other.execution.read_result(read)
    finally:
        await other.close()


async def test_a_killed_process_has_its_log(tmp_path: Path) -> None:
    """With the append-only file flushed every second a killed server comes back to a state that was.

    Not always the latest: while the file is being flushed, the server keeps what it answers in its own memory.
    """
    with servers.single_node(tmp_path / "server") as server:
        async with loading(server.url, forgets=True) as load:
            for _ in range(3):
                await load.progress()
                await kill_and_start(server)
            await load.progress()
            await judge(load.backend, await load.finish(), kept=False)


async def test_a_server_that_forgot_everything_is_served_again(tmp_path: Path) -> None:
    """A server without an append-only file comes back empty: all is lost, as was said, and new work runs."""
    with servers.single_node(tmp_path / "server", appendonly="no") as server:
        async with loading(server.url, forgets=True) as load:
            for _ in range(2):
                await load.progress()
                await kill_and_start(server)
            await load.progress()
            seen = await load.finish()
            assert load.unavailable
            await judge(load.backend, seen, kept=False)
