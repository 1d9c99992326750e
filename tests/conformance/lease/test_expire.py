"""lease.expire: lost leases and unused grants are recorded, and lost work becomes claimable."""

from __future__ import annotations

import pytest

from flowfabric.contract.lease import LeaseExpireDone
from flowfabric.contract.states import PublicState
from tests.conformance import situations
from tests.conformance.world import TTL_MS, World, policy


async def status(world: World, execution_id: str) -> str:
    """Record what ran out and return what was done."""
    return (await world.lease.expire(execution_id)).status


async def test_a_lease_that_ran_out_is_recorded_and_its_work_claimable(world: World) -> None:
    """Not before its instant; then once; and without a grace the work is claimable in the same step.

    Acceptance: expiry-makes-claimable-in-one-step
    """
    lease = await world.leased()
    world.clock.advance(TTL_MS - 1)
    reply = await world.unchanged(world.lease.expire(lease.execution_id))
    assert reply == LeaseExpireDone(status="not_due")
    world.clock.advance(1)
    assert await status(world, lease.execution_id) == "expired"
    seen = await world.describe(lease.execution_id)
    assert (seen.public_state, seen.state_vector.ownership_state) == ("active", "lease_expired_reclaimable")
    assert seen.state_vector.attempt_state == "attempt_interrupted"
    event = (await world.history(lease.execution_id))[-1]
    assert (event.name, event.lease_id, event.at_ms) == ("expired", lease.lease_id, world.now_ms)
    page = await world.stream.read(lease.execution_id, attempt_index=0)
    assert (page.closed_reason, page.closed_at_ms) == ("lease_expired", world.now_ms)
    again = await world.unchanged(world.lease.expire(lease.execution_id))
    assert again.status == "not_due"
    assert (await world.claim_one("b")).execution_id == lease.execution_id


async def test_a_renewed_lease_is_left_alone(world: World) -> None:
    """A lease that was renewed is not due at its old instant."""
    lease = await world.leased()
    world.clock.advance(5_000)
    await world.lease.renew(lease)
    world.clock.advance(5_000)
    assert await status(world, lease.execution_id) == "not_due"


async def test_with_a_grace_there_are_two_steps(world: World) -> None:
    """First the expiry is recorded, and when the grace is over the work becomes claimable.

    Acceptance: reclaim-grace-has-two-steps
    """
    lease = await world.leased(policy=policy(reclaim_grace_ms=5_000))
    world.clock.advance(TTL_MS)
    assert await status(world, lease.execution_id) == "expired"
    assert await world.claim("b") == ()
    world.clock.advance(4_999)
    assert await status(world, lease.execution_id) == "not_due"
    world.clock.advance(1)
    assert await status(world, lease.execution_id) == "reclaimable"
    assert await status(world, lease.execution_id) == "not_due"
    assert (await world.claim_one("b")).attempt_type == "reclaim"


async def test_the_grace_counts_from_the_expiry(world: World) -> None:
    """A late timer does not lengthen the grace: it counts from when the lease ran out."""
    lease = await world.leased(policy=policy(reclaim_grace_ms=5_000))
    world.clock.advance(TTL_MS + 4_000)
    assert await status(world, lease.execution_id) == "expired"
    await world.advance(1_000)
    assert (await world.claim_one("b")).execution_id == lease.execution_id


@pytest.mark.parametrize("grace_ms", [0, 5_000])
async def test_at_the_cap_it_ends(world: World, grace_ms: int) -> None:
    """Work that may not be taken over once more ends as failed when it would have become claimable.

    Acceptance: reclaim-cap-by-timer-ends-as-failed
    """
    lease = await world.leased(policy=policy(max_reclaim_count=0, reclaim_grace_ms=grace_ms))
    world.clock.advance(TTL_MS)
    if grace_ms:
        assert await status(world, lease.execution_id) == "expired"
        world.clock.advance(grace_ms)
    assert await status(world, lease.execution_id) == "failed"
    seen = await world.describe(lease.execution_id)
    assert seen.failure is not None
    assert (seen.failure.failure_class, seen.failure.category) == ("infra_crash", "max_reclaims_exceeded")
    assert seen.retention_due_at_ms is not None
    assert (await world.attempt.describe(lease)).state == "ended_failure"
    assert (await world.history(lease.execution_id))[-1].outcome == "failed"
    assert await status(world, lease.execution_id) == "not_due"


async def test_an_unused_grant_runs_out(world: World) -> None:
    """A grant that nobody used is recorded as expired, and its execution is eligible again.

    Acceptance: unused-grant-expires
    """
    execution_id = await world.create()
    await world.grant(execution_id, grant_ttl_ms=1_000)
    world.clock.advance(999)
    assert await status(world, execution_id) == "not_due"
    world.clock.advance(1)
    assert await status(world, execution_id) == "grant_expired"
    assert (await world.describe(execution_id)).public_state is PublicState.WAITING
    assert await status(world, execution_id) == "not_due"
    await world.claim_one()


OTHERS = {name: situation for name, situation in situations.ALL.items() if name not in ("leased", "granted")}


@pytest.mark.parametrize("situation", OTHERS.values(), ids=OTHERS)
async def test_with_nothing_due_nothing_is_done(world: World, situation: situations.Situation) -> None:
    """Where no lease or grant ran out nothing is done."""
    execution_id = await situation(world)
    assert (await world.unchanged(world.lease.expire(execution_id))).status == "not_due"


async def test_racing_timers_record_once(world: World) -> None:
    """The same expiry recorded several times at once is one event."""
    lease = await world.leased()
    world.clock.advance(TTL_MS)
    replies = await world.race(*(world.lease.expire(lease.execution_id) for _ in range(4)))
    assert sorted(reply.status for reply in replies) == ["expired", "not_due", "not_due", "not_due"]
    assert await world.events(lease.execution_id) == ["acquired", "expired"]


async def test_expiry_and_renewal_at_once_agree(world: World) -> None:
    """A renewal that comes with the expiry either lives on or is refused, never both."""
    lease = await world.leased()
    world.clock.advance(TTL_MS - 1)
    outcomes = await world.race(world.lease.expire(lease.execution_id), world.lease.renew(lease))
    assert outcomes[0].status == "not_due"
    assert outcomes[1].lease_expires_at_ms == world.now_ms + TTL_MS
