"""lease.list_expired: active executions that lost their lease, oldest loss first."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import InvalidInput, InvalidOffset, Refused
from tests.conformance import situations
from tests.conformance.world import TTL_MS, World, policy


async def listed(world: World, **fields: Any) -> list[Any]:
    """List all, page by page."""
    return await world.pages("lease.list_expired", "leases", **fields)


async def test_every_way_to_lose_a_lease_is_listed(world: World) -> None:
    """Expired, revoked and handed-back leases are listed with when and why, until somebody takes over.

    Acceptance: list-expired-includes-every-loss
    """
    expired = await world.leased("a", lane="a")
    await world.advance(TTL_MS)
    revoked = await world.leased("b", lane="b")
    world.clock.advance(1)
    await world.lease.revoke(revoked, reason="stuck")
    released = await world.leased("c", lane="c")
    world.clock.advance(1)
    await world.lease.release(released, reason="draining")
    found = await listed(world)
    assert [(item.execution_id, item.expires_at_ms, item.reason) for item in found] == [
        (expired.execution_id, expired.lease_expires_at_ms, "lease_expired"),
        (revoked.execution_id, world.now_ms - 1, "stuck"),
        (released.execution_id, world.now_ms, "draining"),
    ]
    first = found[0]
    assert (first.lease_id, first.lease_epoch, first.worker_instance) == (expired.lease_id, 1, "a-1")
    assert (first.attempt_index, first.namespace) == (0, "default")
    await world.claim_one("d", lanes=("a",))
    await world.execution.cancel(revoked.execution_id, source="operator_override")
    assert [item.execution_id for item in await listed(world)] == [released.execution_id]


@pytest.mark.parametrize("situation", [*situations.RUNNABLE.values(), *situations.ENDED.values()])
async def test_nothing_else_is_listed(world: World, situation: situations.Situation) -> None:
    """Executions that nobody lost are not listed."""
    await situation(world)
    assert await listed(world) == []


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_pages_lose_and_repeat_nothing(world: World, limit: int) -> None:
    """Whatever the page size all losses appear once in order, also those of the same instant in many partitions.

    Acceptance: list-expired-pages-across-partitions
    """
    for _ in range(5):
        await world.create(policy=policy(reclaim_grace_ms=60_000))
    leases = await world.claim(max_tasks=5)
    await world.advance(TTL_MS)
    found = await listed(world, limit=limit)
    keys = [(item.expires_at_ms, item.execution_id) for item in found]
    assert sorted(key[1] for key in keys) == sorted(lease.execution_id for lease in leases)
    assert [key[0] for key in keys] == sorted(key[0] for key in keys)


async def test_a_namespace_sees_its_own(world: World) -> None:
    """With a namespace only its losses are listed."""
    for namespace in ("a", "b"):
        await world.create(namespace=namespace)
        (lease,) = await world.claim(namespace=namespace)
        await world.lease.release(lease)
    (found,) = await listed(world, namespace="b")
    assert found.namespace == "b"


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"limit": 0}, InvalidInput),
        ({"limit": limits.EXPIRED_LEASE_PAGE_MAX + 1}, InvalidInput),
        ({"namespace": "a b"}, InvalidInput),
        ({"cursor": "x" * (limits.CURSOR_LENGTH_MAX + 1)}, InvalidInput),
        ({"cursor": "nonsense"}, InvalidOffset),
        ({"cursor": "nonsense", "limit": 0}, InvalidInput),
    ],
    ids=str,
)
async def test_malformed_arguments_are_refused(
    world: World, fields: dict[str, Any], refusal: type[Refused]
) -> None:
    """Bounds are kept and a cursor that this operation did not return is refused, in this order."""
    await situations.revoked_lease(world)
    await world.refused(refusal, world.lease.list_expired(**fields))


async def test_the_largest_page_is_accepted(world: World) -> None:
    """A page may have 10,000 entries."""
    assert (await world.lease.list_expired(limit=limits.EXPIRED_LEASE_PAGE_MAX)).leases == ()
