"""Every situation an execution can be in, and how to get there: one vector class after the other.

For tests of operations that must behave alike in many situations. A builder takes the world and fields for create, and
returns the execution's id; the lease it used, if any, is not handed on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from flowfabric.contract.ids import ExecutionId
from flowfabric.contract.states import CancelSource, FailureClass
from tests.conformance.world import TTL_MS, World, policy, retrying

Situation = Callable[..., Awaitable[ExecutionId]]


async def waiting(world: World, **fields: Any) -> ExecutionId:
    """Eligible, never claimed."""
    return await world.create(**fields)


async def delayed(world: World, **fields: Any) -> ExecutionId:
    """Not to run before an instant."""
    return await world.create(delay_until_ms=world.now_ms + 60_000, **fields)


async def blocked(world: World, **fields: Any) -> ExecutionId:
    """Held back by an operator."""
    execution_id = await world.create(**fields)
    await world.execution.block(execution_id)
    return execution_id


async def granted(world: World, **fields: Any) -> ExecutionId:
    """Granted to a worker that has not taken it."""
    execution_id = await world.create(**fields)
    await world.grant(execution_id, grant_ttl_ms=60_000)
    return execution_id


async def leased(world: World, **fields: Any) -> ExecutionId:
    """Held by a worker."""
    return (await world.leased(lease_ttl_ms=3_600_000, **fields)).execution_id


async def interrupted(world: World, **fields: Any) -> ExecutionId:
    """Resumable: its worker paused it, its time has come."""
    lease = await world.leased(**fields)
    await world.execution.wait_children(lease)
    return lease.execution_id


async def paused(world: World, **fields: Any) -> ExecutionId:
    """Its worker delayed it."""
    lease = await world.leased(**fields)
    await world.execution.delay(lease, delay_until_ms=world.now_ms + 60_000)
    return lease.execution_id


async def retry_backoff(world: World, **fields: Any) -> ExecutionId:
    """Failed, to be tried again."""
    fields.setdefault("policy", retrying(delay_ms=60_000))
    lease = await world.leased(**fields)
    await world.execution.fail(lease)
    return lease.execution_id


async def expired_lease(world: World, **fields: Any) -> ExecutionId:
    """Its lease ran out; it is claimable again."""
    lease = await world.leased(**fields)
    await world.advance(TTL_MS)
    return lease.execution_id


async def reclaim_grace(world: World, **fields: Any) -> ExecutionId:
    """Its lease ran out, its grace has not."""
    fields.setdefault("policy", policy(reclaim_grace_ms=3_600_000))
    lease = await world.leased(**fields)
    await world.advance(TTL_MS)
    return lease.execution_id


async def revoked_lease(world: World, **fields: Any) -> ExecutionId:
    """Its lease was taken away; it is claimable again."""
    lease = await world.leased(**fields)
    await world.lease.revoke(lease)
    return lease.execution_id


async def released_lease(world: World, **fields: Any) -> ExecutionId:
    """Its worker handed it back; it is claimable again."""
    lease = await world.leased(**fields)
    await world.lease.release(lease)
    return lease.execution_id


async def completed(world: World, **fields: Any) -> ExecutionId:
    """Ended with success."""
    return (await world.completed(**fields)).execution_id


async def failed(world: World, **fields: Any) -> ExecutionId:
    """Ended as failed."""
    lease = await world.leased(**fields)
    await world.execution.fail(lease, failure_class=FailureClass.PERMANENT)
    return lease.execution_id


async def cancelled(world: World, **fields: Any) -> ExecutionId:
    """Cancelled before it ran."""
    execution_id = await world.create(**fields)
    await world.execution.cancel(execution_id, source=CancelSource.OPERATOR_OVERRIDE)
    return execution_id


async def expired(world: World, **fields: Any) -> ExecutionId:
    """Its deadline passed before it ran."""
    execution_id = await world.create(deadline_at_ms=world.now_ms + 1, **fields)
    await world.advance(1)
    return execution_id


RUNNABLE: Final[dict[str, Situation]] = {
    situation.__name__: situation
    for situation in (waiting, delayed, blocked, granted, interrupted, paused, retry_backoff)
}
LOST: Final[dict[str, Situation]] = {
    situation.__name__: situation
    for situation in (expired_lease, reclaim_grace, revoked_lease, released_lease)
}
LIVE: Final[dict[str, Situation]] = {**RUNNABLE, "leased": leased, **LOST}
ENDED: Final[dict[str, Situation]] = {
    situation.__name__: situation for situation in (completed, failed, cancelled, expired)
}
ALL: Final[dict[str, Situation]] = {**LIVE, **ENDED}
