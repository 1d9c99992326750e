"""Short ways to use a whole backend in tests, whichever it is. What looks inside of one is in that backend's `work`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from flowfabric.contract import ids
from flowfabric.contract.backend import Backend
from flowfabric.contract.execution import ExecutionComplete, ExecutionCreate, ExecutionCreateMany
from flowfabric.contract.ids import ClaimId, ExecutionId, Kind, Lane, WorkerId, WorkerInstance
from flowfabric.contract.lease import Lease, LeaseClaim
from flowfabric.contract.payloads import Payload

PATIENCE_S: Final = 20.0
WAIT_MS: Final = 20_000


async def create(backend: Backend, **fields: Any) -> ExecutionId:
    """Create an execution of kind `k`, unless told otherwise."""
    fields.setdefault("kind", Kind("k"))
    return (await backend.execution.create(ExecutionCreate(**fields))).execution_id


async def create_many(backend: Backend, items: list[ExecutionCreate]) -> list[ExecutionId]:
    """Create executions and return their ids."""
    found: list[ExecutionId] = []
    for start in range(0, len(items), 1_000):
        done = await backend.execution.create_many(
            ExecutionCreateMany(executions=tuple(items[start : start + 1_000]))
        )
        found += [result.execution_id for result in done.results]  # type: ignore[union-attr]
    return found


def claim_id() -> ClaimId:
    """Mint a claim id."""
    return ClaimId(ids.mint_uuid())


def claiming(worker: str = "w", **fields: Any) -> LeaseClaim:
    """Build a claim from lane `default`, unless told otherwise."""
    fields.setdefault("lanes", (Lane("default"),))
    return LeaseClaim(worker_id=WorkerId(worker), worker_instance=WorkerInstance(worker), **fields)


async def claim(backend: Backend, worker: str = "w", **fields: Any) -> tuple[Lease, ...]:
    """Claim."""
    return (await backend.lease.claim(claiming(worker, **fields))).leases


def waiting(backend: Backend, worker: str = "w", **fields: Any) -> asyncio.Task[tuple[Lease, ...]]:
    """Start a claim that waits."""
    return asyncio.create_task(claim(backend, worker, wait_ms=WAIT_MS, **fields))


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


async def complete(backend: Backend, lease: Lease, data: bytes = b"null") -> None:
    """Complete with a result."""
    await backend.execution.complete(
        ExecutionComplete(execution_id=lease.execution_id, fence=lease.fence, result=Payload(data))
    )


async def until(happened: Callable[[], bool]) -> None:
    """Wait until something can be seen to have happened."""
    async with asyncio.timeout(PATIENCE_S):
        while not happened():  # noqa: ASYNC110 (what is looked at has no event)
            await asyncio.sleep(0.001)
