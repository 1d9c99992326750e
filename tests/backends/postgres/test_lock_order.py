"""Statements over several executions never wait for each other in a circle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from flowfabric.backends.postgres.backend import PostgresBackend
from flowfabric.contract.errors import StaleLease
from flowfabric.contract.execution import ExecutionComplete, ExecutionTrim
from flowfabric.contract.lease import Lease
from flowfabric.contract.payloads import Fence
from flowfabric.contract.policies import ExecutionPolicy
from flowfabric.contract.stream import FrameInput, StreamAppend
from tests.backends.postgres.work import store_of
from tests.backends.working import PATIENCE_S, claim, complete, create

LOCK = "SELECT FROM ff.execution WHERE id = $1 FOR UPDATE"
DEADLOCK_S = 1.0
"""After this the server looks for circles."""


async def contested(
    backend: PostgresBackend, leases: Sequence[Lease], *calls: Callable[[], Awaitable[Any]]
) -> list[Any]:
    """Make calls about two executions, the first of which is locked, and then the second too; return what they say."""
    low, high = (lease.execution_id[-36:] for lease in leases)
    async with store_of(backend).calls.transaction() as connection:
        await connection.execute(LOCK, low)
        outcomes = asyncio.gather(*(call() for call in calls), return_exceptions=True)
        await asyncio.wait([outcomes], timeout=0.1)
        began = time.monotonic()
        await connection.execute(LOCK, high)
        assert time.monotonic() - began < DEADLOCK_S / 2
    return await asyncio.wait_for(outcomes, PATIENCE_S)


async def test_completing_does_not_wait_out_of_turn(pair: list[PostgresBackend]) -> None:
    """A batch of which some go step by step lets go of the others when somebody locks in the same order meanwhile."""
    one, other = pair
    for _ in range(2):
        await create(one)
    first, second = sorted(await claim(one, max_tasks=2), key=lambda lease: lease.execution_id[-36:])
    stale = Fence(lease_id=first.lease_id, lease_epoch=first.lease_epoch + 1, attempt_id=first.attempt_id)
    late = ExecutionComplete(execution_id=first.execution_id, fence=stale)
    refused, done = await contested(
        other, (first, second), lambda: one.execution.complete(late), lambda: complete(one, second)
    )
    assert isinstance(refused, StaleLease)
    assert done is None


async def test_trimming_does_not_wait_out_of_turn(pair: list[PostgresBackend]) -> None:
    """So does retention, where executions with frames are deleted step by step."""
    one, other = pair
    policy = ExecutionPolicy(retention_ms=1)
    for _ in range(2):
        await create(one, policy=policy)
    first, second = sorted(await claim(one, max_tasks=2), key=lambda lease: lease.execution_id[-36:])
    frames = (FrameInput(sequence=1),)
    await one.stream.append(
        StreamAppend(execution_id=first.execution_id, attempt_index=0, fence=first.fence, frames=frames)
    )
    await complete(one, first)
    await complete(one, second)
    ends_ms = await one.now_ms() + 1
    while await one.now_ms() < ends_ms:
        pass
    trims = [ExecutionTrim(execution_id=lease.execution_id) for lease in (first, second)]
    done = await contested(
        other, (first, second), lambda: one.execution.trim(trims[0]), lambda: one.execution.trim(trims[1])
    )
    assert [trimmed.status for trimmed in done] == ["deleted", "deleted"]
