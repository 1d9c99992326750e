"""lease.renew: a live lease lives longer. Fences are in `test_fences`."""

from __future__ import annotations

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import InvalidInput, WorkerNotRegistered
from tests.conformance.world import TTL_MS, World


async def test_it_extends_the_lease_from_now(world: World) -> None:
    """The lease lives its TTL from the renewal; epoch and ids stay; the history says so.

    Acceptance: renew-extends-and-is-recorded
    """
    lease = await world.leased()
    world.clock.advance(4_000)
    reply = await world.lease.renew(lease)
    assert reply.lease_expires_at_ms == world.now_ms + TTL_MS
    assert world.now_ms < reply.renewal_deadline_ms <= world.now_ms + TTL_MS * 2 // 3 + 1
    current = (await world.describe(lease.execution_id)).current_lease
    assert current is not None
    assert (current.lease_id, current.lease_epoch) == (lease.lease_id, 1)
    assert (current.expires_at_ms, current.last_renewed_at_ms) == (world.now_ms + TTL_MS, world.now_ms)
    event = (await world.history(lease.execution_id))[-1]
    assert (event.name, event.lease_id, event.lease_epoch) == ("renewed", lease.lease_id, 1)


async def test_a_renewed_lease_does_not_expire_at_its_first_instant(world: World) -> None:
    """The expiry timer follows the renewal: nothing happens at the old instant, and it expires at the new one."""
    lease = await world.leased()
    world.clock.advance(TTL_MS - 1)
    await world.lease.renew(lease)
    await world.advance(1)
    assert (await world.describe(lease.execution_id)).current_lease is not None
    await world.advance(TTL_MS - 1)
    assert (await world.describe(lease.execution_id)).current_lease is None


async def test_it_may_change_the_ttl(world: World) -> None:
    """A TTL given with the renewal counts from now on, also for later renewals without one."""
    lease = await world.leased()
    reply = await world.lease.renew(lease, lease_ttl_ms=500)
    assert reply.lease_expires_at_ms == world.now_ms + 500
    world.clock.advance(100)
    assert (await world.lease.renew(lease)).lease_expires_at_ms == world.now_ms + 500


async def test_it_can_be_repeated(world: World) -> None:
    """Renewing again at the same instant gives the same answer."""
    lease = await world.leased()
    assert await world.lease.renew(lease) == await world.lease.renew(lease)


async def test_it_is_the_workers_heartbeat(world: World) -> None:
    """Renewing keeps the worker's registration alive.

    Acceptance: renewal-counts-as-heartbeat
    """
    await world.worker.register(
        worker_id="w", worker_instance="w-1", lanes=("default",), liveness_ttl_ms=6_000
    )
    lease = await world.leased("w")
    await world.advance(5_000)
    await world.lease.renew(lease)
    await world.advance(5_000)
    (info,) = (await world.worker.list()).workers
    assert info.alive and info.expires_at_ms == world.now_ms + 1_000


async def test_it_registers_nobody(world: World) -> None:
    """A renewal of a worker that never registered renews, and registers nothing."""
    lease = await world.leased("w")
    await world.lease.renew(lease)
    assert (await world.worker.list()).workers == ()
    await world.refused(WorkerNotRegistered, world.worker.heartbeat(worker_instance="w-1"))


@pytest.mark.parametrize("ttl_ms", [limits.LEASE_TTL_MIN_MS, limits.LEASE_TTL_MAX_MS])
async def test_the_ttl_is_accepted_at_its_bounds(world: World, ttl_ms: int) -> None:
    """A TTL of 10 ms to a day is accepted."""
    reply = await world.lease.renew(await world.leased(), lease_ttl_ms=ttl_ms)
    assert reply.lease_expires_at_ms == world.now_ms + ttl_ms


@pytest.mark.parametrize("ttl_ms", [0, limits.LEASE_TTL_MIN_MS - 1, limits.LEASE_TTL_MAX_MS + 1])
async def test_the_ttl_is_refused_past_its_bounds(world: World, ttl_ms: int) -> None:
    """A TTL below 10 ms or above a day is refused."""
    await world.refused(InvalidInput, world.lease.renew(await world.leased(), lease_ttl_ms=ttl_ms))


async def test_renewing_and_revoking_at_once_ends_revoked(world: World) -> None:
    """A renewal that races a revocation never brings the lease back."""
    lease = await world.leased()
    await world.race(world.lease.renew(lease), world.lease.revoke(lease), world.lease.renew(lease))
    seen = await world.describe(lease.execution_id)
    assert (seen.current_lease, seen.state_vector.ownership_state) == (None, "lease_revoked")
