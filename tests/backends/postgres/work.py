"""Short ways to use a whole Postgres backend in tests, several of them on one store if need be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from flowfabric.backends.clock import ManualClock
from flowfabric.backends.postgres.backend import PostgresBackend, open_backend
from flowfabric.backends.postgres.listen import Key, Listener
from flowfabric.backends.postgres.store import Store
from flowfabric.contract import ids
from flowfabric.contract.execution import ExecutionComplete, ExecutionCreate, ExecutionCreateMany
from flowfabric.contract.ids import (
    ClaimId,
    ExecutionId,
    Kind,
    Lane,
    PartitionCounts,
    WorkerId,
    WorkerInstance,
)
from flowfabric.contract.lease import Lease, LeaseClaim
from flowfabric.contract.payloads import Payload

FEW: Final = PartitionCounts(flow=16)

PATIENCE_S: Final = 20.0
WAIT_MS: Final = 20_000


@asynccontextmanager
async def opened(
    url: str, count: int = 1, *, clock: ManualClock | None = None, partitions: PartitionCounts = FEW
) -> AsyncIterator[list[PostgresBackend]]:
    """Open a store several times, as several processes would, and close it again."""
    async with AsyncExitStack() as stack:
        backends: list[PostgresBackend] = []
        for _ in range(count):
            backend = await open_backend(url, clock=clock, partitions=partitions)
            stack.push_async_callback(backend.close)
            backends.append(backend)
        yield backends


def store_of(backend: PostgresBackend) -> Store:
    """Return what is behind a backend."""
    return backend._store


def listener_of(backend: PostgresBackend) -> Listener:
    """Return what hears of commits for a backend."""
    return backend._wakes.listener


async def covered(backend: PostgresBackend, *keys: Key) -> None:
    """Wait until a backend is told of everything that somebody in it sleeps for, these things among it."""
    listener = listener_of(backend)
    await until(lambda: _is_covered(listener) and listener._covered.issuperset(keys))


def _is_covered(listener: Listener) -> bool:
    return listener.is_listening and listener._wanted.keys() <= listener._covered


async def create(backend: PostgresBackend, **fields: Any) -> ExecutionId:
    """Create an execution of kind `k`, unless told otherwise."""
    fields.setdefault("kind", Kind("k"))
    return (await backend.execution.create(ExecutionCreate(**fields))).execution_id


async def create_many(backend: PostgresBackend, items: list[ExecutionCreate]) -> list[ExecutionId]:
    """Create executions and return their ids."""
    found: list[ExecutionId] = []
    for start in range(0, len(items), 1_000):
        done = await backend.execution.create_many(
            ExecutionCreateMany(executions=tuple(items[start : start + 1_000]))
        )
        found += [result.execution_id for result in done.results]  # type: ignore[union-attr]
    return found


def claiming(worker: str = "w", **fields: Any) -> LeaseClaim:
    """Build a claim from lane `default`, unless told otherwise."""
    fields.setdefault("lanes", (Lane("default"),))
    return LeaseClaim(worker_id=WorkerId(worker), worker_instance=WorkerInstance(worker), **fields)


async def claim(backend: PostgresBackend, worker: str = "w", **fields: Any) -> tuple[Lease, ...]:
    """Claim."""
    return (await backend.lease.claim(claiming(worker, **fields))).leases


def waiting(backend: PostgresBackend, worker: str = "w", **fields: Any) -> asyncio.Task[tuple[Lease, ...]]:
    """Start a claim that waits."""
    return asyncio.create_task(claim(backend, worker, wait_ms=WAIT_MS, **fields))


async def asleep(*backends: PostgresBackend, count: int) -> None:
    """Wait until so many claims sleep, told of what they sleep for, and are done with looking."""

    def sleeping() -> int:
        claims = [waiter for backend in backends for waiter in backend._wakes._claims]
        return sum(1 for waiter in claims if waiter.idle and not waiter._rung)

    await until(
        lambda: sleeping() == count and all(_is_covered(listener_of(backend)) for backend in backends)
    )


async def served(*tasks: asyncio.Task[tuple[Lease, ...]]) -> list[Lease]:
    """Wait until each of these claims has something."""
    async with asyncio.timeout(PATIENCE_S):
        found = await asyncio.gather(*tasks)
    assert all(found)
    return [lease for leases in found for lease in leases]


async def gone(*tasks: asyncio.Task[Any]) -> None:
    """Give up what waits."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def complete(backend: PostgresBackend, lease: Lease, data: bytes = b"null") -> None:
    """Complete with a result."""
    await backend.execution.complete(
        ExecutionComplete(execution_id=lease.execution_id, fence=lease.fence, result=Payload(data))
    )


async def until(happened: Callable[[], bool]) -> None:
    """Wait until something can be seen to have happened."""
    async with asyncio.timeout(PATIENCE_S):
        while not happened():  # noqa: ASYNC110 (what is looked at has no event)
            await asyncio.sleep(0.001)


@asynccontextmanager
async def held(backend: PostgresBackend, statement: str, *arguments: Any) -> AsyncIterator[None]:
    """Keep what a statement locks locked, until the block is left."""
    async with store_of(backend).calls.transaction() as connection:
        await connection.execute(statement, *arguments)
        yield


def claim_id() -> ClaimId:
    """Mint a claim id."""
    return ClaimId(ids.mint_uuid())
