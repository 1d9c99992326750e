"""lease.revoke: work is taken away from its worker."""

from __future__ import annotations

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import ExecutionNotActive, InvalidInput, StaleLease
from flowfabric.contract.lease import LeaseAlreadyGone, LeaseRevokedReply
from flowfabric.contract.states import PublicState
from tests.conformance import situations
from tests.conformance.world import OTHER_UUID, TTL_MS, UNKNOWN, World, policy


async def test_the_lease_is_gone_and_the_work_claimable(world: World) -> None:
    """The lease is taken away, recorded, and the execution is claimable again.

    Acceptance: revoke-makes-claimable-again
    """
    lease = await world.leased("a")
    world.clock.advance(5)
    reply = await world.lease.revoke(lease, reason="stuck")
    assert reply == LeaseRevokedReply(lease_id=lease.lease_id, lease_epoch=1)
    seen = await world.describe(lease.execution_id)
    assert (seen.public_state, seen.current_lease) == (PublicState.ACTIVE, None)
    assert seen.state_vector.ownership_state == "lease_revoked"
    event = (await world.history(lease.execution_id))[-1]
    assert (event.name, event.reason, event.lease_id) == ("revoked", "stuck", lease.lease_id)
    assert (await world.claim_one("b")).lease_epoch == 2


async def test_twice_is_once(world: World) -> None:
    """A second revocation finds nothing to revoke.

    Acceptance: revoke-twice-is-satisfied
    """
    lease = await world.leased()
    await world.lease.revoke(lease)
    again = await world.unchanged(world.lease.revoke(lease))
    assert again == LeaseAlreadyGone(reason="already_revoked")
    await world.claim_one("b")
    stale = world.lease.revoke(lease, expected_lease_id=lease.lease_id)
    await world.refused(StaleLease, stale)


GONE = {
    **{name: (situation, "no_active_lease") for name, situation in situations.RUNNABLE.items()},
    "expired_lease": (situations.expired_lease, "already_expired"),
    "reclaim_grace": (situations.reclaim_grace, "already_expired"),
    "revoked_lease": (situations.revoked_lease, "already_revoked"),
    "released_lease": (situations.released_lease, "already_revoked"),
}


@pytest.mark.parametrize(("situation", "reason"), GONE.values(), ids=GONE)
async def test_with_nothing_to_revoke_it_says_why(
    world: World, situation: situations.Situation, reason: str
) -> None:
    """Where nobody holds a lease the answer says so, and nothing changes.

    Acceptance: revoke-without-lease-is-satisfied
    """
    execution_id = await situation(world)
    reply = await world.unchanged(world.lease.revoke(execution_id, expected_lease_id=OTHER_UUID))
    assert reply == LeaseAlreadyGone(reason=reason)  # type: ignore[arg-type]


async def test_an_expiry_nobody_recorded_is_recorded(world: World) -> None:
    """A lease whose time is over has expired, not been revoked."""
    lease = await world.leased()
    world.clock.advance(TTL_MS)
    assert await world.lease.revoke(lease) == LeaseAlreadyGone(reason="already_expired")
    assert await world.events(lease.execution_id) == ["acquired", "expired"]


@pytest.mark.parametrize("situation", situations.ENDED.values(), ids=situations.ENDED)
async def test_a_finished_execution_is_refused(world: World, situation: situations.Situation) -> None:
    """A finished execution is not active."""
    execution_id = await situation(world)
    await world.refused(ExecutionNotActive, world.lease.revoke(execution_id))


async def test_only_the_expected_lease(world: World) -> None:
    """With an expected lease that is not the live one nothing is revoked; that comes before the worker."""
    lease = await world.leased("a")
    call = world.lease.revoke(lease, expected_lease_id=OTHER_UUID, worker_instance="b-1")
    await world.refused(StaleLease, call)
    reply = await world.lease.revoke(lease, expected_lease_id=lease.lease_id, worker_instance="a-1")
    assert type(reply) is LeaseRevokedReply


async def test_only_from_the_named_worker(world: World) -> None:
    """With a worker that does not hold it nothing is revoked.

    Acceptance: revoke-of-another-worker-is-satisfied
    """
    lease = await world.leased("a")
    reply = await world.unchanged(world.lease.revoke(lease, worker_instance="b-1"))
    assert reply == LeaseAlreadyGone(reason="different_worker_instance")


async def test_the_grace_and_the_cap_hold(world: World) -> None:
    """A revocation is a lost lease like an expiry: the grace holds back, the cap ends.

    Acceptance: revocation-respects-grace-and-cap
    """
    lease = await world.leased(policy=policy(reclaim_grace_ms=5_000))
    await world.lease.revoke(lease)
    await world.advance(4_999)
    assert await world.claim("b") == ()
    await world.advance(1)
    await world.execution.complete(await world.claim_one("b"))
    capped = await world.leased(policy=policy(max_reclaim_count=0))
    assert type(await world.lease.revoke(capped)) is LeaseRevokedReply
    assert await world.state(capped.execution_id) is PublicState.FAILED


async def test_racing_revocations_revoke_once(world: World) -> None:
    """Of several revocations at once one takes the lease, the others find it gone."""
    lease = await world.leased()
    replies = await world.race(*(world.lease.revoke(lease) for _ in range(4)))
    assert sorted(type(reply).__name__ for reply in replies) == ["LeaseAlreadyGone"] * 3 + [
        "LeaseRevokedReply"
    ]


async def test_fields_are_checked_first(world: World) -> None:
    """Malformed ids, names and long reasons are refused before the execution is looked for."""
    for fields in (
        {"expected_lease_id": "x"},
        {"worker_instance": ""},
        {"reason": "x" * (limits.REASON_BYTES_MAX + 1)},
    ):
        await world.refused(InvalidInput, world.lease.revoke(UNKNOWN, **fields))
