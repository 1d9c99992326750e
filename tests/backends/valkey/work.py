"""Short ways to use a whole Valkey backend in tests, several of them on one store if need be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.valkey.backend import ValkeyBackend, open_backend
from flowfabric.backends.valkey.store import Store
from flowfabric.contract import ids
from flowfabric.contract.execution import ExecutionComplete, ExecutionCreate, ExecutionCreateMany
from flowfabric.contract.ids import ExecutionId, Kind, Lane, PartitionCounts, WorkerId, WorkerInstance
from flowfabric.contract.lease import Lease, LeaseClaim
from flowfabric.contract.payloads import Payload
from tests.backends.valkey.conftest import FEW
from tests.backends.valkey.wire.servers import Server

PATIENCE_S: Final = 20.0
WAIT_MS: Final = 20_000


@asynccontextmanager
async def opened(
    url: str, count: int = 1, *, clock: ManualClock | None = None, partitions: PartitionCounts = FEW
) -> AsyncIterator[list[ValkeyBackend]]:
    """Open a store several times, as several processes would, and close it again."""
    async with AsyncExitStack() as stack:
        backends: list[ValkeyBackend] = []
        for _ in range(count):
            backend = await open_backend(url, clock=clock, partitions=partitions)
            stack.push_async_callback(backend.close)
            backends.append(backend)
        yield backends


def store_of(backend: ValkeyBackend) -> Store:
    """Return what is behind a backend."""
    return backend._store


async def settled(backend: ValkeyBackend) -> None:
    """Wait until other processes can know all timers that this one has made."""
    await backend._hints.settled()


async def create(backend: ValkeyBackend, **fields: Any) -> ExecutionId:
    """Create an execution of kind `k`, unless told otherwise."""
    fields.setdefault("kind", Kind("k"))
    return (await backend.execution.create(ExecutionCreate(**fields))).execution_id


async def create_many(backend: ValkeyBackend, items: list[ExecutionCreate]) -> list[ExecutionId]:
    """Create executions and return their ids."""
    found: list[ExecutionId] = []
    for start in range(0, len(items), 1_000):
        done = await backend.execution.create_many(
            ExecutionCreateMany(executions=tuple(items[start : start + 1_000]))
        )
        found += [result.execution_id for result in done.results]  # type: ignore[union-attr]
    return found


def in_partition(number: int) -> ExecutionId:
    """Mint an id in a partition."""
    return ExecutionId(f"{{fp:{number}}}:{ids.mint_uuid()}")


def claiming(worker: str = "w", **fields: Any) -> LeaseClaim:
    """Build a claim from lane `default`, unless told otherwise."""
    fields.setdefault("lanes", (Lane("default"),))
    return LeaseClaim(worker_id=WorkerId(worker), worker_instance=WorkerInstance(worker), **fields)


async def claim(backend: ValkeyBackend, worker: str = "w", **fields: Any) -> tuple[Lease, ...]:
    """Claim."""
    return (await backend.lease.claim(claiming(worker, **fields))).leases


def waiting(backend: ValkeyBackend, worker: str = "w", **fields: Any) -> asyncio.Task[tuple[Lease, ...]]:
    """Start a claim that waits."""
    return asyncio.create_task(claim(backend, worker, wait_ms=WAIT_MS, **fields))


async def asleep(*backends: ValkeyBackend, count: int) -> None:
    """Wait until so many claims sleep."""
    await until(lambda: sum(store_of(backend).bells.claims_sleeping for backend in backends) == count)


async def served(*tasks: asyncio.Task[tuple[Lease, ...]]) -> list[Lease]:
    """Wait until each of these claims has something."""
    async with asyncio.timeout(PATIENCE_S):
        found = await asyncio.gather(*tasks)
    assert all(found)
    return [lease for leases in found for lease in leases]


async def gone(*tasks: asyncio.Task[Any]) -> None:
    """Give up claims."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def complete(backend: ValkeyBackend, lease: Lease, data: bytes = b"null") -> None:
    """Complete with a result."""
    await backend.execution.complete(
        ExecutionComplete(execution_id=lease.execution_id, fence=lease.fence, result=Payload(data))
    )


async def until(happened: Callable[[], bool]) -> None:
    """Wait until something can be seen to have happened."""
    async with asyncio.timeout(PATIENCE_S):
        while not happened():  # noqa: ASYNC110 (what is looked at has no event)
            await asyncio.sleep(0.001)


def forget_hints(*servers: Server) -> None:
    """Delete every hint, hold and bell, as a failover could, and what says who has swept."""
    for server in servers:
        if b"role:master" not in server.call("INFO", "replication"):
            continue
        for key in server.call("KEYS", "{w}:*"):
            name = key.decode()[4:]
            if name.partition(":")[0] in ("h", "held", "bell", "due", "dueheld", "sweeper", "swept"):
                server.call("DEL", key)
