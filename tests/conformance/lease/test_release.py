"""lease.release: a worker hands its work back. Fences and repetitions are in `test_fences`."""

from __future__ import annotations

import pytest

from flowfabric.contract import limits
from flowfabric.contract.errors import InvalidInput
from flowfabric.contract.lease import LeaseReleased
from flowfabric.contract.states import PublicState
from tests.conformance.world import World, frame, policy


async def test_it_is_claimable_at_once_as_a_new_attempt(world: World) -> None:
    """The next claim starts a new attempt of type reclaim with no wait, whatever grace the policy has.

    Acceptance: release-hands-back-at-once
    """
    lease = await world.leased("a", policy=policy(reclaim_grace_ms=60_000))
    reply = await world.lease.release(lease, reason="draining")
    assert reply == LeaseReleased(execution_id=lease.execution_id, public_state=PublicState.ACTIVE)
    seen = await world.describe(lease.execution_id)
    assert (seen.state_vector.ownership_state, seen.current_lease) == ("lease_revoked", None)
    event = (await world.history(lease.execution_id))[-1]
    assert (event.name, event.reason) == ("released", "draining")
    taken = await world.claim_one("b")
    assert (taken.attempt_type, taken.attempt_index, taken.lease_epoch) == ("reclaim", 1, 2)
    assert (await world.attempt.describe(lease)).state == "interrupted_reclaimed"


async def test_it_counts_towards_no_cap(world: World) -> None:
    """However often work is handed back, neither takeovers nor retries are used up.

    Acceptance: release-counts-towards-no-cap
    """
    lease = await world.leased(policy=policy(max_reclaim_count=0))
    for _ in range(3):
        await world.lease.release(lease)
        lease = await world.claim_one()
    seen = await world.describe(lease.execution_id)
    assert (seen.reclaim_count, seen.retry_count, seen.total_attempt_count) == (0, 0, 4)
    await world.execution.complete(lease)


async def test_a_grant_may_take_it(world: World) -> None:
    """Handed-back work can be granted for reclaim, which counts as little."""
    lease = await world.leased(policy=policy(max_reclaim_count=0))
    await world.lease.release(lease)
    await world.grant(lease.execution_id, "b", purpose="reclaim")
    await world.claim_granted(lease.execution_id, "b")
    assert (await world.describe(lease.execution_id)).reclaim_count == 0


async def test_frames_written_before_stay(world: World) -> None:
    """What the attempt streamed before it was handed back stays readable; the new attempt starts its own."""
    lease = await world.leased()
    await world.stream.append(lease, frames=(frame(1),))
    await world.lease.release(lease)
    taken = await world.claim_one()
    assert taken.frame_sequence == 0
    page = await world.stream.read(lease.execution_id, attempt_index=0)
    assert (len(page.frames), page.closed_reason) == (1, "reclaimed")


@pytest.mark.parametrize("reason", ["x" * (limits.REASON_BYTES_MAX + 1), "\x00"])
async def test_the_reason_is_bounded(world: World, reason: str) -> None:
    """A reason has at most 4,096 bytes and no NUL."""
    lease = await world.leased()
    await world.refused(InvalidInput, world.lease.release(lease, reason=reason))
    await world.lease.release(lease, reason="x" * limits.REASON_BYTES_MAX)
